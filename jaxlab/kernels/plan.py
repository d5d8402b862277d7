"""How Hopper's products with packed weights are cut: sizes, and configurations that suit them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

# Rows of W to a tensor-core product of a warpgroup, and columns in steps of which x is taken.
TILE = 64
ROWS_STEP = 8
MOST_ROWS = 64
MOST_WARPGROUPS = 8
SHARED_BYTES = 227 * 1024
# What an H100 has; only the order of candidates follows from it.
PROCESSORS = 132


# Of numbers of rows, which cost the same up to each.
STEPS = (1, 8, 16, 32, 64)


def steps_of(rows: int) -> int:
    """The step of rows that these fall into, which cost the same.

    >>> [steps_of(rows) for rows in (1, 3, 17, 100)]
    [1, 8, 32, 100]
    """
    return next((step for step in STEPS if rows <= step), rows)


@dataclasses.dataclass(frozen=True)
class Config:
    """How a product is cut.

    Attributes:
      ways: warpgroups of a block of threads, among which k is dealt.
      stages: blocks of k in flight, for each warpgroup.
      split_k: blocks of threads among which k is dealt; XLA adds up what they give.
      in_flight: products that may be under way while the next piece is unpacked: few pieces hold
        few registers.
      fast: whether words are unpacked by hand-written instructions.
    """

    ways: int = 4
    stages: int = 3
    split_k: int = 1
    in_flight: int = 1
    fast: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """A product's sizes.

    Attributes:
      rows: of x.
      n: rows of W.
      blocks: of k.
      x_columns: columns of x to a block.
      width: columns of x to one piece of unpacked weights.
      w_columns: columns of each packed operand to a block.
      w_bits: bits of its entries.
      groups: of scales in a block; 0 where a whole row of W shares one.
    """

    rows: int
    n: int
    blocks: int
    x_columns: int
    width: int
    w_columns: tuple[int, ...]
    w_bits: tuple[int, ...]
    groups: int

    @property
    def padded_rows(self) -> int:
        """Rows of x as the kernel sees them."""
        return -(-self.rows // ROWS_STEP) * ROWS_STEP

    def steps(self, config: Config) -> int:
        """Blocks of k that one warpgroup takes."""
        return self.blocks // (config.ways * config.split_k)

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        weights = sum(c * b // 8 for c, b in zip(self.w_columns, self.w_bits, strict=True))
        step = TILE * weights + 2 * self.padded_rows * self.x_columns + 4 * TILE * self.groups
        ends = 4 * TILE * self.padded_rows * (config.ways + 1)
        return config.ways * step * min(config.stages, self.steps(config)) + ends + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if not 1 <= self.rows <= MOST_ROWS:
            return f"{self.rows} rows of x; it takes 1 to {MOST_ROWS}"
        if self.n % TILE:
            return f"n={self.n} is no multiple of {TILE}"
        if self.blocks % (config.ways * config.split_k):
            return f"{self.blocks} blocks of k do not split into {config.ways} x {config.split_k}"
        if config.ways > MOST_WARPGROUPS:
            return f"more than {MOST_WARPGROUPS} warpgroups"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit, those that fill the machine evenly first.

        >>> Plan(16, 8192, 32, 256, 64, (64,), (16,), 2).candidates(1)
        [Config(ways=4, stages=3, split_k=1, in_flight=1, fast=True)]
        """

        def waste(config: Config) -> float:
            blocks = self.n // TILE * config.split_k
            filled = blocks / (-(-blocks // PROCESSORS) * PROCESSORS)
            # Few warpgroups hide no latency; a split costs a pass over the partial sums.
            return -filled * min(config.ways, 4) + 0.2 * (config.split_k - 1)

        return sorted(self._cuts(), key=waste)[:most]

    def _cuts(self) -> Iterator[Config]:
        for split in (1, 2, 4):
            for ways in (4, 8, 2, 1):
                fitting = [
                    config
                    for stages in (8, 6, 4, 3, 2, 1)
                    if not self.refuse(config := Config(ways, stages, split))
                ]
                # As deep as fits, and as deep as fits twice.
                halves = [c for c in fitting if 2 * self.shared_bytes(c) <= SHARED_BYTES]
                yield from dict.fromkeys([*fitting[:1], *halves[:1]])
