"""How N:M groups are stored: bits of a code, and which k a lane of the tensor cores takes."""

import functools
from typing import NamedTuple

from jaxlab.kernels.packing import WORD

LANES = 4
# Columns of a product's left operand that are rebuilt at once, and of values that are read at once.
PIECE = 64
# Words of a block of planar values: a quarter of a piece of 4-bit numbers.
PLANAR_WIDTH = 16
_MOST_SPAN = 64
_MOST_TILE = 256


class Layout(NamedTuple):
    """How groups of a pattern are stored.

    Attributes:
      n: kept blocks of a group.
      m: blocks of a group.
      block: entries of a block.
      bits: of a code: 1, 2, 4, 8 or 16.
      parts: into which the bits of a code are cut; a word has the first part of each of its codes,
        then the second.
      span: consecutive k of a lane; 0 where groups are stored one after another, for XLA alone.
      units: of 4 span consecutive k to a tile, which takes whole words of codes in every lane.
    """

    n: int
    m: int
    block: int
    bits: int
    parts: int
    span: int
    units: int

    @property
    def group(self) -> int:
        """Entries of a group."""
        return self.m * self.block

    @property
    def tile(self) -> int:
        """Consecutive k that are ordered together; 0 where there is no order."""
        return LANES * self.span * self.units

    @property
    def values(self) -> int:
        """Kept values of a tile."""
        return self.tile // self.m * self.n

    @property
    def words(self) -> int:
        """Words of codes of a tile."""
        return self.tile // self.group * self.bits // WORD

    def shift(self, code: int) -> int:
        """Where in its word the first part of a code begins; the next is `WORD / parts` further."""
        return code % (WORD // self.bits) * (self.bits // self.parts)


@functools.cache
def layout_of(n: int, m: int, block: int, k: int) -> Layout:
    """The layout of (..., k) weights of a pattern.

    >>> layout_of(2, 4, 1, 1024)
    Layout(n=2, m=4, block=1, bits=4, parts=2, span=16, units=2)
    >>> layout_of(2, 4, 1, 100).span
    0
    """
    bits = next(b for b in (1, 2, 4, 8, 16) if b >= n * place_bits(m))
    bitmask = (n, m, block) == (2, 4, 1)
    plain = Layout(n, m, block, bits, 2 if bitmask else 1, 0, 0)
    span = max(16, m * block)
    if m * block % 2 or (block > 1 and block % 2) or span % 16 or span % (m * block):
        return plain
    while span // m * n % 2:  # values come in pairs
        span *= 2
    if span > _MOST_SPAN:
        return plain
    kept = LANES * span // m * n
    units = next(u for u in (1, 2, 4, 8, 16, 32) if kept * u % PIECE == 0)

    def spare(units: int) -> int:
        return 2 * WORD // (span * units // (m * block))

    # Codes that do not fill a register of two words take more bits, or longer tiles.
    while spare(units) > bits and (2 * LANES * span * units <= _MOST_TILE or spare(units) > WORD):
        units *= 2
    layout = plain._replace(bits=max(bits, spare(units)), span=span, units=units)
    return plain if k == 0 or k % layout.tile else layout


def place_bits(m: int) -> int:
    """Bits of a place among m.

    >>> [place_bits(m) for m in (2, 3, 4, 16)]
    [1, 2, 2, 4]
    """
    return max(1, (m - 1).bit_length())
