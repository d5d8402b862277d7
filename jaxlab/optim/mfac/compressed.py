"""Rows of a window that keep only their largest entries, with feedback of what they leave out.

Source: I.-V. Modoranu, A. Kalinov, E. Kurtic, E. Frantar, D. Alistarh, "Error Feedback Can
Accurately Compress Preconditioners" (EFCP), ICML 2024. What a row leaves out is added to the next
gradient. At 1 % of the entries, in float32, a row takes 1/50 of the memory: indices and values.

Differs from the paper: the largest entries are those of each block of a leaf and not of all
parameters, which sorts less and keeps leaves apart.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator
from jaxlab.optim.mfac.checks import check_count


class TopK(NamedTuple):
    """The largest entries of each block of consecutive entries of a leaf.

    Attributes:
      density: share of the entries that is kept, above 0 and at most 1; rounded up in each block.
      block: entries in a block; a leaf that is smaller is one block.

    >>> TopK(0.01, 4096).kept(100)
    (1, 100, 1)
    """

    density: float = 0.01
    block: int = 4096

    def check(self) -> None:
        """Raises a ValueError for values that make no rows."""
        if not 0 < self.density <= 1:
            raise ValueError(f"mfac: density={self.density!r} must be in (0, 1]; the paper's: 0.01")
        check_count("block", self.block)

    def kept(self, size: int) -> tuple[int, int, int]:
        """Blocks of a leaf, entries in one, and how many of those are kept."""
        block = min(self.block, max(size, 1))
        # 1e-9 off, so that 0.3 of 10 entries are 3 in spite of rounding.
        return -(-size // block), block, max(1, math.ceil(self.density * block - 1e-9))


@jax.tree_util.register_pytree_with_keys_class
class SparseRows:
    """m rows of one leaf, each as values and where they are.

    Attributes:
      index: (m, k) int32, places in the flattened leaf; those past its end stand for nothing.
      value: (m, k), in the dtype of the window.
      leaf_shape: shape of the leaf.
    """

    def __init__(self, index: Any, value: Any, leaf_shape: tuple[int, ...]):
        self.index, self.value, self.leaf_shape = index, value, leaf_shape

    @classmethod
    def zeros(cls, m: int, shape: tuple[int, ...], topk: TopK, dtype: Any) -> "SparseRows":
        """Rows of nothing."""
        blocks, _, k = topk.kept(math.prod(shape))
        index = jnp.full((m, blocks * k), math.prod(shape), jnp.int32)
        return cls(index, jnp.zeros((m, blocks * k), dtype), shape)

    @property
    def dtype(self) -> Any:
        """Of the values."""
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """What the rows' would be if they were dense."""
        return (self.value.shape[0], *self.leaf_shape)

    def written(self, row: "SparseRows", at: jax.Array, keep: Any = True) -> "SparseRows":
        """The rows with one replaced by `row`, which is a single one, if `keep`."""
        index = with_row(self.index, row.index[0], at, keep)
        return SparseRows(index, with_row(self.value, row.value[0], at, keep), self.leaf_shape)

    def where(self, alive: jax.Array) -> "SparseRows":
        """The rows with zeros for the entries of the leaf that do not live."""
        lives = alive.reshape(-1).at[self.index].get(mode="fill", fill_value=False)
        value = jnp.where(lives, self.value, jnp.zeros_like(self.value))
        return SparseRows(self.index, value, self.leaf_shape)

    def dense(self, i: jax.Array) -> jax.Array:
        """Row i as a dense leaf."""
        return dense_of(SparseRows(self.index[i][None], self.value[i][None], self.leaf_shape))

    def products(self, x: jax.Array) -> jax.Array:
        """(m,) inner products with a dense leaf: every row gathers its entries of it."""
        dtype = accumulator(self.dtype)
        picked = x.reshape(-1).at[self.index].get(mode="fill", fill_value=0)
        return jnp.sum(self.value.astype(dtype) * picked.astype(dtype), axis=1)

    def combination(self, weights: jax.Array) -> jax.Array:
        """The sum of the rows, each times its weight, as a dense leaf."""
        dtype = accumulator(self.dtype)
        scaled = self.value.astype(dtype) * weights.astype(dtype)[:, None]
        total = jnp.zeros(math.prod(self.leaf_shape), dtype)
        return total.at[self.index].add(scaled, mode="drop").reshape(self.leaf_shape)

    def tree_flatten_with_keys(self) -> Any:
        """For JAX."""
        key = jax.tree_util.GetAttrKey
        return [(key("index"), self.index), (key("value"), self.value)], self.leaf_shape

    @classmethod
    def tree_unflatten(cls, leaf_shape: Any, children: Any) -> "SparseRows":
        """For JAX."""
        index, value = children
        return cls(index, value, leaf_shape)


def with_row(rows: jax.Array, row: jax.Array, at: jax.Array, keep: Any) -> jax.Array:
    """Rows, (m, ...), with one replaced if `keep`, in place where they are donated.

    >>> with_row(jnp.zeros(2), jnp.ones(()), jnp.array(1), True).tolist()
    [0.0, 1.0]
    """
    old = jax.lax.dynamic_slice_in_dim(rows, at, 1)
    new = jnp.where(keep, row[None].astype(rows.dtype), old)
    return jax.lax.dynamic_update_slice_in_dim(rows, new, at, 0)


def compress(x: jax.Array, topk: TopK, dtype: Any) -> SparseRows:
    """One row with the entries of a leaf that are largest in magnitude, block by block.

    Args:
      x: the leaf.
      topk: how many are kept.
      dtype: that values are rounded to.

    >>> row = compress(jnp.array([1.0, -3.0, 2.0, 0.5]), TopK(0.5, 2), jnp.float32)
    >>> row.index.tolist(), row.value.tolist()
    ([[1, 2]], [[-3.0, 2.0]])
    """
    blocks, block, k = topk.kept(x.size)
    padded = jnp.pad(x.reshape(-1), (0, blocks * block - x.size)).reshape(blocks, block)
    _, place = jax.lax.top_k(jnp.abs(padded), k)
    value = jnp.take_along_axis(padded, place, axis=1)
    # A short last block may have chosen its padding, whose places are past the end.
    index = place.astype(jnp.int32) + block * jnp.arange(blocks, dtype=jnp.int32)[:, None]
    return SparseRows(index.reshape(1, -1), value.reshape(1, -1).astype(dtype), x.shape)


def dense_of(row: SparseRows) -> jax.Array:
    """A single row as a dense leaf."""
    return row.combination(jnp.ones(1, accumulator(row.dtype)))
