"""Taps in NNX's layers, which are given another product."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxlab.core.registry import suggest
from jaxlab.interop.flax_taps.products import refusal, tapped_convolution, tapped_dot
from jaxlab.optim.mkor.tapped import Tap


def tap_model(model: nnx.Module, taps: Mapping[str, Tap]) -> nnx.Module:
    """Taps the layers of an NNX model in place: Linear, LinearGeneral, hence attention, and Conv.

    Call it inside the loss, on the model that `nnx.merge` or, under `nnx.grad`, `nnx.clone` has
    just made: it keeps its taps. `nnx.scan` and `nnx.vmap` slice the taps of a stack of layers with
    its parameters.

    Args:
      model: the model.
      taps: of `init_taps(nnx.to_pure_dict(state), spec)`, by the paths of its kernels; those of
        more than two axes, those of a stack not counted, need the spec.

    Returns:
      The model.

    Raises:
      ValueError: a tap is of no parameter, or of one whose product is not seen (Einsum,
        ConvTranspose, grouped convolutions, layers of one's own); and, where the model is called,
        a tap is of the wrong shape.

    >>> import jax.numpy as jnp
    >>> from jaxlab.optim.mkor import init_taps
    >>> graph, state = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    >>> params, x = nnx.to_pure_dict(state), jnp.ones((3, 4))
    >>> loss = lambda taps: jnp.sum(tap_model(nnx.merge(graph, params), taps)(x))
    >>> jax.grad(loss)(init_taps(params))["kernel"].g.tolist()
    [3.0, 3.0]
    """
    modules = {"/".join(map(str, path)): m for path, m in nnx.iter_modules(model)}
    for path, t in taps.items():
        above, _, name = path.rpartition("/")
        module = modules.get(above)
        if not isinstance(getattr(module, name, None), nnx.Variable):
            there = [f"{p}/kernel".lstrip("/") for p, m in modules.items() if hasattr(m, "kernel")]
            raise ValueError(f"flax_taps: no parameter {path!r}; {suggest(path, there)}")
        _put(module, name, t, path)
    return model


class TappedProduct(nnx.Module):
    """A layer's product, with its tap as variables: a part of the model, sliced with its layer."""

    def __init__(self, product: Any, how: Callable[..., Any], t: Tap, path: str, kind: Any):
        """`product`, tapped by `how`; variables are of the kind of the kernel's."""
        self.product, self.how, self.path = product, how, path
        self.a, self.g = kind(t.a), kind(t.g)

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """What the product computes."""
        return self.how(self.product, Tap(self.a[...], self.g[...]), self.path, *args, **kwargs)


def _put(module: Any, name: str, t: Tap, path: str) -> None:
    for kind, (attribute, how) in _KINDS.items():
        if not isinstance(module, kind) or name != "kernel":
            continue
        if getattr(module, "feature_group_count", 1) != 1:
            raise refusal(path, type(module), "whose groups are no single matrix", [*_KINDS])
        product = getattr(module, attribute)
        if isinstance(product, TappedProduct):
            product = product.product
        made = f"{attribute}_cls"
        if getattr(module, made, None) is not None:
            product = getattr(module, made)()
            setattr(module, made, None)
        product = jax.lax.dot_general if product is None else product
        tapped = TappedProduct(product, how, t, path, type(module.kernel))
        setattr(module, attribute, nnx.data(tapped))
        return
    raise refusal(path, type(module), "whose product is not seen", [*_KINDS])


_KINDS: dict[Any, tuple[str, Callable[..., jax.Array]]] = {
    nnx.Linear: ("dot_general", tapped_dot),
    nnx.LinearGeneral: ("dot_general", tapped_dot),
    nnx.Conv: ("conv_general_dilated", tapped_convolution),
}
