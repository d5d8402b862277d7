"""Which problems the kernel takes, and which cuts are worth a try."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxlab.kernels.plan import MOST_BARRIERS, PROCESSORS, ROWS_STEP, SHARED_BYTES, TILE, below

# Rows and columns that one copy brings.
MOST_SIDE = 256
# What a block of threads takes beside tiles of A and x: 1 KB for the result, 2 KB that Mosaic keeps
# for sums across lanes, and barriers.
RESERVED_BYTES = 3584
# Cuts to try, by whether A is transposed: tiles of rows and of columns, blocks of threads that a
# processor has at a time, and tiles in flight.
_CUTS = {
    False: (
        *((2, 2, 2, 3), (1, 4, 2, 3), (2, 4, 1, 3), (2, 3, 1, 4), (1, 3, 2, 4), (1, 2, 4, 3)),
        *((4, 1, 2, 3), (4, 4, 1, 2), (1, 4, 1, 6), (4, 2, 1, 3), (1, 1, 4, 6)),
    ),
    True: (
        *((1, 4, 2, 3), (2, 2, 2, 3), (1, 2, 4, 3), (4, 4, 1, 2), (4, 1, 2, 3)),
        *((2, 4, 1, 3), (1, 4, 1, 6), (4, 2, 1, 3), (1, 1, 4, 6)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How the product is cut.

    Attributes:
      tall: tiles of 64 rows of A that come at a time.
      wide: tiles of 64 columns.
      stages: of these in flight, for each block of threads.
      blocks: of threads that share the columns of A.
    """

    tall: int = 2
    wide: int = 2
    stages: int = 3
    blocks: int = 2 * PROCESSORS


class Problem(NamedTuple):
    """A product's sizes: A of (m, n), and as many rows x as there are products with it."""

    rows: int
    m: int
    n: int
    dtype: str
    x_dtype: str
    # Whether it is the product with A.T, which has x of (rows, m).
    transposed: bool = False

    # Plain arrays have one.
    layout_version = 1

    @property
    def family(self) -> str:
        """What is measured together."""
        return f"{'At/' if self.transposed else ''}{self.x_dtype}/m{self.m}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return (self.n, self.m) if self.transposed else (self.m, self.n)

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        return f"{self.family}/n{self.n}/b{self.rows}"

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        tall, wide = config.tall * TILE, config.wide * TILE
        if self.transposed:
            return config.stages * 2 * tall * wide + 2 * ROWS_STEP * self.m + RESERVED_BYTES
        return config.stages * 2 * (tall + ROWS_STEP) * wide + RESERVED_BYTES

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if self.dtype != "bfloat16":
            return f"a is {self.dtype}; it takes bfloat16"
        if self.x_dtype not in ("bfloat16", "float32"):
            return f"x is {self.x_dtype}; it takes bfloat16 and float32"
        if self.rows != 1:
            return f"{self.rows} vectors; it takes one"
        if reason := below(config, tall=1, wide=1, stages=1, blocks=1):
            return reason
        for name, sides, size in (("tall", config.tall, self.m), ("wide", config.wide, self.n)):
            if sides * TILE > MOST_SIDE:
                return f"{name}={sides}; it takes 1 to {MOST_SIDE // TILE}"
            if not size or size % (sides * TILE):
                return f"a of {self.m} x {self.n}: {size} is no multiple of {TILE} x {sides}"
        if config.stages > MOST_BARRIERS:
            return f"more than {MOST_BARRIERS} barriers of a kind"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit, the best guess first: each fills the machine once.

        >>> Problem(1, 512, 65536, "bfloat16", "bfloat16").candidates(2)
        [Config(tall=2, wide=2, stages=3, blocks=66), Config(tall=1, wide=4, stages=3, blocks=33)]
        >>> Problem(1, 512, 65536, "bfloat16", "float32", transposed=True).candidates(1)
        [Config(tall=1, wide=4, stages=3, blocks=264)]
        """
        found = []
        for tall, wide, share, stages in _CUTS[self.transposed]:
            # Blocks that have the same columns and other rows are there beside them.
            beside = 1 if self.transposed else max(self.m // (tall * TILE), 1)
            blocks = max(share * PROCESSORS // beside, 1)
            # As many tiles in flight as leave room for the other blocks of a processor.
            for deep in range(stages, 1, -1):
                config = Config(tall, wide, deep, blocks)
                if not self.refuse(config) and share * self.shared_bytes(config) <= SHARED_BYTES:
                    found.append(config)
                    break
        return found[:most]


def problem_of(x: Any, a: jax.Array, transposed: bool) -> Problem:
    """The problem of rows x, (rows, inputs), with A of (m, n)."""
    m, n = a.shape
    return Problem(x.shape[0], m, n, str(a.dtype), str(x.dtype), transposed)
