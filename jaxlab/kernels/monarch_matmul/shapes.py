"""Which Monarch products the kernel takes, and which cuts are worth a try."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.kernels.measured import VERSION
from jaxlab.kernels.plan import PROCESSORS, SHARED_BYTES, below, steps_of

# The rows of a tensor-core product, which are outputs in the first stage and rows of x in the
# second; and the widest block that is held in shared memory whole.
TILE = 64
WIDEST = 256
MOST_WARPGROUPS = 8
# What a block of threads takes beside what is asked for.
RESERVED_BYTES = 1024
# Of an H100 and an H200; only candidates follow from it.
CACHE_BYTES = 50e6


@dataclasses.dataclass(frozen=True)
class Config:
    """How both stages are cut.

    Attributes:
      batch_tile: rows of x that are multiplied at once.
      part: the most outputs of a block that a block of threads computes.
      ways: warpgroups of a block of threads; each has rows of x of its own.
      stages: tiles of the operand in flight, for each warpgroup.
      outs: tiles of the result in flight, for each warpgroup.
      blocks: blocks of threads that a processor holds.
      backwards: whether the second stage begins with the rows that the first wrote last, which a
        cache may still have.
      chunk: rows of x that pass both stages before the next ones do, so that a cache still has what
        is between; 0 is all.
    """

    batch_tile: int = 64
    part: int = 128
    ways: int = 4
    stages: int = 3
    outs: int = 1
    blocks: int = 1
    backwards: bool = True
    chunk: int = 0


# As an H200 ranked them; then what was not measured there: large tiles of wider blocks, and a cut
# for blocks of 256. Enough tiles are on their way to hide what memory takes to answer, in as much
# as shared memory has.
_TRIED = (
    Config(128, ways=2, stages=4, outs=2),
    Config(ways=4, stages=4, outs=2, backwards=False),
    Config(ways=4, stages=2),
    Config(128, ways=2, stages=2),
    Config(ways=3, stages=3),
    Config(part=64, ways=2, stages=2),
)


class Stage(NamedTuple):
    """A block-diagonal product: so many blocks of (outputs, inputs)."""

    blocks: int
    inputs: int
    outputs: int

    def part(self, config: Config) -> int:
        """Outputs to a block of threads."""
        return next(
            (p for p in range(min(config.part, self.outputs), 0, -TILE) if self.outputs % p == 0),
            self.outputs,
        )

    def groups(self, tiles: int, config: Config) -> int:
        """Blocks of threads among which the tiles of a part's rows are dealt."""
        room = PROCESSORS * config.blocks // self.parts(config)
        return max(1, min(room, -(-tiles // config.ways)))

    def parts(self, config: Config) -> int:
        """Parts of all blocks."""
        return self.blocks * (self.outputs // self.part(config))

    def shared_bytes(self, config: Config) -> int:
        """Shared memory of a block of threads."""
        part, rows = self.part(config), config.batch_tile
        in_flight = config.stages * rows * self.inputs + config.outs * rows * part
        return 2 * (part * self.inputs + config.ways * in_flight) + RESERVED_BYTES


class Problem(NamedTuple):
    """A product of `rows` of x with `blocks` blocks of `width` inputs, then with `out_blocks` of
    `out_width` outputs; each of the first feeds each of the second `rank` numbers.

    `blocked` is whether the outputs, and `blocked_inputs` whether the inputs are in the order of
    their blocks and not interleaved; `turned` is whether weights lie as (inputs, outputs).
    """

    rows: int
    blocks: int
    width: int
    out_blocks: int
    out_width: int
    rank: int
    blocked: bool = True
    blocked_inputs: bool = True
    turned: bool = False

    # Plain arrays have one.
    layout_version = 1

    @property
    def first(self) -> Stage:
        """The product with x."""
        return Stage(self.blocks, self.width, self.out_blocks * self.rank)

    @property
    def second(self) -> Stage:
        """The product with what comes of it."""
        return Stage(self.out_blocks, self.blocks * self.rank, self.out_width)

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.out_blocks * self.out_width, self.blocks * self.width

    @property
    def family(self) -> str:
        """What is measured together."""
        orders = [
            "blocked" if blocked else "interleaved"
            for blocked in (self.blocked_inputs, self.blocked)
        ]
        orders += ["turned"] if self.turned else []
        return f"{self.blocks}-{self.out_blocks}-{self.rank}/{'-'.join(orders)}"

    @property
    def key(self) -> str:
        """Under which a measurement is stored; few rows in steps, as they cost the same."""
        outputs, inputs = self.sizes
        return f"{self.family}/{outputs}x{inputs}/b{steps_of(self.rows)}"

    def tiles(self, config: Config) -> int:
        """Tiles of rows, the last one padded."""
        return -(-self.rows // config.batch_tile)

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """As `dispatch.Problem` has it."""
        if stored is not None:
            return Config(**stored)
        return next(iter(self.candidates()), Config())

    def chunks(self, config: Config) -> list["Problem"]:
        """What passes both stages together, one after another."""
        each = config.chunk or self.rows
        counts = [min(each, self.rows - start) for start in range(0, self.rows, each)]
        return [self._replace(rows=rows) for rows in counts]

    def candidates(self) -> list[Config]:
        """Configurations that suit, the most promising first."""
        found = [config for config in _TRIED if not refuse(self, config)]
        chunked = [config for config in self._chunked() if not refuse(self, config)]
        return [*found[:1], *chunked, *found[1:]]

    def _chunked(self) -> list[Config]:
        """Of what is between the stages as much as a cache may keep, where it does not keep all."""
        row_bytes = 2 * self.out_blocks * self.second.inputs
        if self.rows * row_bytes <= CACHE_BYTES:
            return []
        rows = [int(CACHE_BYTES * share / row_bytes) // 128 * 128 for share in (0.68, 0.34)]
        return [Config(ways=4, stages=2, chunk=chunk) for chunk in rows if chunk]


def problem_of(
    rows: int, w1: Any, w2: Any, *, blocked: bool = True, transpose: bool = False
) -> Problem:
    """The problem of `rows` of x with factors w1: (k, q, p) and w2: (l, s, r), or their transposes.

    The rank is 0 where l does not divide q.
    """
    (k, q, p), (l, s, _) = w1.shape, w2.shape  # noqa: E741
    rank = q // l if q % l == 0 else 0
    if transpose:
        return Problem(rows, l, s, k, p, rank, True, blocked, turned=True)
    return Problem(rows, k, p, l, s, rank, blocked, True)


def refuse(problem: Problem, config: Config) -> str:
    """Why the kernel does not take this, or nothing."""
    least = {"ways": 1, "stages": 1, "outs": 1, "blocks": 1, "batch_tile": 1}
    if reason := below(config, **least, part=TILE, chunk=0):
        return reason
    if not problem.rank:
        return "blocks of w1 do not feed every block of w2 equally: l does not divide q"
    for stage in (problem.first, problem.second):
        for name, size in (("inputs", stage.inputs), ("outputs", stage.outputs)):
            if not size or size % TILE:
                return f"blocks of {size} {name}; it takes multiples of {TILE}"
        if stage.inputs > WIDEST:
            return f"blocks of {stage.inputs} inputs; it takes {WIDEST} at most"
    part, rank = problem.first.part(config), problem.rank
    if rank > 1 and (rank % 8 or (part % rank and rank % part)):
        return f"rank {rank}; it takes 1, or multiples of 8 that divide {part} or the reverse"
    if config.batch_tile not in (64, 128):
        return f"batch_tile={config.batch_tile}; it takes 64 or 128"
    if config.part % TILE or not TILE <= config.part <= WIDEST:
        return f"part={config.part}; it takes multiples of {TILE} up to {WIDEST}"
    if config.ways > MOST_WARPGROUPS:
        return f"ways={config.ways}; it takes {MOST_WARPGROUPS} at most"
    if config.chunk % config.batch_tile:
        return f"chunk={config.chunk}; it takes multiples of batch_tile={config.batch_tile}"
    if config.chunk and VERSION < (0, 11):
        return f"chunk={config.chunk}; with this jax no kernel writes into an array that is there"
    needed = max(stage.shared_bytes(config) for stage in (problem.first, problem.second))
    if needed * config.blocks > SHARED_BYTES:
        return f"{config} needs {needed} bytes of shared memory; there are {SHARED_BYTES}"
    return ""
