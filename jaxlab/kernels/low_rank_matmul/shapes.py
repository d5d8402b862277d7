"""Which problems the kernels take, and which cuts are worth a try."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxlab.kernels.plan import (
    MOST_ROWS,
    MOST_WARPGROUPS,
    PROCESSORS,
    ROWS_STEP,
    SHARED_BYTES,
    TILE,
    below,
    steps_of,
)

# Blocks of threads that can read one another's shared memory on every Hopper.
MOST_CLUSTER = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """How the two products are cut.

    Attributes:
      ways: warpgroups of a block of threads, among which the sum is dealt.
      stages: tiles of the factor in flight, for each warpgroup.
      down: blocks of threads among which the sum of the first product is dealt.
      up: of the second.
      chained: whether the second kernel starts, and fetches its factor, while the first one runs.
    """

    ways: int = 2
    stages: int = 4
    down: int = 8
    up: int = 1
    chained: bool = True


class Stage(NamedTuple):
    """One of the products: (rows, k) times (k, n)."""

    rows: int
    k: int
    n: int
    split: int

    @property
    def padded_rows(self) -> int:
        """Rows of x as the kernel sees them."""
        return -(-self.rows // ROWS_STEP) * ROWS_STEP

    def steps(self, config: Config) -> int:
        """Tiles that one warpgroup takes."""
        return self.k // (TILE * config.ways * self.split)

    def stages(self, config: Config) -> int:
        """Tiles in flight."""
        return min(config.stages, self.steps(config))

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        held = config.ways * self.stages(config) * 2 * TILE * (TILE + self.padded_rows)
        sums = 4 * TILE * self.padded_rows * (config.ways + 1)
        return held + sums + 2 * TILE * self.padded_rows + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if not self.n or self.n % TILE:
            return f"{self.n} outputs; it takes multiples of {TILE}"
        if not 1 <= self.split <= MOST_CLUSTER:
            return f"a sum dealt among {self.split} blocks; at most {MOST_CLUSTER}"
        if not self.k or self.k % (TILE * config.ways * self.split):
            return f"{self.k} inputs do not split into {TILE} x {config.ways} x {self.split}"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""


class Problem(NamedTuple):
    """Sizes: x of (rows, k), factors of (k, rank) and (rank, n)."""

    rows: int
    k: int
    rank: int
    n: int
    dtype: str

    # Plain arrays have one.
    layout_version = 1

    @property
    def family(self) -> str:
        """What is measured together."""
        return f"{self.dtype}/r{self.rank}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.n, self.k

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        return f"{self.family}/{self.n}x{self.k}/b{steps_of(self.rows)}"

    def stages(self, config: Config) -> tuple[Stage, Stage]:
        """The two products."""
        first = Stage(self.rows, self.k, self.rank, config.down)
        return first, Stage(first.padded_rows, self.rank, self.n, config.up)

    def refuse(self, config: Config) -> str:
        """Why the kernels do not take this, or nothing."""
        if self.dtype != "bfloat16":
            return f"x is {self.dtype}; it takes bfloat16"
        if not 1 <= self.rows <= MOST_ROWS:
            return f"{self.rows} rows of x; it takes 1 to {MOST_ROWS}"
        if reason := below(config, ways=1, stages=1, down=1, up=1):
            return reason
        if config.ways > MOST_WARPGROUPS:
            return f"{config.ways} warpgroups; it takes 1 to {MOST_WARPGROUPS}"
        return next(filter(None, (stage.refuse(config) for stage in self.stages(config))), "")

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 12) -> list[Config]:
        """Configurations that suit: those that fill the machine and leave room for both kernels.

        >>> Problem(16, 8192, 1024, 8192, "bfloat16").candidates(1)
        [Config(ways=2, stages=4, down=8, up=1, chained=True)]
        """

        def waste(config: Config) -> float:
            empty = 0.0
            for stage in self.stages(config):
                blocks = stage.n // TILE * stage.split
                empty += 1 - blocks / (-(-blocks // PROCESSORS) * PROCESSORS)
            both = sum(stage.shared_bytes(config) for stage in self.stages(config))
            return empty + (both > SHARED_BYTES) + 0.1 * abs(config.ways - 2)

        found = [
            config
            for ways in (2, 4, 1)
            for stages in (4, 6, 8, 3, 2)
            for down in (8, 4, 2, 1)
            for up in (1, 2, 4)
            if not self.refuse(config := Config(ways, stages, down, up))
            # Deeper than there are tiles is what the next depth is.
            if stages <= max(stage.steps(config) for stage in self.stages(config)) or stages == 2
        ]
        found = sorted(found, key=waste)[: max(most - 2, 1)]
        # Whether the chain pays is measured, too.
        return (found + [dataclasses.replace(c, chained=False) for c in found[:2]])[:most]


def problem_of(x: Any, down: jax.Array, up: jax.Array) -> Problem:
    """The problem of x, (rows, k), with its factors."""
    k, rank = down.shape
    return Problem(x.shape[0], k, rank, up.shape[1], str(x.dtype))
