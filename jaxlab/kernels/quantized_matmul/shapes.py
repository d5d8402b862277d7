"""Which problems the kernel takes, with which tiles, and which tiles are worth a try."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from jaxlab.kernels.packing import FORMATS, Planar

# Rows of W to one tensor-core product of a warpgroup, and columns in steps of which x is taken.
TILE = 64
ROWS_STEP = 8
MOST_ROWS = 64
MOST_WARPGROUPS = 4
SHARED_BYTES = 227 * 1024
# What an H100 has; only the order of candidates follows from it.
PROCESSORS = 132


@dataclasses.dataclass(frozen=True)
class Config:
    """How a problem is cut.

    Attributes:
      row_tiles: tiles of 64 rows of W to a block of threads; they share what is read of x.
      k_ways: warpgroups among which k is dealt inside a block.
      stages: steps of k in flight.
      split_k: blocks among which k is dealt; XLA adds up what they give.
      fast: whether words are unpacked by hand-written instructions.
    """

    row_tiles: int = 1
    k_ways: int = 4
    stages: int = 3
    split_k: int = 1
    fast: bool = True


class Problem(NamedTuple):
    """A product's sizes: (rows, k) with (n, k), packed as `kind` in blocks of `width` words.

    `group` is how many k share a scale, 0 where a whole row of W does.
    """

    rows: int
    n: int
    k: int
    kind: str
    group: int
    width: int

    @property
    def padded_rows(self) -> int:
        """Rows of x as the kernel sees them."""
        return -(-self.rows // ROWS_STEP) * ROWS_STEP

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        rows = next((b for b in (1, 8, 16, 32, 64) if self.rows <= b), self.rows)
        return f"{self.kind}/g{self.group}/w{self.width}/{self.n}x{self.k}/b{rows}"

    @property
    def groups_of_tile(self) -> int:
        """Groups in one block of the packing."""
        return FORMATS[self.kind].fields * self.width // self.group if self.group else 0

    def steps(self, config: Config) -> int:
        """Steps of k that one block of threads takes."""
        words = self.k // FORMATS[self.kind].fields
        return words // (config.k_ways * self.width * config.split_k)

    def shared_bytes(self, config: Config, scale_bytes: int = 4) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        rows, columns = config.row_tiles * TILE, config.k_ways * self.width
        step = 2 * columns * (rows + self.padded_rows * FORMATS[self.kind].fields)
        step += scale_bytes * config.k_ways * self.groups_of_tile * rows
        ends = 4 * rows * self.padded_rows * (config.k_ways + 1)
        return step * min(config.stages, self.steps(config)) + ends + 2048


def problem_of(rows: int, packed: Planar, groups: int) -> Problem:
    """The problem of `rows` of x with a packed W of so many groups of scales."""
    n, k = packed.shape
    return Problem(rows, n, k, packed.kind, k // groups if groups > 1 else 0, packed.width)


def refuse(problem: Problem, config: Config) -> str:
    """Why the kernel does not take this, or nothing."""
    fields = FORMATS[problem.kind].fields
    block = fields * problem.width
    if not 1 <= problem.rows <= MOST_ROWS:
        return f"{problem.rows} rows of x; it takes 1 to {MOST_ROWS}"
    if problem.k % block:
        return f"k={problem.k} is no multiple of {block}, the packing's block"
    if problem.n % (config.row_tiles * TILE):
        return f"n={problem.n} is no multiple of {config.row_tiles * TILE}"
    if problem.k % (block * config.k_ways * config.split_k):
        return f"k={problem.k} does not split into {config.k_ways} x {config.split_k} blocks"
    if problem.group and (problem.group % problem.width or block % problem.group):
        return f"groups of {problem.group}; it takes multiples of {problem.width} to {block}"
    if config.row_tiles * config.k_ways > MOST_WARPGROUPS:
        return f"more than {MOST_WARPGROUPS} warpgroups"
    if problem.shared_bytes(config) > SHARED_BYTES:
        return f"{problem.shared_bytes(config)} bytes of shared memory"
    return ""


def _cuts(problem: Problem) -> Iterator[Config]:
    for split in (1, 2, 4):
        for tiles, ways in ((1, 4), (2, 2), (1, 2), (4, 1), (2, 1), (1, 1)):
            fitting = [
                config
                for stages in (6, 4, 3, 2)
                if not refuse(problem, config := Config(tiles, ways, stages, split))
            ]
            # As deep as fits, and as deep as fits twice.
            halves = [c for c in fitting if 2 * problem.shared_bytes(c) <= SHARED_BYTES]
            yield from dict.fromkeys([*fitting[:1], *halves[:1]])


def candidates(problem: Problem, most: int = 10) -> list[Config]:
    """Configurations that suit, those that fill the machine evenly first.

    >>> candidates(Problem(16, 8192, 8192, "int4", 128, 64))[0]
    Config(row_tiles=1, k_ways=4, stages=3, split_k=1, fast=True)
    """

    def waste(config: Config) -> float:
        blocks = problem.n // (config.row_tiles * TILE) * config.split_k
        fits = max(1, SHARED_BYTES // problem.shared_bytes(config))
        places = PROCESSORS * fits
        filled = blocks / (-(-blocks // places) * places)
        warpgroups = config.row_tiles * config.k_ways * min(fits, -(-blocks // PROCESSORS))
        # Few warpgroups hide no latency; a split costs a pass over the partial sums.
        return -filled * min(warpgroups, 4) + 0.2 * (config.split_k - 1)

    return sorted(_cuts(problem), key=waste)[:most]


def heuristics(problem: Problem) -> Config:
    """The configuration of a problem that was not measured; the default where none suits."""
    return next(iter(candidates(problem, 1)), Config())
