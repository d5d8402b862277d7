"""The products of flax's layers, tapped."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.optim.mkor.tapped import Tap, tap, tap_windows

Product = Callable[..., jax.Array]


def tapped_dot(
    product: Product,
    t: Tap,
    path: str,
    x: jax.Array,
    w: jax.Array,
    dims: Any,
    *args: Any,
    **kwargs: Any,
) -> jax.Array:
    """`product(x, w, dims, ...)`, a `dot_general` by a kernel of axes (batch, in, out), tapped.

    Args:
      product: with the arguments of `jax.lax.dot_general`.
      t: of the kernel, with its batch axes in front.
      path: of the kernel, for errors.

    Raises:
      ValueError: the tap is of another shape than the kernel.
    """
    y = product(x, w, dims, *args, **kwargs)
    (of_x, of_w), (batch_of_x, _) = dims
    batch, inputs = len(batch_of_x), len(of_w)
    rows, columns = w.shape[batch : batch + inputs], w.shape[batch + inputs :]
    n, o = math.prod(rows), math.prod(columns)
    check_tap(t, path, w.shape[:batch], n, o, (inputs, len(columns)))
    ends = (*range(batch), *range(-inputs, 0))
    x = jnp.moveaxis(x, (*batch_of_x, *of_x), ends)
    leading = x.shape[: x.ndim - inputs]
    tapped = tap
    for _ in range(batch):
        tapped = jax.vmap(tapped)
    return tapped(x.reshape(*leading, n), y.reshape(*leading, o), *t).reshape(y.shape)


def tapped_convolution(
    product: Product,
    t: Tap,
    path: str,
    x: jax.Array,
    w: jax.Array,
    strides: Sequence[int],
    padding: Any,
    **kwargs: Any,
) -> jax.Array:
    """`product(x, w, strides, padding, ...)`, a convolution with channels last, tapped.

    Args:
      product: with the arguments of `jax.lax.conv_general_dilated`.
      t: of the kernel.
      path: of the kernel, for errors.

    Raises:
      ValueError: the tap is of another shape than the kernel.
    """
    y = product(x, w, strides, padding, **kwargs)
    check_tap(t, path, (), math.prod(w.shape[:-1]), w.shape[-1], (w.ndim - 1, 1))
    where = {name: kwargs[name] for name in _GEOMETRY if name in kwargs}

    # The windows are the same for a product of another kind, a quantised one for instance.
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, strides, padding, **where)

    return tap_windows(convolve, x, y, jnp.zeros((*w.shape[:-1], 1), x.dtype), *t)


_GEOMETRY = ("lhs_dilation", "rhs_dilation", "dimension_numbers")


def check_tap(
    t: Tap, path: str, stack: tuple[int, ...], n: int, o: int, axes: tuple[int, int]
) -> None:
    """Raises a ValueError unless the tap is one of a kernel of n inputs and o outputs."""
    if t.a.shape == (*stack, n + 1) and t.g.shape == (*stack, o):
        return
    raise ValueError(
        f"flax_taps: the taps of {path!r} are {t.a.shape} and {t.g.shape}, and its product with "
        f"{n} inputs and {o} outputs needs {(*stack, n + 1)} and {(*stack, o)}; nearest: "
        f"spec=[({path!r}, {axes[0]}, {axes[1]})], and tapped_apply where a scan or vmap stacks "
        "layers"
    )


def refusal(path: str, kind: type, why: str, kinds: Sequence[type]) -> ValueError:
    """What to say of a tap that no product would reach."""
    names = ", ".join(k.__name__ for k in kinds)
    return ValueError(
        f"flax_taps: {path!r} belongs to {kind.__name__}, {why}; tapped are kernels of {names}; "
        "nearest: leave it out of the spec"
    )
