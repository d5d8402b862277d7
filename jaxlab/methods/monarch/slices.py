"""A Monarch matrix as k l independent matrices of low rank, and the way to its factors and back.

Seen as a 4-tensor (s, l, k, p), a matrix (s l, k p) is Monarch if and only if each slice [:, j, kk]
has at most the rank that its entry of `MonarchShape.block_ranks` says: T. Dao et al., "Monarch",
ICML 2022, theorem 1, here for any block sizes. The middle index m = kk q + a belongs to slice
(m mod l, kk) and is the (a div l)-th of it.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.matrix import accumulator
from jaxlab.methods.monarch.shape import MonarchShape, shape_of


def slice_factors(w1: jax.Array, w2: jax.Array, shape: MonarchShape) -> tuple[jax.Array, jax.Array]:
    """Factors of every slice: (..., k, l, e, s) and (..., k, l, e, p), e = ceil(q / l).

    A slice is the sum of the outer products over e; pairs beyond its rank are zeros.
    """
    block, residue, pair = np.indices((shape.k, shape.l, -(-shape.q // shape.l)))
    row = pair * shape.l + (residue - block * shape.q) % shape.l
    exists = row < shape.q
    row = np.minimum(row, shape.q - 1)
    column = (block * shape.q + row) // shape.l
    left = jnp.swapaxes(w2, -1, -2)[..., residue_of(block, row, shape), column, :]
    right = w1[..., block, row, :]
    if exists.all():
        return left, right
    return _where(exists, left), _where(exists, right)


def residue_of(block: np.ndarray, row: np.ndarray, shape: MonarchShape) -> np.ndarray:
    """The block of w2 that row `row` of block `block` of w1 feeds."""
    return (block * shape.q + row) % shape.l


def join_slices(
    left: jax.Array, right: jax.Array, shape: MonarchShape
) -> tuple[jax.Array, jax.Array]:
    """w1: (..., k, q, p) and w2: (..., l, s, r) from factors of slices, as `slice_factors` has."""
    middle = np.arange(shape.mid)
    block, row = middle // shape.q, middle % shape.q
    where = (block, middle % shape.l, row // shape.l)
    w1 = right[..., *(index.reshape(shape.k, shape.q) for index in where), :]
    w2 = left[..., *(index.reshape(shape.r, shape.l).T for index in where), :]
    return w1, jnp.swapaxes(w2, -1, -2)


def monarch_to_dense(
    params: Mapping[str, jax.Array],
    shape: MonarchShape | None = None,
    *,
    blocked: bool = False,
) -> jax.Array:
    """The dense matrix of two factors, accumulated in float32 or better and rounded once.

    Args:
      params: {"w1": (..., k, q, p), "w2": (..., l, s, r)}; leading axes are a stack.
      shape: None if nothing is padded.
      blocked: the order of the outputs, as for `monarch_apply`.

    Returns:
      (..., n_out, n_in), in the factors' dtype.

    >>> ones = {"w1": jnp.ones((2, 2, 3)), "w2": jnp.ones((2, 4, 2))}
    >>> monarch_to_dense(ones).shape, float(monarch_to_dense(ones).max())
    ((8, 6), 1.0)
    """
    w1, w2 = params["w1"], params["w2"]
    if shape is None:
        shape = shape_of({"w1": w1[(0,) * (w1.ndim - 3)], "w2": w2[(0,) * (w2.ndim - 3)]})
    return _to_dense(w1, w2, shape=shape, blocked=blocked)


@functools.partial(jax.jit, static_argnames=("shape", "blocked"))
def _to_dense(w1: jax.Array, w2: jax.Array, *, shape: MonarchShape, blocked: bool) -> jax.Array:
    left, right = slice_factors(w1, w2, shape)
    wide = None if jnp.iscomplexobj(w1) else accumulator(w1.dtype)
    order = "js" if blocked else "sj"
    dense = jnp.einsum(
        f"...kjes,...kjep->...{order}kp",
        left,
        right,
        precision="highest",
        preferred_element_type=wide,
    )
    dense = dense.reshape(*dense.shape[:-4], shape.s * shape.l, shape.k * shape.p)
    return dense[..., : shape.n_out, : shape.n_in].astype(w1.dtype)


def _where(exists: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.where(jnp.broadcast_to(exists[..., None], x.shape), x, jnp.zeros((), x.dtype))
