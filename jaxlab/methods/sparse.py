"""Unstructured sparsity: a mask of any pattern over a dense master, and its packed form.

Which weights go is up to the caller: the smallest here, those that the loss misses least in the
phase `prune` (`jaxlab/training/pruning.py`).
"""

import functools
import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlab.core.matrix import Cost, Example, Matrix, check_weights, matrix, static
from jaxlab.core.selection import lowest
from jaxlab.methods.dense import Dense
from jaxlab.methods.nm.positions import pack_bits, unpack_bits

_CITE = """@inproceedings{han2015learning,
  title={Learning both Weights and Connections for Efficient Neural Networks},
  author={Han, Song and Pool, Jeff and Tran, John and Dally, William J.},
  booktitle={NeurIPS}, year={2015}
}"""


def check_sparsity(owner: str, sparsity: float) -> None:
    """Raises a ValueError unless a fraction of the weights may be 0 and some are left."""
    if not 0 <= sparsity < 1:
        nearest = 0.0 if sparsity < 0 else 0.99
        raise ValueError(f"{owner}: sparsity={sparsity} must be in [0, 1); nearest: {nearest}")


@functools.partial(jax.jit, static_argnums=1)
def magnitude_mask(w: jax.Array, sparsity: float) -> jax.Array:
    """Where the largest magnitudes of each matrix are: all but round(size * sparsity).

    Args:
      w: (..., d_in, d_out), floating.
      sparsity: fraction of each matrix that is 0, in [0, 1).

    Returns:
      Booleans of w's shape.

    >>> magnitude_mask(jnp.array([[1.0, -4.0], [3.0, 2.0]]), 0.5).astype(int).tolist()
    [[0, 1], [1, 0]]
    """
    size = math.prod(w.shape[-2:])
    scores = jnp.abs(w).reshape(-1, size)
    dropped = jax.vmap(lambda s: lowest(s, round(size * sparsity)))(scores)
    return ~dropped.reshape(w.shape)


@functools.partial(jax.jit, static_argnums=2)
def pack_sparse(w: jax.Array, mask: jax.Array, kept: int) -> "SparsePacked":
    """Stores the weights under a mask in their order, and a bit for every entry.

    Args:
      w: (..., d_in, d_out).
      mask: booleans of w's shape, at most `kept` of each matrix true.
      kept: entries stored for each matrix; those that a mask does not fill are 0.

    >>> w = jnp.array([[0.0, 5.0], [7.0, 0.0]])
    >>> pack_sparse(w, w != 0, 2)
    SparsePacked(values=float32[2], bitmap=uint8[2, 1], columns=2)
    """
    stack, size = w.shape[:-2], math.prod(w.shape[-2:])
    alive = mask.reshape(-1, size)
    place = jnp.where(alive, jnp.cumsum(alive, axis=-1, dtype=jnp.int32) - 1, kept)
    empty = jnp.zeros(kept, w.dtype)
    put = jax.vmap(lambda p, x: empty.at[p].set(x, mode="drop"))
    values = put(place, w.reshape(-1, size)).reshape(*stack, kept)
    return SparsePacked(values, pack_bits(mask.astype(jnp.uint8), 1, -1), w.shape[-1])


@matrix("sparse")
class Sparse(Matrix):
    """`to_dense() = mask * weight`; the master is trained under the mask, which stays as it is.

    weight: (..., d_in, d_out), 0 where pruned; mask: booleans of its shape; kept: entries that the
    mask keeps of every matrix of a stack, where that is known without looking.
    """

    weight: jax.Array
    mask: jax.Array
    kept: int | None = static(default=None)

    axes = {"weight": ("in", "out"), "mask": ("in", "out")}
    dense_product = True
    EXAMPLE = Example(
        shape=(16, 12),
        hyper={"sparsity": 0.5},
        bad=({"sparsity": -0.1}, {"sparsity": 1.0}, {"sparsity": "half"}),
    )
    CITE = _CITE

    @classmethod
    def from_dense(cls, w: jax.Array, *, sparsity: float, key: jax.Array | None = None) -> "Sparse":
        """Keeps the largest magnitudes of `w`: all but round(size * sparsity).

        Args:
          w: (..., d_in, d_out), floating; every matrix of a stack is pruned by itself.
          sparsity: fraction of the entries that is 0, in [0, 1).
          key: unused.

        Raises:
          ValueError: `sparsity` is out of range.

        >>> Sparse.from_dense(jnp.array([[1.0, -4.0], [3.0, 2.0]]), sparsity=0.75).to_dense()
        Array([[ 0., -4.],
               [ 0.,  0.]], dtype=float32)
        """
        check_weights("sparse", w)
        check_sparsity("sparse", sparsity)
        size = math.prod(w.shape[-2:])
        mask = magnitude_mask(w, sparsity)
        return cls(_under(mask, w), mask, size - round(size * sparsity))

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return self.weight.shape

    def to_dense(self) -> jax.Array:
        """The weights that are kept; the gradient of the others is 0."""
        return _under(self.mask, self.weight)

    def advance(self, progress: jax.Array) -> Self:
        """Pruned weights put back to 0, whatever the optimizer made of them."""
        return type(self)(self.to_dense(), self.mask, self.kept)

    def support(self, progress: jax.Array) -> dict[str, jax.Array]:
        """The entries of the master that live on."""
        return {"weight": self.mask}

    def finalize(self) -> Matrix:
        """The kept values and a bitmap, or the dense array where that is smaller.

        How many are kept must be known: under a trace, a mask of which nobody said it stays as it
        is.
        """
        kept = self.kept
        if kept is None:
            if isinstance(self.mask, Tracer):
                return self
            kept = int(np.max(jnp.sum(self.mask, axis=(-2, -1)), initial=0))
        packed = pack_sparse(self.weight, self.mask, kept)
        dense = Dense(self.to_dense())
        return packed if packed.nbytes < dense.nbytes else dense


@matrix("sparse_packed")
class SparsePacked(Matrix):
    """`to_dense()` puts `values` where the bits of `bitmap` are set, with zeros elsewhere.

    values: (..., kept), row by row; of a stack, as many for each matrix as the fullest keeps, the
    rest 0. bitmap: uint8, (..., d_in, ceil(d_out / 8)), the first column in the lowest bit.
    columns: d_out.
    """

    values: jax.Array
    bitmap: jax.Array
    columns: int = static()

    axes = {"values": (None,), "bitmap": ("in", None)}
    dense_product = True
    EXAMPLE = Sparse.EXAMPLE
    CITE = _CITE

    @classmethod
    def from_dense(
        cls, w: jax.Array, *, sparsity: float, key: jax.Array | None = None
    ) -> "SparsePacked":
        """Prunes the smallest magnitudes, as `sparse` does, and packs the rest.

        Args:
          w: (..., d_in, d_out), floating.
          sparsity: fraction of the entries that is 0, in [0, 1).
          key: unused.

        Raises:
          ValueError: `sparsity` is out of range.

        >>> SparsePacked.from_dense(jnp.ones((16, 8)), sparsity=0.75).nbytes  # of 512 dense
        144
        """
        check_weights("sparse_packed", w)
        check_sparsity("sparse_packed", sparsity)
        size = math.prod(w.shape[-2:])
        return pack_sparse(w, magnitude_mask(w, sparsity), size - round(size * sparsity))

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.bitmap.shape[:-1], self.columns)

    def to_dense(self) -> jax.Array:
        """The dense array: stored values bit for bit."""
        return _unpack(self.values, self.bitmap, self.columns)

    def cost(self, rows: int) -> Cost:
        """FLOPs of the stored values; the product here makes the dense array and spends all."""
        return Cost(flops=2 * rows * self.values.shape[-1], bytes=super().cost(rows).bytes)


@functools.partial(jax.jit, static_argnums=2)
def _unpack(values: jax.Array, bitmap: jax.Array, columns: int) -> jax.Array:
    mask = unpack_bits(bitmap, 1, -1, columns) != 0
    kept = values.shape[-1]
    if not kept:
        return jnp.zeros(mask.shape, values.dtype)
    alive = mask.reshape(*mask.shape[:-2], -1)
    place = jnp.clip(jnp.cumsum(alive, axis=-1, dtype=jnp.int32) - 1, 0, kept - 1)
    return _under(alive, jnp.take_along_axis(values, place, axis=-1)).reshape(mask.shape)


def _under(mask: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.where(mask, w, jnp.zeros((), w.dtype))
