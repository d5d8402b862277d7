"""Taps in the layers of a user's own flax model, which stays as it is written.

Layers of this library multiply with `@`, where a tap can stand in the place of the kernel
(`jaxlab.optim.mkor.attach_taps`); flax's own layers call `dot_general` and convolutions. Linen's
are intercepted, those of NNX are given another product.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.optim.mkor.taps import Tap, tap, tap_windows


def tapped_layers(taps: Mapping[str, Tap]) -> AbstractContextManager[None]:
    """Taps the layers of a Linen model that is applied inside: Dense, DenseGeneral, Conv.

    Attention's projections are DenseGeneral, so they are tapped as well. Layers without a tap, and
    those of other kinds, are left alone.

    Args:
      taps: of `init_taps(params["params"], spec)`; kernels of more than two axes need the spec.

    >>> model, x = nn.Dense(2), jnp.ones((3, 4))
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> from jaxlab.optim.mkor import init_taps
    >>> def loss(taps):
    ...     with tapped_layers(taps):
    ...         return jnp.sum(model.apply({"params": params}, x))
    >>> jax.grad(loss)(init_taps(params))["kernel"].a.tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, y = context.module, call(*args, **kwargs)
        path = "/".join([*module.path, "kernel"])
        if context.method_name != "__call__" or path not in taps or not args:
            return y
        for kind, put in _LINEN.items():
            if isinstance(module, kind):
                return put(module, args[0], y, taps[path])
        return y

    return nn.intercept_methods(intercept)


def tap_model(model: nnx.Module, taps: Mapping[str, Tap]) -> nnx.Module:
    """Taps the layers of an NNX model in place: Linear and Conv.

    Call it inside the loss, on the model that `nnx.merge` has just made.

    Args:
      model: the model.
      taps: of `init_taps(nnx.to_pure_dict(state), spec)`, by the paths of its kernels.

    Returns:
      The model.

    >>> graph, state = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    >>> from jaxlab.optim.mkor import init_taps
    >>> loss = lambda taps: jnp.sum(tap_model(nnx.merge(graph, state), taps)(jnp.ones((3, 4))))
    >>> jax.grad(loss)(init_taps(nnx.to_pure_dict(state)))["kernel"].g.tolist()
    [3.0, 3.0]
    """
    for key_path, module in nnx.iter_modules(model):
        path = "/".join(filter(None, ["/".join(map(str, key_path)), "kernel"]))
        if path not in taps:
            continue
        if isinstance(module, nnx.Linear):
            module.dot_general = partial(_dot_general, module.dot_general, taps[path])
        elif isinstance(module, nnx.Conv):
            convolve = module.conv_general_dilated
            module.conv_general_dilated = partial(_convolve, convolve, taps[path])
    return model


def _dot_general(product: Any, t: Tap, x: jax.Array, w: jax.Array, *args: Any, **kwargs: Any):
    return tap(x, product(x, w, *args, **kwargs), *t)


def _convolve(product: Any, t: Tap, x: jax.Array, w: jax.Array, *args: Any, **kwargs: Any):
    y = product(x, w, *args, **kwargs)
    if kwargs.get("feature_group_count", 1) != 1:
        return y  # no product of one matrix
    one = jnp.zeros((*w.shape[:-1], 1), x.dtype)
    return tap_windows(lambda x, w: product(x, w, *args, **kwargs), x, y, one, *t)


def _tap_dense(module: Any, x: jax.Array, y: jax.Array, t: Tap) -> jax.Array:
    return tap(x, y, *t)


def _tap_general(module: Any, x: jax.Array, y: jax.Array, t: Tap) -> jax.Array:
    axes = module.axis if isinstance(module.axis, tuple) else (module.axis,)
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    rows = x.reshape(-1, t.a.shape[-1] - 1)
    return tap(rows, y.reshape(-1, t.g.shape[-1]), *t).reshape(y.shape)


def _tap_conv(module: Any, x: jax.Array, y: jax.Array, t: Tap) -> jax.Array:
    if module.feature_group_count != 1:
        return y  # no product of one matrix
    size, ndim = tuple(module.kernel_size), len(module.kernel_size)
    each = lambda value: (value,) * ndim if isinstance(value, int | None) else tuple(value)  # noqa: E731
    x = x.reshape(-1, *x.shape[-ndim - 1 :])  # as flax does with several batch axes, or none
    one = jnp.zeros((*size, x.shape[-1], 1), x.dtype)
    order = jax.lax.conv_dimension_numbers(x.shape, one.shape, _ORDERS[ndim])

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            w,
            [s or 1 for s in each(module.strides)],
            module.padding,
            rhs_dilation=[s or 1 for s in each(module.kernel_dilation)],
            dimension_numbers=order,
        )

    return tap_windows(convolve, x, y, one, *t)


_ORDERS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}
_LINEN: dict[Any, Callable[[Any, jax.Array, jax.Array, Tap], jax.Array]] = {
    nn.Dense: _tap_dense,
    nn.DenseGeneral: _tap_general,
    nn.Conv: _tap_conv,
}
