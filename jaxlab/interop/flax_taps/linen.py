"""Taps in Linen's layers, whose calls are intercepted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxlab.core.registry import suggest
from jaxlab.interop.flax_taps.products import refusal, tapped_convolution, tapped_dot
from jaxlab.optim.mkor.tapped import Tap


def tapped_apply(apply_fn: Callable[..., Any], taps: Mapping[str, Tap]) -> Callable[..., Any]:
    """`apply_fn` of a Linen model, tapped: Dense, DenseGeneral and Conv, hence attention.

    `nn.scan` and `nn.vmap` slice taps with the parameters that they stand beside, so that every
    layer of a stack has its own row of statistics. Layers without a tap are left alone.

    Args:
      apply_fn: `model.apply`, or another function of variables first.
      taps: of `init_taps(variables["params"], spec)`; kernels of more than two axes, those of a
        stack not counted, need the spec.

    Returns:
      A function of the arguments of `apply_fn`.

    Raises:
      ValueError: from that function; a tap is of no parameter, of one whose product is not seen
        (Einsum, ConvTranspose, grouped convolutions, layers of one's own), or of the wrong shape.

    >>> import jax.numpy as jnp
    >>> model, x = nn.Dense(2), jnp.ones((3, 4))
    >>> variables = model.init(jax.random.key(0), x)
    >>> from jaxlab.optim.mkor import init_taps
    >>> loss = lambda taps: jnp.sum(tapped_apply(model.apply, taps)(variables, x))
    >>> jax.grad(loss)(init_taps(variables["params"]))["kernel"].a.tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """

    def tapped(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        params = _beside(variables["params"], taps)
        with tapped_layers(taps):
            return apply_fn({**variables, "params": params}, *args, **kwargs)

    return tapped


def tapped_layers(taps: Mapping[str, Tap]) -> AbstractContextManager[None]:
    """Taps the layers of a Linen model that is applied inside; of no stack of layers.

    For code that cannot call `tapped_apply`, whose arguments and errors it has; but a tap of no
    parameter it cannot see, and `jaxlab.optim.mkor.unused` names it.

    >>> import jax.numpy as jnp
    >>> model, x = nn.Dense(2), jnp.ones((3, 4))
    >>> variables = model.init(jax.random.key(0), x)
    >>> from jaxlab.optim.mkor import init_taps
    >>> def loss(taps):
    ...     with tapped_layers(taps):
    ...         return jnp.sum(model.apply(variables, x))
    >>> jax.grad(loss)(init_taps(variables["params"]))["kernel"].g.tolist()
    [3.0, 3.0]
    """
    owned: dict[str, list[str]] = {}
    for path in taps:
        owned.setdefault(path.rpartition("/")[0], []).append(path)

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        paths = () if module.scope is None else owned.get("/".join(module.path), ())
        if not paths or context.method_name == "setup":
            return call(*args, **kwargs)
        *_, (attribute, product) = [_product_of(module, path) for path in paths]
        own = module.get_variable("params", _NAME)
        with _put(module, attribute, product, taps[paths[0]] if own is None else own, paths[0]):
            return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


# Beside the kernel, in the collection that transformations slice it with.
_NAME = "kernel_tap"


def _beside(params: Mapping[str, Any], taps: Mapping[str, Tap]) -> dict[str, Any]:
    flat = flatten_dict(params, keep_empty_nodes=True, sep="/")
    for path in taps:
        if path not in flat:
            raise ValueError(f"flax_taps: no parameter {path!r}; {suggest(path, flat)}")
    put = {"/".join([*path.split("/")[:-1], _NAME]): t for path, t in taps.items()}
    return unflatten_dict({**flat, **put}, sep="/")


def _product_of(module: nn.Module, path: str) -> tuple[str, Callable[..., jax.Array]]:
    """The attribute that a layer takes its product from, and how that is tapped."""
    for kind, (attribute, product) in _KINDS.items():
        if isinstance(module, kind) and path.split("/")[-1] == "kernel":
            if getattr(module, "feature_group_count", 1) != 1:
                raise refusal(path, type(module), "whose groups are no single matrix", [*_KINDS])
            return attribute, product
    raise refusal(path, type(module), "whose product is not seen", [*_KINDS])


@contextmanager
def _put(module: Any, attribute: str, product: Any, t: Tap, path: str) -> Iterator[None]:
    """Gives a layer a tapped product for one call."""
    made = f"{attribute}_cls"
    use = attribute if getattr(module, made) is None else made
    old = getattr(module, use)
    base = old
    if isinstance(base, partial) and base.func in (product, _make):
        # A call inside another one of the same layer: of a class above it, or by a transformation,
        # in which the tap is another slice.
        base = base.args[0]
    if use == attribute:
        new = partial(product, base or _LAX[attribute], t, path)
    else:
        new = partial(_make, base, product, t, path)
    object.__setattr__(module, use, new)  # a layer is frozen, and this leaves it as it was
    try:
        yield
    finally:
        object.__setattr__(module, use, old)


def _make(make: Any, product: Any, t: Tap, path: str) -> Callable[..., jax.Array]:
    # Only inside of the layer's call, where what is made may have variables of its own.
    return partial(product, make(), t, path)


_LAX: dict[str, Callable[..., jax.Array]] = {
    "dot_general": jax.lax.dot_general,
    "conv_general_dilated": jax.lax.conv_general_dilated,
}
_KINDS: dict[type[nn.Module], tuple[str, Callable[..., jax.Array]]] = {
    nn.Dense: ("dot_general", tapped_dot),
    nn.DenseGeneral: ("dot_general", tapped_dot),
    nn.Conv: ("conv_general_dilated", tapped_convolution),
}
