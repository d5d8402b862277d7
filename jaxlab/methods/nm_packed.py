"""N:M sparse matrices in their stored form: kept values, and bit-packed positions.

A weight of 16 bits at 2:4 takes 1.125 bytes instead of 2; at 1:16, 0.156.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.matrix import Cost, Example, Matrix, check_dense, matrix, static
from jaxlab.methods.nm_mask import NMPattern, check_scores, group, nm_mask, ungroup


def nm_pack(w: jax.Array, mask: jax.Array, pattern: NMPattern) -> "NMPacked":
    """Stores the kept weights of every group, and their positions bit-packed into bytes.

    Args:
      w: (..., d_in, d_out).
      mask: booleans of w's shape, n true in every group.
      pattern: the groups.

    Raises:
      ValueError: a group of `mask` has not exactly n (checked outside jit).
    """
    pattern.check(w.shape)
    kept = group(mask, pattern)
    member = pattern.axis
    if not isinstance(mask, Tracer):
        counts = jnp.sum(kept, axis=member)
        if not bool(jnp.all(counts == pattern.n)):
            raise ValueError(
                f"nm_pack: groups of the mask hold {int(counts.min())} to {int(counts.max())} "
                f"entries and not n={pattern.n}; make it with nm_mask"
            )
    return _pack(w, mask, pattern)


@functools.partial(jax.jit, static_argnums=2)
def _pack(w: jax.Array, mask: jax.Array, pattern: NMPattern) -> "NMPacked":
    kept, member = group(mask, pattern), pattern.axis
    order = jnp.argsort(~kept, axis=member, stable=True)
    position = jax.lax.slice_in_dim(order, 0, pattern.n, axis=order.ndim + member)
    values = jnp.take_along_axis(group(w, pattern), position, axis=member)
    position = ungroup(position.astype(jnp.uint8), pattern)
    index = _pack_bits(position, pattern.index_bits, pattern.axis)
    return NMPacked(ungroup(values, pattern), index, pattern.n, pattern.m, pattern.axis)


@jax.jit
def nm_unpack(packed: "NMPacked") -> jax.Array:
    """The dense array of a packed matrix: the kept values bit for bit, zeros elsewhere."""
    pattern = packed.pattern
    stored = NMPattern(pattern.n, pattern.n, pattern.axis)
    position = _unpack_bits(
        packed.index, pattern.index_bits, pattern.axis, packed.values.shape[pattern.axis]
    )
    values, position = group(packed.values, stored), group(position, stored)
    member = pattern.axis
    shape = list(values.shape)
    shape[member] = pattern.m
    here = jax.lax.broadcasted_iota(jnp.uint8, shape, len(shape) + member)
    dense = jnp.zeros(shape, values.dtype)
    # One select for each kept value: XLA fuses them, and a select keeps the bits of -0 and NaN.
    for k in range(pattern.n):
        at_k = functools.partial(jax.lax.slice_in_dim, start_index=k, limit_index=k + 1)
        value = at_k(values, axis=values.ndim + member)
        where = at_k(position, axis=values.ndim + member)
        dense = jnp.where(here == where, value, dense)
    return ungroup(dense, pattern)


def nm_matmul(x: jax.Array, packed: "NMPacked") -> jax.Array:
    """`x @ W` of a packed W through the dense array, which lives for the product only.

    Args:
      x: (..., d_in), floating.
      packed: (d_in, d_out).

    Returns:
      (..., d_out), in x's dtype.
    """
    return x @ nm_unpack(packed).astype(x.dtype)


@matrix("nm_packed")
class NMPacked(Matrix):
    """`to_dense()` puts `values` at the positions of `index`, with zeros elsewhere.

    Along the axis, of length L in the dense matrix, K = L n / m entries are stored:
    values: K long, in the order of their positions; index: uint8, ceil(K b / 8) long, positions in
    the group in b = 1, 2, 4 or 8 bits, the first in the lowest bits.
    """

    values: jax.Array
    index: jax.Array
    n: int = static()
    m: int = static()
    axis: int = static()

    axes = {"values": ("in", "out"), "index": ("in", "out")}
    dense_product = True
    EXAMPLE = Example(
        shape=(16, 12), hyper={"n": 2, "m": 4}, bad=({"n": 0, "m": 4}, {"n": 1, "m": 3})
    )
    CITE = """@misc{mishra2021accelerating,
  title={Accelerating Sparse Deep Neural Networks},
  author={Mishra, Asit and Latorre, Jorge Albericio and Pool, Jeff and Stosic, Darko and Stosic,
    Dusan and Venkatesh, Ganesh and Yu, Chong and Micikevicius, Paulius},
  year={2021}, eprint={2104.08378}, archivePrefix={arXiv}
}"""

    @classmethod
    def from_dense(
        cls, w: jax.Array, *, n: int, m: int, axis: int = -2, key: jax.Array | None = None
    ) -> "NMPacked":
        """One-shot magnitude pruning: keeps the n largest of every m and packs them.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept entries of every group.
          m: group size; must divide the axis.
          axis: -2 groups along the input, -1 along the output.
          key: unused.

        Raises:
          ValueError: an argument is out of range.

        >>> NMPacked.from_dense(jnp.ones((16, 4)), n=2, m=4).nbytes  # of 256 dense
        136
        """
        check_dense("nm_packed", w)
        pattern = NMPattern(n, m, axis)
        check_scores(w)
        return nm_pack(w, nm_mask(jnp.abs(w), pattern), pattern)

    @property
    def pattern(self) -> NMPattern:
        """The groups."""
        return NMPattern(self.n, self.m, self.axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        shape = list(self.values.shape)
        shape[self.axis] = shape[self.axis] // self.n * self.m
        return tuple(shape)

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole groups and whole bytes of positions."""
        bits = self.n * self.pattern.index_bits
        return self.pattern.tile(self.m * (math.lcm(bits, 8) // bits))

    def to_dense(self) -> jax.Array:
        """The dense array: kept values bit for bit."""
        return nm_unpack(self)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`."""
        return nm_matmul(x, self)

    def cost(self, rows: int) -> Cost:
        """FLOPs of the stored values; the reference product spends m / n times as many."""
        dense = super().cost(rows)
        return Cost(flops=dense.flops * self.n // self.m, bytes=dense.bytes)


def _pack_bits(x: jax.Array, bits: int, axis: int) -> jax.Array:
    """Packs uint8 numbers of `bits` bits along an axis, 8 / bits to the byte, first ones lowest."""
    per_byte = 8 // bits
    axis += x.ndim
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % per_byte)
    x = jnp.pad(x, pad)
    x = x.reshape((*x.shape[:axis], -1, per_byte, *x.shape[axis + 1 :]))
    shift = jax.lax.broadcasted_iota(jnp.uint8, x.shape, axis + 1) * jnp.uint8(bits)
    return jnp.sum(x << shift, axis=axis + 1, dtype=jnp.uint8)


def _unpack_bits(packed: jax.Array, bits: int, axis: int, length: int) -> jax.Array:
    """Undoes `_pack_bits`, back to `length` numbers along the axis."""
    per_byte = 8 // bits
    axis += packed.ndim
    x = jnp.repeat(jnp.expand_dims(packed, axis + 1), per_byte, axis=axis + 1)
    shift = jax.lax.broadcasted_iota(jnp.uint8, x.shape, axis + 1) * jnp.uint8(bits)
    x = (x >> shift) & jnp.uint8(2**bits - 1)
    x = x.reshape((*x.shape[:axis], -1, *x.shape[axis + 2 :]))
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)
