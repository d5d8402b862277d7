"""N:M sparse weights as planes: the j-th kept block of every group is in plane j.

A kernel rebuilds what stands at place i of every group from n selects, without scatter:
`where(place[0] == i, values[0], where(place[1] == i, values[1], 0))`, and multiplies it with
`x[:, i::m]` (in blocks, with the i-th block of every group of x). The places of a group are one
small number, its code: place j in the j-th bits from below.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, Planar, pack, unpack

# Words of a block of codes.
WIDTH = 32
_KINDS = ("uint1", "uint2", "uint4", "uint8", "uint16")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NMPlanes:
    """An (n_out, k) matrix of which n of every m consecutive blocks of k are kept.

    Attributes:
      values: (n, n_out, k / m), of any dtype; blocks of a group in the order of their places.
      code: places in their groups, planar, (n_out, k / (m block)) before packing.
      m: blocks of a group.
      block: entries of a block.
      version: of the layout.
    """

    values: jax.Array
    code: Planar
    m: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(default=1, metadata={"static": True})
    version: int = dataclasses.field(default=LAYOUT_VERSION, metadata={"static": True})

    @property
    def n(self) -> int:
        """Kept blocks of a group."""
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, k)."""
        return self.values.shape[1], self.values.shape[2] * self.m


def place_bits(m: int) -> int:
    """Bits of a place among m.

    >>> [place_bits(m) for m in (2, 3, 4, 16)]
    [1, 2, 2, 4]
    """
    return max(1, (m - 1).bit_length())


def pack_nm(w: jax.Array, mask: jax.Array, n: int, m: int, *, block: int = 1) -> NMPlanes:
    """Packs what a mask keeps; `unpack_nm` gives it back bit for bit, with zeros elsewhere.

    Args:
      w: (n_out, k), of any dtype.
      mask: booleans of w's shape, with at most n blocks of every group true, and each of them
        whole; what is false of a block under jit counts as its first entry does.
      n: kept blocks of a group.
      m: blocks of a group; `m * block` must divide k, and the places of a group take at most 16
        bits.
      block: entries of a block.

    Raises:
      ValueError: an argument is out of range, or (outside jit) the mask is not of that pattern.

    >>> w = jnp.array([[4, 0, 2, 0], [0, 3, 0, 1]])
    >>> packed = pack_nm(w, w > 0, 2, 4)
    >>> packed.values.tolist(), unpack_nm(packed).tolist() == w.tolist()
    ([[[4], [3]], [[2], [1]]], True)
    """
    if not 1 <= n <= m:
        raise ValueError(f"pack_nm: n={n}, m={m} must satisfy 1 <= n <= m")
    bits = place_bits(m)
    kind = next((k for k in _KINDS if n * bits <= FORMATS[k].bits), None)
    if kind is None:
        raise ValueError(
            f"pack_nm: n={n} places of m={m} take {n * bits} bits, more than 16; nearest: "
            f"n={16 // bits}"
        )
    if w.ndim != 2 or block < 1 or w.shape[1] % (m * block):
        raise ValueError(f"pack_nm: m * block = {m * block} must divide the last axis of {w.shape}")
    if mask.shape != w.shape:
        raise ValueError(f"pack_nm: the mask of shape {mask.shape} is not w's, {w.shape}")
    groups = w.shape[1] // (m * block)
    split = (w.shape[0], groups, m, block)
    mask = mask.reshape(split).astype(bool)
    kept = mask[..., :1]
    if not isinstance(mask, Tracer):
        _check_mask(mask, kept, n)
    place = jax.lax.broadcasted_iota(jnp.int32, kept.shape, 2)
    # Pruned blocks go last, under a number that a kept one can share only with itself.
    order = jnp.sort(jnp.where(kept, place, jnp.full_like(place, m - 1)), axis=2)[:, :, :n]
    # Where fewer are kept, places are left over, and hold nothing.
    live = jnp.where(kept, w.reshape(split), jnp.zeros((), w.dtype))
    values = jnp.take_along_axis(live, order, axis=2)
    values = jnp.moveaxis(values, 2, 0).reshape(n, w.shape[0], groups * block)
    by_place = jax.lax.broadcasted_iota(jnp.int32, (1, 1, n), 2) * jnp.int32(bits)
    code = jnp.sum(order[..., 0] << by_place, axis=2)
    return NMPlanes(values, pack(code, kind, width=WIDTH), m, block)


def _check_mask(mask: jax.Array, kept: jax.Array, n: int) -> None:
    if bool(jnp.any(mask != kept)):
        raise ValueError(f"pack_nm: the mask keeps a part of a block of {mask.shape[-1]}")
    most = int(jnp.max(jnp.sum(kept, axis=2), initial=0))
    if most > n:
        raise ValueError(f"pack_nm: the mask keeps {most} of a group; nearest: n={most}, not {n}")


def places(packed: NMPlanes) -> list[jax.Array]:
    """By plane, the places in their groups: int32, (n_out, groups)."""
    bits, code = place_bits(packed.m), unpack(packed.code).astype(jnp.int32)
    mask = jnp.int32(2**bits - 1)
    return [(code >> jnp.int32(j * bits)) & mask for j in range(packed.n)]


def unpack_nm(packed: NMPlanes) -> jax.Array:
    """The dense (n_out, k) array of a packed one."""
    n, rows, length = packed.values.shape
    groups = length // packed.block
    values = packed.values.reshape(n, rows, groups, 1, packed.block)
    at = jax.lax.broadcasted_iota(jnp.int32, (1, 1, packed.m, 1), 2)
    dense = jnp.zeros((rows, groups, packed.m, packed.block), values.dtype)
    for value, place in zip(values, places(packed), strict=True):
        dense = jnp.where(place[:, :, None, None] == at, value, dense)
    return dense.reshape(rows, groups * packed.m * packed.block)
