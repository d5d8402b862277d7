"""What a product with packed N:M weights means, and how XLA computes it."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.packing_nm import PackedNM, unpack_nm

# Kept values that are floating, if they are; scales, if there are any.
Floating = tuple[jax.Array | None, jax.Array | None]


def joined(like: PackedNM, integers: Planar | None, values: jax.Array | None) -> PackedNM:
    """Packed weights from what gets no gradient and what does; `like` has codes, and no values."""
    stored = values if integers is None else integers
    assert stored is not None
    return PackedNM(stored, like.code, like.n, like.m, like.block, like.version)


def dequantize_nm(packed: PackedNM, scale: jax.Array | None = None) -> jax.Array:
    """The dense (..., n_out, k) array of packed weights, times their scales.

    Args:
      packed: (..., n_out, k).
      scale: floating, (..., groups, n_out): k / groups consecutive k share one; or None for 1.

    Returns:
      In the values' dtype; with scales in float32, or float64 for such scales.
    """
    dense = unpack_nm(packed)
    if scale is None:
        return dense
    dtype, groups = accumulator(scale.dtype), scale.shape[-2]
    split = dense.astype(dtype).reshape((*dense.shape[:-1], groups, -1))
    return (split * jnp.swapaxes(scale.astype(dtype), -1, -2)[..., None]).reshape(dense.shape)


def reference(
    x: jax.Array, packed: tuple[PackedNM, Planar | None], floating: Floating
) -> jax.Array:
    """`x @ dense.T`, every sum in float32 or better, rounded once to x's dtype.

    Args:
      x: (rows, k).
      packed: the codes, in a `PackedNM` without values; integers, if the values are.
      floating: the values, if the integers are None; scales, or None.
    """
    dtype = accumulator(x.dtype)
    dense = dequantize_nm(joined(*packed, floating[0]), floating[1]).astype(dtype)
    wide = jnp.matmul(x.astype(dtype), dense.T, precision=lax.Precision.HIGHEST)
    return wide.astype(x.dtype)


def xla(x: jax.Array, packed: tuple[PackedNM, Planar | None], floating: Floating) -> jax.Array:
    """The same with one product in x's dtype, through the dense array."""
    dense, dtype = dequantize_nm(joined(*packed, floating[0]), floating[1]), accumulator(x.dtype)
    # float16 may not hold what a scale makes of an integer.
    held = dtype if x.dtype == jnp.float16 else x.dtype
    contract = (((1,), (1,)), ((), ()))
    wide = lax.dot_general(
        x.astype(held), dense.astype(held), contract, preferred_element_type=dtype
    )
    return wide.astype(x.dtype)
