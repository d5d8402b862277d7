"""Which problems the kernel takes, and which cuts are worth a try."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxlab.kernels.plan import MOST_BARRIERS, PROCESSORS, SHARED_BYTES, TILE, below

SIDES = (16, 32, 64)
# Of bfloat16 numbers that a number is taken apart into: all 24 digits of a float32, and of a
# bfloat16 itself; what lies between the products has two where bfloat16 goes in and comes out.
PIECES = {"float32": (3, 3), "bfloat16": (1, 2)}


@dataclasses.dataclass(frozen=True)
class Config:
    """How the product is cut.

    Attributes:
      ways: warpgroups of a block of threads; each takes 64 rows of X at a time.
      stages: tiles of X in flight, for each warpgroup.
      blocks: of threads, that share all tiles.
    """

    ways: int = 4
    stages: int = 3
    blocks: int = PROCESSORS


class Problem(NamedTuple):
    """A product's sizes: X of (samples, n1, n2), A of (m1, n1), B of (m2, n2)."""

    rows: int
    m1: int
    n1: int
    m2: int
    n2: int
    dtype: str

    # Plain arrays have one.
    layout_version = 1

    @property
    def family(self) -> str:
        """What is measured together."""
        return f"{self.dtype}/{self.m1}x{self.n1}/{self.m2}x{self.n2}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs of the Kronecker product."""
        return self.m1 * self.m2, self.n1 * self.n2

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        return f"{self.family}/s{self.rows}"

    @property
    def samples(self) -> int:
        """That a tile has."""
        return TILE // self.n1

    @property
    def tiles(self) -> int:
        """Of 64 rows of X."""
        return self.rows // self.samples

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        outer, inner = PIECES[self.dtype]
        size = 4 if self.dtype == "float32" else 2
        each = config.stages * size * self.n2 + (2 * inner + size) * self.m2
        return config.ways * TILE * each + outer * 2 * self.m2 * self.n2 + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if self.dtype not in PIECES:
            return f"x is {self.dtype}; it takes {', '.join(PIECES)}"
        if self.m1 != self.n1:
            return f"a is {self.m1} x {self.n1}; it takes a square one"
        if not {self.n1, self.m2, self.n2} <= set(SIDES):
            return f"factors of sides {self.n1}, {self.m2}, {self.n2}; it takes {SIDES}"
        if not self.rows or self.rows % self.samples:
            return f"{self.rows} samples; it takes multiples of {self.samples}"
        if reason := below(config, ways=1, stages=1, blocks=1):
            return reason
        if config.ways > 4:
            return f"{config.ways} warpgroups; it takes 1 to 4"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        if config.ways * config.stages > MOST_BARRIERS:
            return f"more than {MOST_BARRIERS} barriers of a kind"
        return ""

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit, the best guess first.

        >>> Problem(16384, 32, 32, 32, 32, "float32").candidates(2)
        [Config(ways=4, stages=3, blocks=132), Config(ways=2, stages=3, blocks=264)]
        """
        found = []
        for ways, stages, share in (
            *((4, 3, 1), (2, 3, 2), (4, 2, 1), (3, 4, 1), (2, 2, 2), (1, 3, 4), (3, 2, 1)),
            *((2, 4, 1), (2, 2, 1), (1, 2, 2), (1, 2, 1)),
        ):
            config = Config(ways, stages, share * PROCESSORS)
            if not self.refuse(config) and share * self.shared_bytes(config) <= SHARED_BYTES:
                found.append(config)
        return found[:most]


def problem_of(x: jax.Array, a: jax.Array, b: jax.Array) -> Problem:
    """The problem of x, (samples, n1 n2), with its factors."""
    (m1, n1), (m2, n2) = a.shape, b.shape
    return Problem(x.shape[0], m1, n1, m2, n2, str(x.dtype))
