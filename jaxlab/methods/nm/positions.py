"""How packed N:M matrices store which entries are kept, and what is done with that.

Kept values stand in the order of their positions; those of a block stand together. Positions take
b = 1, 2, 4 or 8 bits for each kept block, or one bit for each block, kept or not:
`NMPattern.stores_bitmask` says which is smaller. Either way they are bytes along the pattern's
axis, the first in the lowest bits, under the same leading axes as the values.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxlab.methods.nm.mask import NMPattern

# Beyond this many kept blocks of a group, one select for each costs more than a gather or scatter;
# most of all in the backward pass, where each select becomes a sum.
MOST_SELECTS = 4


def pack_bits(x: jax.Array, bits: int, axis: int) -> jax.Array:
    """Packs small numbers along an axis, 8 / bits to the byte, the first in the lowest bits.

    Args:
      x: uint8, each below 2 ** bits.
      bits: 1, 2, 4 or 8.
      axis: counted from the end.

    Returns:
      uint8, ceil(length * bits / 8) long along the axis; what is left of the last byte is 0.

    >>> pack_bits(jnp.array([1, 2, 3, 0, 1], jnp.uint8), 2, -1).tolist()
    [57, 1]
    """
    per_byte = 8 // bits
    axis += x.ndim
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % per_byte)
    x = jnp.pad(x, pad)
    x = x.reshape((*x.shape[:axis], x.shape[axis] // per_byte, per_byte, *x.shape[axis + 1 :]))
    shift = jax.lax.broadcasted_iota(jnp.uint8, x.shape, axis + 1) * jnp.uint8(bits)
    return jnp.sum(x << shift, axis=axis + 1, dtype=jnp.uint8)


def unpack_bits(packed: jax.Array, bits: int, axis: int, length: int) -> jax.Array:
    """Undoes `pack_bits`, back to `length` numbers along the axis.

    >>> unpack_bits(jnp.array([57, 1], jnp.uint8), 2, -1, 5).tolist()
    [1, 2, 3, 0, 1]
    """
    per_byte = 8 // bits
    axis += packed.ndim
    x = jnp.repeat(jnp.expand_dims(packed, axis + 1), per_byte, axis=axis + 1)
    shift = jax.lax.broadcasted_iota(jnp.uint8, x.shape, axis + 1) * jnp.uint8(bits)
    x = (x >> shift) & jnp.uint8(2**bits - 1)
    x = x.reshape((*x.shape[:axis], packed.shape[axis] * per_byte, *x.shape[axis + 2 :]))
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def kept_blocks(mask: jax.Array, pattern: NMPattern) -> jax.Array:
    """How much of every block of an elementwise mask is kept: counts (..., groups, m, ...)."""
    return jnp.sum(_split(mask, pattern.axis, pattern.m, pattern.block), axis=pattern.axis)


@functools.partial(jax.jit, static_argnums=2)
def keep(w: jax.Array, mask: jax.Array, pattern: NMPattern) -> tuple[jax.Array, jax.Array]:
    """The kept entries of every group, and their positions as they are stored.

    Args:
      w: (..., d_in, d_out), of any dtype.
      mask: booleans of w's shape, n whole blocks true in every group.
      pattern: the groups.

    Returns:
      The values, n / m of w's length along the axis, and the positions, uint8.

    >>> w = jnp.array([[4.0, -3.0, 2.0, 1.0]])
    >>> values, index = keep(w, w > 1, NMPattern(2, 4, axis=-1))
    >>> values.tolist(), bin(index[0, 0])
    ([[4.0, 2.0]], '0b1000')
    """
    axis, member = pattern.axis, pattern.axis - 1
    kept = _split(mask, axis, pattern.m, pattern.block)
    kept = jax.lax.slice_in_dim(kept, 0, 1, axis=kept.ndim + axis)
    place = jax.lax.broadcasted_iota(jnp.uint8, kept.shape, kept.ndim + member)
    # Pruned blocks go to the end under a number that a kept one can only share with itself.
    order = jnp.sort(jnp.where(kept, place, jnp.uint8(pattern.m - 1)), axis=member)
    order = jax.lax.slice_in_dim(order, 0, pattern.n, axis=order.ndim + member)
    blocks = _split(w, axis, pattern.m, pattern.block)
    values = jnp.take_along_axis(blocks, order, axis=member, mode="clip")
    if pattern.stores_bitmask:
        stored = pack_bits(_join(kept.astype(jnp.uint8), axis), 1, axis)
    else:
        stored = pack_bits(_join(order, axis), pattern.index_bits, axis)
    return _join(values, axis), stored


@functools.partial(jax.jit, static_argnums=2)
def spread(values: jax.Array, index: jax.Array, pattern: NMPattern) -> jax.Array:
    """Undoes `keep`: the dense array, kept entries bit for bit and zeros elsewhere.

    It costs n selects for each dense entry; where a group keeps more than 4 blocks, a scatter, or
    with a bitmask a cumulative count and a gather. Differentiable in `values`: the transpose picks
    what stands at their positions.

    Args:
      values: as `keep` gives them.
      index: as `keep` gives it.
      pattern: the groups.

    Returns:
      (..., d_in, d_out), in the dtype of `values`.

    >>> index = jnp.array([[0b1000]], jnp.uint8)
    >>> spread(jnp.array([[4.0, 2.0]]), index, NMPattern(2, 4, axis=-1)).tolist()
    [[4.0, 0.0, 2.0, 0.0]]
    """
    axis, member = pattern.axis, pattern.axis - 1
    values = _split(values, axis, pattern.n, pattern.block)
    shape = [*values.shape]
    groups, shape[member], shape[axis] = shape[member - 1], pattern.m, 1
    if pattern.stores_bitmask:
        kept = unpack_bits(index, 1, axis, groups * pattern.m)
        kept = _split(kept, axis, pattern.m, 1)
        # Of 256 kept the last is the 256th, which a byte holds as 0: minus 1 that is 255 again.
        rank = jax.lax.cumsum(kept, axis=kept.ndim + member) - jnp.uint8(1)
        if pattern.n > MOST_SELECTS:
            return _join(_gather(values, rank, kept == 1, member), axis)
        rank = jnp.where(kept == 1, rank, jnp.uint8(255))
        chosen = [rank == jnp.uint8(k) for k in range(pattern.n)]
    else:
        position = unpack_bits(index, pattern.index_bits, axis, groups * pattern.n)
        position = _split(position, axis, pattern.n, 1)
        if pattern.n > MOST_SELECTS:
            return _join(_scatter(values, position, pattern, member), axis)
        here = jax.lax.broadcasted_iota(jnp.uint8, shape, len(shape) + member)
        chosen = [here == _at(position, k, member) for k in range(pattern.n)]
    shape[axis] = pattern.block
    dense = jnp.zeros(shape, values.dtype)
    # XLA fuses the selects, and a select keeps the bits of -0 and NaN.
    for k, where in enumerate(chosen):
        dense = jnp.where(where, _at(values, k, member), dense)
    return _join(dense, axis)


def _gather(values: jax.Array, rank: jax.Array, kept: jax.Array, member: int) -> jax.Array:
    last = values.shape[member] - 1
    rank = jnp.minimum(rank.astype(jnp.int32), last)
    taken = jnp.take_along_axis(values, rank, axis=member, mode="promise_in_bounds")
    return jnp.where(kept, taken, jnp.zeros((), values.dtype))


def _scatter(values: jax.Array, position: jax.Array, pattern: NMPattern, member: int) -> jax.Array:
    member += values.ndim
    places = [jnp.arange(length, dtype=jnp.int32) for length in values.shape]
    where = list(jnp.meshgrid(*places, indexing="ij", sparse=True))
    where[member] = position.astype(jnp.int32)
    shape = [*values.shape]
    shape[member] = pattern.m
    zeros = jnp.zeros(shape, values.dtype)
    return zeros.at[tuple(where)].set(values, mode="promise_in_bounds", unique_indices=True)


def _at(x: jax.Array, k: int, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, k, k + 1, axis=x.ndim + axis)


def _split(x: jax.Array, axis: int, count: int, block: int) -> jax.Array:
    """The axis as (groups, count, block): blocks of a group at `axis - 1`, entries at `axis`."""
    at = x.ndim + axis
    groups = x.shape[at] // (count * block)
    return x.reshape((*x.shape[:at], groups, count, block, *x.shape[at + 1 :]))


def _join(x: jax.Array, axis: int) -> jax.Array:
    at = x.ndim + axis
    return x.reshape((*x.shape[: at - 2], math.prod(x.shape[at - 2 : at + 1]), *x.shape[at + 1 :]))
