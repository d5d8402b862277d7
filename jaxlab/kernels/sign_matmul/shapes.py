"""Which problems the kernels take, and which cuts are worth a try."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kernels import plan
from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, Planar

# Rows of a to a warpgroup that multiplies, and such warpgroups of a block of threads.
TILE = 64
CONSUMERS = 2
# Bytes of k to a stage: what shared memory is arranged by.
STEP = 128
# Words of a row that are held at a time where both operands are unpacked in the kernel.
HELD = 32
# Sums of so many products of int8 with signs are exact in float32.
MOST_K = 2**17


@dataclasses.dataclass(frozen=True)
class Config:
    """How a product of many rows is cut.

    Attributes:
      tile_n: columns of the result to a block of threads, which has 128 rows.
      stages: steps of 128 k in flight.
      unpack: packed operands that the kernel unpacks itself: 0, 1 (b) or 2. What it does not, XLA
        unpacks before.
      across: blocks of 128 rows that are worked on side by side, so that they share columns of b
        in the cache.
    """

    tile_n: int = 256
    stages: int = 4
    unpack: int = 2
    across: int = 8


class Problem(NamedTuple):
    """A product's sizes: (rows, k) with (n, k), in blocks of `width` words.

    `packed` says whether a is packed, too; `k` has its padding; `dtype` is the result's.
    """

    rows: int
    n: int
    k: int
    width: int
    packed: bool
    dtype: str

    layout_version = LAYOUT_VERSION

    @property
    def block(self) -> int:
        """How many k a block of the packing has."""
        return FORMATS["binary"].fields * self.width

    @property
    def family(self) -> str:
        """What is measured together: few rows and many have kernels of their own."""
        operand, rows = ("signs" if self.packed else "int8"), ("few" if self.few else "many")
        return f"{operand}/{self.dtype}/w{self.width}/{rows}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.n, self.k

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        return f"{self.family}/{self.n}x{self.k}/b{plan.steps_of(self.rows)}"

    @property
    def few(self) -> bool:
        """Whether the weights' bits are what takes time: another kernel streams them."""
        return self.rows <= plan.MOST_ROWS

    @property
    def stream(self) -> plan.Plan:
        """As the kernel that streams has it."""
        return plan.Plan(
            rows=self.rows,
            n=self.n,
            blocks=self.k // self.block,
            x_columns=self.block,
            width=self.width,
            w_columns=(self.width,),
            w_bits=(16,),
            groups=0,
        )

    @property
    def padded_rows(self) -> int:
        """Rows as the kernel of many sees them."""
        return -(-self.rows // (CONSUMERS * TILE)) * CONSUMERS * TILE

    def unpacked(self, config: Config) -> tuple[bool, bool]:
        """Whether the kernel unpacks a, and b."""
        return self.packed and config.unpack > 1, config.unpack > 0

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel of many rows takes, a little overestimated."""
        rows = CONSUMERS * TILE
        bits_a, bits_b = self.unpacked(config)
        stage = STEP * (config.tile_n + (0 if bits_a else rows))
        words = 2 * (
            (config.tile_n + rows) * HELD if bits_a else config.tile_n * self.width * bits_b
        )
        return config.stages * stage + words + CONSUMERS * 2 * TILE * STEP + 2048

    def cut(self, stored: Mapping[str, Any] | None) -> Config | plan.Config:
        """As `dispatch.Problem` has it."""
        if self.few:
            return self.stream.cut(stored)
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations for many rows that suit, the best guess first.

        >>> Problem(4096, 4096, 4096, 64, True, "int32").candidates(1)
        [Config(tile_n=256, stages=4, unpack=2, across=8)]
        """
        deepest = [
            next((c for c in tries if not refuse(self, c)), None)
            for tile_n in (256, 128)
            for unpack in ((2, 1, 0) if self.packed else (1, 0))
            for tries in ([Config(tile_n, stages, unpack) for stages in (4, 6, 3)],)
        ]
        found = [config for config in deepest if config is not None]
        other = [dataclasses.replace(found[0], across=a) for a in (4, 16)] if found else []
        return [*found, *other][:most]


def problem_of(a: jax.Array, b: Planar, dtype: Any) -> Problem:
    """The problem of (rows, k) int8, or (rows, words) uint16, with (n, k)."""
    packed = a.dtype == jnp.uint16
    return Problem(a.shape[0], b.shape[0], b.padded, b.width, packed, jnp.dtype(dtype).name)


def refuse(problem: Problem, config: Config | plan.Config) -> str:
    """Why the kernel of a configuration does not take this, or nothing."""
    if isinstance(config, plan.Config):
        if problem.k > MOST_K:
            return f"k={problem.k} is more than {MOST_K}, up to which float32 is exact"
        return problem.stream.refuse(config)
    if config.tile_n not in (128, 256) or not 0 <= config.unpack <= 2 or config.stages < 2:
        return f"{config} is none of tile_n 128 or 256, unpack 0 to 2, stages from 2"
    if config.across < 1:
        return f"across={config.across}; it takes 1 or more"
    if problem.n % config.tile_n:
        return f"n={problem.n} is no multiple of tile_n={config.tile_n}"
    bits_a, bits_b = problem.unpacked(config)
    step = FORMATS["binary"].fields * HELD if bits_a else STEP
    if problem.k % step:
        return f"k={problem.k} is no multiple of {step}"
    if bits_b and not bits_a and problem.width not in (64, 128):
        return f"words in blocks of {problem.width}; it unpacks those of 64 and 128 for int8"
    if problem.shared_bytes(config) > plan.SHARED_BYTES:
        return f"{problem.shared_bytes(config)} bytes of shared memory"
    return ""
