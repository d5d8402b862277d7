"""How Hopper's products with packed weights are cut: sizes, and configurations that suit them."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

# Rows of W to a tensor-core product of a warpgroup, and columns in steps of which x is taken.
TILE = 64
ROWS_STEP = 8
MOST_ROWS = 64
MOST_WARPGROUPS = 8
MOST_TILE = 256
MOST_CLUSTER = 8
# That one register knows the phases of.
MOST_BARRIERS = 32
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
      tile: rows of W of a block of threads, a multiple of 64 for each block of its cluster.
      cluster: blocks of threads among which k is dealt and which add up what they give themselves;
        1, or as many as `split_k`.
      depth: blocks of the packing to a step: longer steps wait and ask less often.
      parts: in which x of a step comes: shorter ones leave memory for more steps of the weights.
      slots: parts of x in flight, for each warpgroup; 0 is those of `stages` steps.
      late: whether a constant that unpacking leaves in every number is taken off the sums. That
        saves instructions, and takes a product more for every tile, with x and the constant alone.
    """

    ways: int = 4
    stages: int = 3
    split_k: int = 1
    in_flight: int = 1
    fast: bool = True
    tile: int = TILE
    cluster: int = 1
    depth: int = 1
    parts: int = 1
    slots: int = 0
    late: bool = False

    @property
    def apart(self) -> bool:
        """Whether x comes in steps of its own."""
        return self.parts > 1 or self.slots > 0

    @property
    def sums_outside(self) -> int:
        """Partial sums of each output that XLA adds up."""
        return self.split_k if self.cluster == 1 else 1


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
      late: whether unpacking can leave constants in its numbers.
    """

    rows: int
    n: int
    blocks: int
    x_columns: int
    width: int
    w_columns: tuple[int, ...]
    w_bits: tuple[int, ...]
    groups: int
    late: bool = False

    @property
    def padded_rows(self) -> int:
        """Rows of x as the kernel sees them."""
        return -(-self.rows // ROWS_STEP) * ROWS_STEP

    def steps(self, config: Config) -> int:
        """Blocks of k that one warpgroup takes."""
        return self.blocks // (config.ways * config.split_k * config.depth)

    def stages(self, config: Config) -> int:
        """Steps that are in flight."""
        return min(config.stages, self.steps(config))

    def slots(self, config: Config) -> int:
        """Parts of x that are in flight."""
        most = self.steps(config) * config.parts
        return min(config.slots or config.stages * config.parts, most)

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        weights = sum(c * b // 8 for c, b in zip(self.w_columns, self.w_bits, strict=True))
        step = config.tile * (weights + 4 * self.groups) * config.depth
        part = 2 * self.padded_rows * self.x_columns * config.depth // config.parts
        rings = step * self.stages(config) + part * self.slots(config)
        # The sums of other warpgroups, those of other blocks, and the result.
        sums = config.ways - 1 + (config.cluster > 1) + 1 / config.cluster
        ends = math.ceil(4 * config.tile * self.padded_rows * sums)
        return config.ways * rings + ends + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if not 1 <= self.rows <= MOST_ROWS:
            return f"{self.rows} rows of x; it takes 1 to {MOST_ROWS}"
        if config.cluster not in (1, config.split_k) or config.cluster > MOST_CLUSTER:
            return f"cluster={config.cluster}; it takes 1, or split_k up to {MOST_CLUSTER}"
        if config.tile % (TILE * config.cluster) or config.tile > MOST_TILE:
            return f"tile={config.tile}; it takes multiples of {TILE * config.cluster}"
        if config.late and not self.late:
            return "late=True; what unpacks these weights leaves no constants"
        if self.n % config.tile:
            return f"n={self.n} is no multiple of {config.tile}"
        dealt = (config.ways, config.split_k, config.depth)
        if self.blocks % math.prod(dealt):
            return f"{self.blocks} blocks of k do not split into {' x '.join(map(str, dealt))}"
        if config.ways > MOST_WARPGROUPS:
            return f"more than {MOST_WARPGROUPS} warpgroups"
        if (self.x_columns * config.depth) % (config.parts * self.width):
            return (
                f"{self.x_columns * config.depth} columns of x do not come in {config.parts} parts"
            )
        if config.ways * max(self.stages(config), self.slots(config)) > MOST_BARRIERS:
            return f"more than {MOST_BARRIERS} barriers of a kind"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit: of every sort one before the second best of any.

        >>> [c.ways for c in Plan(16, 8192, 32, 256, 64, (64,), (16,), 2).candidates(2)]
        [4, 4]
        """

        def waste(config: Config) -> float:
            blocks = self.n // config.tile * config.split_k
            filled = blocks / (-(-blocks // PROCESSORS) * PROCESSORS)
            # Few warpgroups hide no latency; a split costs a pass over the partial sums.
            return -filled * min(config.ways, 4) + 0.2 * (config.sums_outside - 1)

        sorts = [sorted(sort, key=waste) for sort in self._sorts()]
        ranked = itertools.chain.from_iterable(itertools.zip_longest(*sorts))
        found = [c for c in dict.fromkeys(ranked) if c is not None]
        return found[:most]

    def _sorts(self) -> Iterator[list[Config]]:
        """Alternatives that are tried beside each other, the plainest first."""
        yield list(self._cuts(Config(tile=TILE)))
        for cluster in (2, 4):
            wide = Config(split_k=cluster, cluster=cluster, tile=TILE * cluster)
            yield list(self._cuts(wide))
            yield list(self._cuts(dataclasses.replace(wide, parts=2)))
        yield list(self._cuts(Config(parts=4)))
        yield list(self._cuts(Config(depth=2)))
        yield list(self._cuts(Config(parts=2)))
        if self.n // (2 * TILE) >= PROCESSORS:
            yield list(self._cuts(Config(tile=2 * TILE)))
        if self.late:
            yield list(self._cuts(Config(split_k=2, cluster=2, tile=2 * TILE, late=True)))
        for split in (2, 4):
            yield list(self._cuts(Config(split_k=split)))

    def _cuts(self, like: Config) -> Iterator[Config]:
        for ways in (4, 8, 2, 1):
            if ways * like.tile > 8 * TILE:  # more would not fit into registers
                continue
            fitting: list[Config] = []
            for stages in (8, 6, 4, 3, 2, 1):
                # Where x comes in parts, less of it is in flight than of the weights.
                slots = max(2, stages * like.parts // 2) if like.parts > 1 else 0
                config = dataclasses.replace(like, ways=ways, stages=stages, slots=slots)
                if not self.refuse(config):
                    fitting.append(config)
            # As deep as fits, and as deep as fits twice.
            halves = [c for c in fitting if 2 * self.shared_bytes(c) <= SHARED_BYTES]
            yield from dict.fromkeys([*fitting[:1], *halves[:1]])
