"""Planar packing: small integers in 16-bit words such that a kernel unpacks whole tiles at once.

Inside a block of P * width consecutive k, word c holds in its field p the number at
k = p * width + c, with P = 16 / bits fields to the word, field 0 in the lowest bits. Neighbours
never share a word: one shift and one mask of a tile of words give `width` neighbouring columns,
which meet a contiguous slice of the other operand. No shuffle is needed on any backend.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlab.core.registry import suggest

# Of every layout in this file; stored beside packed arrays, and raised when a layout changes.
LAYOUT_VERSION = 1

WORD = 16


class Format(NamedTuple):
    """One kind of number.

    Attributes:
      bits: of a field.
      low: the smallest number.
      high: the largest.
      encode: numbers, int32, to the bits of a field, int32.
      decode: its inverse.
    """

    bits: int
    low: int
    high: int
    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]

    @property
    def fields(self) -> int:
        """Fields of a word."""
        return WORD // self.bits

    @property
    def signs(self) -> bool:
        """Whether -1 and +1 are all there is, so that 0 is not in the format."""
        return self.bits == 1 and self.low < 0


def _offset(bits: int, low: int, high: int) -> Format:
    return Format(bits, low, high, lambda v: v - low, lambda c: c + low)


FORMATS: dict[str, Format] = {
    # Two's complement, as the byte is: the kernel subtracts the sign's weight.
    "int8": Format(8, -128, 127, lambda v: v & 255, lambda c: (c ^ 128) - 128),
    "uint8": _offset(8, 0, 255),
    "uint16": _offset(16, 0, 65535),
    "int4": _offset(4, -8, 7),
    "uint4": _offset(4, 0, 15),
    "ternary": _offset(2, -1, 1),
    "uint2": _offset(2, 0, 3),
    # The sign bit: 0 for +1, 1 for -1. Only the two are in the format.
    "binary": Format(1, -1, 1, lambda v: (1 - v) >> 1, lambda c: 1 - 2 * c),
    "uint1": _offset(1, 0, 1),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Planar:
    """Packed numbers, (..., n, k) before packing.

    Attributes:
      words: uint16, (..., n, ceil(k / (P width)) width).
      kind: a name of `FORMATS`.
      length: k.
      width: words of a block.
      version: of the layout.
    """

    words: jax.Array
    kind: str = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(default=64, metadata={"static": True})
    version: int = dataclasses.field(default=LAYOUT_VERSION, metadata={"static": True})

    @property
    def format(self) -> Format:
        """What the fields hold."""
        return FORMATS[self.kind]

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., n, k)."""
        return (*self.words.shape[:-1], self.length)

    @property
    def padded(self) -> int:
        """K rounded up to whole blocks: what a kernel multiplies."""
        return self.words.shape[-1] * self.format.fields

    def check(self, op: str) -> None:
        """Raises where the words are not those of this layout, kind and length.

        Raises:
          TypeError: they are not uint16.
          ValueError: an unknown kind or another layout; too few or too many of them.
        """
        check_kind(op, self.kind)
        check_width(op, self.width)
        if self.words.dtype != jnp.uint16:
            raise TypeError(f"{op}: packed.words must be uint16, not {self.words.dtype}")
        if self.version != LAYOUT_VERSION:
            raise ValueError(
                f"{op}: packed.version={self.version} is another layout; this one is "
                f"{LAYOUT_VERSION}, as `pack` makes it"
            )
        words = -(-self.length // (self.format.fields * self.width)) * self.width
        if self.words.shape[-1] != words:
            raise ValueError(
                f"{op}: packed.words of shape {self.words.shape} must end in {words} words, which "
                f"length={self.length} of {self.kind!r} takes in blocks of width={self.width}"
            )


def check_kind(op: str, kind: str) -> None:
    """Raises a ValueError unless there are such numbers."""
    if kind not in FORMATS:
        raise ValueError(f"{op}: kind={kind!r}; {suggest(kind, FORMATS)}")


def check_width(op: str, width: int) -> None:
    """Raises a ValueError unless blocks may have so many words."""
    is_whole = isinstance(width, (int, np.integer)) and not isinstance(width, bool)
    if not is_whole or width < 16 or width % 16:
        near = max(16, round(width / 16) * 16) if isinstance(width, (int, float)) else 64
        raise ValueError(f"{op}: width={width!r} must be an int, a multiple of 16; nearest: {near}")


def pack(q: jax.Array, kind: str, *, width: int = 64) -> Planar:
    """Packs integers along the last axis; `unpack` is the exact inverse.

    Args:
      q: integers, (..., n, k), in the range of the kind.
      kind: a name of `FORMATS`; "binary" holds -1 and +1.
      width: words of a block, a positive multiple of 16.

    Returns:
      The packed numbers; what fills the last block up is the number 0 (or +1).

    Raises:
      TypeError: `q` is not an integer array.
      ValueError: the kind or width does not exist, or (outside jit) a number is out of range.

    >>> packed = pack(jnp.arange(-8, 8)[None], "int4", width=16)
    >>> packed.words.shape, unpack(packed).tolist()[0][:4]
    ((1, 16), [-8, -7, -6, -5])
    """
    check_kind("pack", kind)
    check_width("pack", width)
    if not jnp.issubdtype(q.dtype, jnp.integer) or q.ndim < 2:
        raise TypeError(f"pack: q must be integers of two axes or more, not {q.dtype}{q.shape}")
    form = FORMATS[kind]
    if not isinstance(q, Tracer):
        _check_range(q, kind, form)  # before numbers that int32 does not hold become others
    q = q.astype(jnp.int32)
    fill = 1 if form.signs else 0
    block = form.fields * width
    pad = [(0, 0)] * (q.ndim - 1) + [(0, -q.shape[-1] % block)]
    # Under jit nothing checks the range: what is out of it must not reach its neighbours' bits.
    codes = form.encode(jnp.pad(q, pad, constant_values=fill)) & (2**form.bits - 1)
    codes = codes.astype(jnp.uint16)
    blocks = codes.shape[-1] // block
    codes = codes.reshape((*q.shape[:-1], blocks, form.fields, width))
    shift = jax.lax.broadcasted_iota(jnp.uint16, codes.shape, codes.ndim - 2)
    words = jnp.sum(codes << (shift * jnp.uint16(form.bits)), axis=-2, dtype=jnp.uint16)
    return Planar(words.reshape((*q.shape[:-1], blocks * width)), kind, q.shape[-1], int(width))


def _check_range(q: jax.Array, kind: str, form: Format) -> None:
    bounds = jnp.iinfo(q.dtype)
    low, high = (q.dtype.type(v) for v in (max(form.low, bounds.min), min(form.high, bounds.max)))
    wrong = (q < low) | (q > high)
    if form.signs:
        wrong |= q == 0
    if bool(jnp.any(wrong)):
        raise ValueError(
            f"pack: q holds {int(q.reshape(-1)[jnp.argmax(wrong.reshape(-1))])}, which {kind!r} "
            f"does not; its numbers go from {form.low} to {form.high}"
        )


def unpack(packed: Planar) -> jax.Array:
    """Undoes `pack`.

    Returns:
      The narrowest integers that hold the kind, signed where they can be, (..., n, k).

    >>> unpack(pack(jnp.array([[1, -1, -1]]), "binary")).tolist()
    [[1, -1, -1]]
    """
    packed.check("unpack")
    form = packed.format
    *lead, columns = packed.words.shape
    words = packed.words.reshape((*lead, columns // packed.width, 1, packed.width))
    shape = (*words.shape[:-2], form.fields, packed.width)
    shift = jax.lax.broadcasted_iota(jnp.uint16, shape, len(shape) - 2) * jnp.uint16(form.bits)
    codes = (words >> shift) & jnp.uint16(2**form.bits - 1)
    values = form.decode(codes.astype(jnp.int32)).reshape((*lead, packed.padded))
    dtypes = (jnp.int8, jnp.uint8, jnp.uint16)
    dtype = next(d for d in dtypes if form.high <= jnp.iinfo(d).max)
    return jax.lax.slice_in_dim(values, 0, packed.length, axis=-1).astype(dtype)
