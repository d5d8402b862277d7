"""What a product with N:M planes means, and how XLA computes it."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.packing_nm import NMPlanes, unpack_nm


def reference(m: int, block: int, x: jax.Array, code: Planar, values: jax.Array) -> jax.Array:
    """`x @ dense.T`, every sum in float32 or better, rounded once to x's dtype.

    Args:
      m: blocks of a group.
      block: entries of a block.
      x: (rows, k).
      code: of `NMPlanes`.
      values: likewise.
    """
    dtype = accumulator(x.dtype)
    dense = unpack_nm(NMPlanes(values, code, m, block)).astype(dtype)
    wide = jnp.matmul(x.astype(dtype), dense.T, precision=lax.Precision.HIGHEST)
    return wide.astype(x.dtype)


def xla(m: int, block: int, x: jax.Array, code: Planar, values: jax.Array) -> jax.Array:
    """The same with one product in x's dtype, through the dense array."""
    dense = unpack_nm(NMPlanes(values, code, m, block)).astype(x.dtype)
    contract = (((1,), (1,)), ((), ()))
    wide = lax.dot_general(x, dense, contract, preferred_element_type=accumulator(x.dtype))
    return wide.astype(x.dtype)
