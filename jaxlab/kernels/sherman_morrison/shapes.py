"""Which problems the kernel takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.kernels.plan import TILE

# Blocks of threads that can read one another's shared memory on every Hopper.
MOST_CLUSTER = 8
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Config:
    """How the update is cut.

    Attributes:
      ways: warpgroups of a block of threads, among which its columns are dealt.
    """

    ways: int = 4


class Problem(NamedTuple):
    """Sizes: a stack of so many factors of (n, n)."""

    rows: int
    n: int
    dtype: str

    @property
    def family(self) -> str:
        """What is measured together."""
        return self.dtype

    @property
    def sizes(self) -> tuple[int, int]:
        """Of a factor."""
        return self.n, self.n

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        return f"{self.dtype}/{self.n}/s{self.rows}"

    @property
    def blocks(self) -> int:
        """Of threads, to a factor: each has 64 rows of it."""
        return self.n // TILE

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if self.dtype not in DTYPES:
            return f"factors of {self.dtype}; it takes {', '.join(DTYPES)}"
        if self.n % TILE or not 2 <= self.blocks <= MOST_CLUSTER:
            low, high = 2 * TILE, MOST_CLUSTER * TILE
            return f"n={self.n}; it takes multiples of {TILE} from {low} to {high}"
        if not self.rows:
            return "no factors"
        if not 1 <= config.ways <= 4 or self.blocks % config.ways:
            return f"{config.ways} warpgroups; it takes 1, 2 or 4 that divide {self.blocks}"
        return ""

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates()), Config())

    def candidates(self) -> list[Config]:
        """Configurations that suit, the best guess first.

        >>> Problem(6, 512, "float32").candidates()
        [Config(ways=4), Config(ways=2), Config(ways=1)]
        """
        return [config for ways in (4, 2, 1) if not self.refuse(config := Config(ways))]
