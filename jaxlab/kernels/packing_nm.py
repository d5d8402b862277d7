"""N:M sparse weights: kept values and the places of each group, ordered for Hopper's tensor cores.

A tensor-core product deals the columns of its left operand among four lanes, two neighbours at a
time: of every 8 columns lane t holds 2 t and 2 t + 1. The order of k is free, as long as the other
operand has the same. So of every unit of 4 span consecutive k, lane t takes span consecutive ones,
whole groups: it holds their kept values, one after another, their codes, and what becomes of them.
No value ever changes lanes. `lanes` is that order, of values, words of codes, and x.

The code of a group is its kept places, one after another, the first in the lowest bits. For 2:4 it
is a bit for each place, set where it is pruned: byte permutations want it so.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlab.kernels.layout_nm import LANES, PLANAR_WIDTH, Layout, layout_of, place_bits
from jaxlab.kernels.packing import WORD, Planar, check_kind, pack, unpack

# Stored beside packed arrays, and raised when the order changes.
NM_LAYOUT_VERSION = 2

# By place, the bit of a 2:4 code.
_PRUNED_BIT = (0, 2, 3, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedNM:
    """An (..., n_out, k) matrix of which n of every m consecutive blocks of k are kept.

    Attributes:
      values: (..., n_out, k n / m), of any dtype, or planar integers; in the order of `lanes`.
      code: uint16, (..., n_out, words): places of the groups.
      n: kept blocks of a group.
      m: blocks of a group.
      block: entries of a block.
      version: of the layout.
    """

    values: jax.Array | Planar
    code: jax.Array
    n: int = dataclasses.field(metadata={"static": True})
    m: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(default=1, metadata={"static": True})
    version: int = dataclasses.field(default=NM_LAYOUT_VERSION, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., n_out, k)."""
        return (*self.values.shape[:-1], self.values.shape[-1] // self.n * self.m)

    @property
    def nbytes(self) -> int:
        """Bytes of values and codes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    @property
    def layout(self) -> Layout:
        """How it is stored."""
        return layout_of(self.n, self.m, self.block, self.shape[-1])

    def check(self, op: str) -> None:
        """Raises a ValueError where the arrays are not those of this layout."""
        if self.version != NM_LAYOUT_VERSION:
            raise ValueError(
                f"{op}: packed.version={self.version} is another layout; this one is "
                f"{NM_LAYOUT_VERSION}, as `pack_nm` makes it"
            )
        if isinstance(self.values, Planar):
            self.values.check(op)
        *lead, k = self.shape
        per_word = WORD // self.layout.bits
        words = -(-(k // (self.m * self.block)) // per_word)
        if self.code.shape != (*lead, words) or self.code.dtype != jnp.uint16:
            raise ValueError(
                f"{op}: packed.code must be uint16{(*lead, words)}, as `pack_nm` makes it, not "
                f"{self.code.dtype}{self.code.shape}"
            )


def pack_nm(
    w: jax.Array, mask: jax.Array, n: int, m: int, *, block: int = 1, kind: str | None = None
) -> PackedNM:
    """Packs what a mask keeps; `unpack_nm` gives it back bit for bit, with zeros elsewhere.

    Args:
      w: (..., n_out, k), of any dtype; integers where `kind` is given.
      mask: booleans of w's shape, with at most n blocks of every group true, and each of them
        whole; what is false of a block under jit counts as its first entry does.
      n: kept blocks of a group.
      m: blocks of a group; `m * block` must divide k, and the places of a group take at most 16
        bits.
      block: entries of a block.
      kind: of `packing.FORMATS`: the values become `Planar` integers.

    Raises:
      ValueError: an argument is out of range, or (outside jit) the mask is not of that pattern.

    >>> w = jnp.array([[4, 0, 2, 0], [0, 3, 0, 1]])
    >>> packed = pack_nm(w, w > 0, 2, 4)
    >>> packed.values.tolist(), unpack_nm(packed).tolist() == w.tolist()
    ([[4, 2], [3, 1]], True)
    """
    for name, value in (("n", n), ("m", m), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            near = max(1, round(value)) if isinstance(value, (int, float)) else 1
            raise ValueError(f"pack_nm: {name}={value!r} must be an int; nearest: {near}")
    n, m, block = int(n), int(m), int(block)
    if kind is not None:
        check_kind("pack_nm", kind)
    if n > m:
        raise ValueError(f"pack_nm: n={n} of m={m}; nearest: n={m}")
    bits = place_bits(m)
    if n * bits > WORD:
        raise ValueError(
            f"pack_nm: n={n} places of m={m} take {n * bits} bits, more than {WORD}; nearest: "
            f"n={WORD // bits}"
        )
    if w.ndim < 2 or w.shape[-1] % (m * block):
        fits = (d for d in range(1, 2 * m) if w.ndim and w.shape[-1] % (d * block) == 0)
        nearest = min(fits, key=lambda d: abs(d - m), default=None)
        raise ValueError(
            f"pack_nm: m * block = {m} * {block} must divide the last of two axes or more of w, "
            f"of shape {w.shape}" + (f"; nearest: m={nearest}" if nearest and w.ndim > 1 else "")
        )
    if mask.shape != w.shape:
        raise ValueError(f"pack_nm: the mask of shape {mask.shape} is not w's, {w.shape}")
    *lead, k = w.shape
    split = (*lead, k // (m * block), m, block)
    mask = mask.reshape(split).astype(bool)
    kept = mask[..., 0]
    if not isinstance(mask, Tracer):
        _check_mask(mask, kept, n)
    # Where fewer are kept, the first of the pruned ones are stored too, as zeros.
    place = jnp.sort(jnp.argsort(~kept, axis=-1, stable=True)[..., :n], axis=-1)
    live = jnp.where(kept[..., None], w.reshape(split), jnp.zeros((), w.dtype))
    values = jnp.take_along_axis(live, place[..., None], axis=-2)
    layout = layout_of(n, m, block, k)
    values = lanes(values.reshape((*lead, k // m * n)), layout.span // m * n)
    stored = values if kind is None else pack(values, kind, width=PLANAR_WIDTH)
    return PackedNM(stored, _words(_encode(place, layout), layout), n, m, block)


def _check_mask(mask: jax.Array, kept: jax.Array, n: int) -> None:
    if bool(jnp.any(mask != kept[..., None])):
        raise ValueError(f"pack_nm: the mask keeps a part of a block of {mask.shape[-1]}")
    most = int(jnp.max(jnp.sum(kept, axis=-1), initial=0))
    if most > n:
        raise ValueError(f"pack_nm: the mask keeps {most} of a group; nearest: n={most}, not {n}")


def lanes(x: jax.Array, span: int) -> jax.Array:
    """Deals `span` consecutive entries of the last axis to each lane, in pairs; 0 leaves them.

    >>> lanes(jnp.arange(16), 4).tolist()
    [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15]
    """
    if span == 0:
        return x
    dealt = x.reshape((*x.shape[:-1], x.shape[-1] // (LANES * span), LANES, span // 2, 2))
    return jnp.swapaxes(dealt, -2, -3).reshape(x.shape)


def from_lanes(x: jax.Array, span: int) -> jax.Array:
    """Undoes `lanes`."""
    if span == 0:
        return x
    dealt = x.reshape((*x.shape[:-1], x.shape[-1] // (LANES * span), span // 2, LANES, 2))
    return jnp.swapaxes(dealt, -2, -3).reshape(x.shape)


def dense_lanes(x: jax.Array, layout: Layout) -> jax.Array:
    """The columns of x, or of dense weights, as the rebuilt weights have them."""
    if layout.parts == 2:
        # The second pair of a 2:4 group is rebuilt the other way round, as its codes want it.
        pairs = x.reshape((*x.shape[:-1], x.shape[-1] // 4, 2, 2))
        x = jnp.stack([pairs[..., 0, :], pairs[..., 1, ::-1]], axis=-2).reshape(x.shape)
    return lanes(x, layout.span)


def _like(numbers: Any, x: jax.Array) -> jax.Array:
    """Integers as the last axes of an array with as many axes as x."""
    numbers = np.asarray(numbers, np.int32)
    return jnp.asarray(numbers.reshape((1,) * (x.ndim - numbers.ndim) + numbers.shape))


def _encode(place: jax.Array, layout: Layout) -> jax.Array:
    """Codes (..., groups) of places (..., groups, n)."""
    if layout.parts == 2:
        bits = jnp.asarray(np.array([1 << bit for bit in _PRUNED_BIT], np.int32))
        return 15 - jnp.sum(bits[place], axis=-1, dtype=jnp.int32)
    at = _like(np.arange(layout.n) * place_bits(layout.m), place)
    return jnp.sum(place.astype(jnp.int32) << at, axis=-1, dtype=jnp.int32)


def _decode(code: jax.Array, layout: Layout) -> jax.Array:
    if layout.parts == 2:
        table = np.zeros((16, 2), np.int32)
        for kept in itertools.combinations(range(layout.m), layout.n):
            table[15 - sum(1 << _PRUNED_BIT[i] for i in kept)] = kept
        return jnp.asarray(table)[code]
    code = code[..., None]
    at = _like(np.arange(layout.n) * place_bits(layout.m), code)
    return (code >> at) & (2 ** place_bits(layout.m) - 1)


def _shifts(layout: Layout) -> np.ndarray:
    """(codes of a word, bits of a code): where in the word each bit is."""
    per_part = layout.bits // layout.parts
    bit = np.arange(layout.bits)
    first = np.array([layout.shift(code) for code in range(WORD // layout.bits)])
    return first[:, None] + bit % per_part + bit // per_part * (WORD // layout.parts)


def _words(code: jax.Array, layout: Layout) -> jax.Array:
    *lead, groups = code.shape
    per_word = WORD // layout.bits
    if layout.span:
        # A lane's codes of all units of a tile follow one another.
        each = layout.span // layout.group
        code = code.reshape(
            (*lead, groups // (each * layout.units * LANES), layout.units, LANES, each)
        )
        code = jnp.swapaxes(code, -2, -3)
    code = code.reshape((*lead, groups))
    code = jnp.pad(code, [(0, 0)] * len(lead) + [(0, -groups % per_word)])
    code = code[..., None]
    bit = (code >> _like(np.arange(layout.bits), code)) & 1
    bit = bit.reshape((*lead, code.shape[-2] // per_word, per_word, layout.bits))
    bit = bit << _like(_shifts(layout), bit)
    words = jnp.sum(bit, axis=(-1, -2)).astype(jnp.uint16)
    return lanes(words, layout.words // LANES)


def places(packed: PackedNM) -> jax.Array:
    """The kept places of all groups: int32, (..., n_out, groups, n)."""
    layout, groups = packed.layout, packed.shape[-1] // (packed.m * packed.block)
    *lead, _ = packed.code.shape
    words = from_lanes(packed.code, layout.words // LANES).astype(jnp.int32)[..., None, None]
    bit = (words >> _like(_shifts(layout), words)) & 1
    code = jnp.sum(bit << _like(np.arange(layout.bits), bit), axis=-1, dtype=jnp.int32)
    code = code.reshape((*lead, code.shape[-2] * code.shape[-1]))[..., :groups]
    if layout.span:
        each = layout.span // layout.group
        code = code.reshape(
            (*lead, groups // (each * layout.units * LANES), LANES, layout.units, each)
        )
        code = jnp.swapaxes(code, -2, -3).reshape((*lead, groups))
    return _decode(code, layout)


def unpack_nm(packed: PackedNM) -> jax.Array:
    """The dense (..., n_out, k) array of a packed one."""
    packed.check("unpack_nm")
    layout, (*lead, k) = packed.layout, packed.shape
    values = unpack(packed.values) if isinstance(packed.values, Planar) else packed.values
    values = from_lanes(values, layout.span // packed.m * packed.n)
    values = values.reshape((*lead, k // layout.group, packed.n, packed.block))
    place = places(packed)
    at = _like(np.arange(packed.m)[:, None], place[..., None])
    dense = jnp.zeros((*lead, k // layout.group, packed.m, packed.block), values.dtype)
    for j in range(packed.n):
        here = place[..., j, None, None] == at
        dense = jnp.where(here, values[..., j, None, :], dense)
    return dense.reshape((*lead, k))
