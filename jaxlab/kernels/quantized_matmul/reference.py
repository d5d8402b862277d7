"""What a product with packed integers means, and how XLA computes it."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator
from jaxlab.kernels.packing import Planar, unpack


def dequantize(packed: Planar, scale: jax.Array, zero: jax.Array | None = None) -> jax.Array:
    """The dense (..., n, k) array `(q - zero) * scale`, in float32, or float64 for such scales.

    Args:
      packed: q, (..., n, k).
      scale: floating, (..., groups, n).
      zero: like `scale`, or None for 0.
    """
    *stack, n, k = packed.shape
    groups = scale.shape[-2]
    dtype = accumulator(scale.dtype)

    def for_each(values: jax.Array) -> jax.Array:
        return jnp.swapaxes(values.astype(dtype), -1, -2)[..., None]

    q = unpack(packed).astype(dtype).reshape(*stack, n, groups, k // groups)
    if zero is not None:
        q = q - for_each(zero)
    return (q * for_each(scale)).reshape(*stack, n, k)


def reference(
    x: jax.Array, packed: Planar, floating: tuple[jax.Array, jax.Array | None]
) -> jax.Array:
    """`x @ dequantize(...).T`, every sum in float32 or better, rounded once to x's dtype."""
    dense = dequantize(packed, *floating)
    dtype = accumulator(x.dtype)
    wide = jnp.matmul(x.astype(dtype), dense.astype(dtype).T, precision=lax.Precision.HIGHEST)
    return wide.astype(x.dtype)


def xla(x: jax.Array, packed: Planar, floating: tuple[jax.Array, jax.Array | None]) -> jax.Array:
    """The same with one product in x's dtype, which XLA may fuse the unpacking into.

    A scale that belongs to a whole row of W multiplies the result, so that the integers meet x
    exactly. With one row of x it is a sum of products, which needs no dense array at all.
    """
    scale, zero = floating
    dtype = accumulator(x.dtype)
    per_row = scale.shape[0] == 1 and zero is None
    dense = unpack(packed) if per_row else dequantize(packed, scale, zero)
    if x.shape[0] == 1:
        wide = jnp.sum(x.astype(dtype) * dense.astype(dtype), axis=1)[None]
    else:
        # float16 may not hold what a scale makes of an integer.
        held = dtype if x.dtype == jnp.float16 else x.dtype
        contract = (((1,), (1,)), ((), ()))
        wide = lax.dot_general(
            x.astype(held), dense.astype(held), contract, preferred_element_type=dtype
        )
    if per_row:
        wide = wide * scale.astype(dtype)
    return wide.astype(x.dtype)
