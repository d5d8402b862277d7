"""How Hopper's products with packed weights are cut: sizes, and configurations that suit them."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Rows of W to a tensor-core product of a warpgroup, and columns in steps of which x is taken.
TILE = 64
ROWS_STEP = 8
MOST_ROWS = 64
MOST_WARPGROUPS = 8
# Products that tensor cores let a warpgroup count.
MOST_IN_FLIGHT = 7
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


def below(config: Any, **least: int) -> str:
    """Which field of a cut is below the least that it may be, or nothing.

    >>> below(Config(ways=0), ways=1, slots=0)
    'ways=0; it takes 1 or more'
    """
    low = [(name, at) for name, at in least.items() if getattr(config, name) < at]
    return next((f"{name}={getattr(config, name)}; it takes {at} or more" for name, at in low), "")


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
      depth: blocks of the packing to a step: longer steps wait and ask less often.
      parts: in which x of a step comes: shorter ones leave memory for more steps of the weights.
      slots: parts of x in flight, for each warpgroup; 0 is those of `stages` steps.
    """

    ways: int = 4
    stages: int = 3
    split_k: int = 1
    in_flight: int = 1
    fast: bool = True
    depth: int = 1
    parts: int = 1
    slots: int = 0

    @property
    def apart(self) -> bool:
        """Whether x comes in steps of its own."""
        return self.parts > 1 or self.slots > 0


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
        step = TILE * (weights + 4 * self.groups) * config.depth
        part = 2 * self.padded_rows * self.x_columns * config.depth // config.parts
        rings = step * self.stages(config) + part * self.slots(config)
        # The sums of other warpgroups, and the result.
        ends = config.ways * 4 * TILE * self.padded_rows
        return config.ways * rings + ends + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        least = {"ways": 1, "stages": 1, "split_k": 1, "depth": 1, "parts": 1}
        if reason := below(config, **least, in_flight=0, slots=0):
            return reason
        if not 1 <= self.rows <= MOST_ROWS:
            return f"{self.rows} rows of x; it takes 1 to {MOST_ROWS}"
        if self.n % TILE:
            return f"n={self.n} is no multiple of {TILE}"
        if not self.blocks * self.x_columns:
            return f"{self.blocks} blocks of {self.x_columns} columns of x; it takes whole ones"
        dealt = (config.ways, config.split_k, config.depth)
        if self.blocks % math.prod(dealt):
            return f"{self.blocks} blocks of k do not split into {' x '.join(map(str, dealt))}"
        if config.ways > MOST_WARPGROUPS:
            return f"more than {MOST_WARPGROUPS} warpgroups"
        if config.in_flight > MOST_IN_FLIGHT:
            return f"in_flight={config.in_flight}; it takes 0 to {MOST_IN_FLIGHT}"
        if (self.x_columns * config.depth) % (config.parts * self.width):
            return (
                f"{self.x_columns * config.depth} columns of x do not come in {config.parts} parts"
            )
        if config.ways * max(self.stages(config), self.slots(config)) > MOST_BARRIERS:
            return f"more than {MOST_BARRIERS} barriers of a kind"
        if self._starves(config):
            return (
                f"in_flight={config.in_flight} products hold every slot of x: {self.slots(config)}"
                f" slots for {config.parts} parts; fewer in flight or more slots go on"
            )
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""

    def _starves(self, config: Config) -> bool:
        """Whether a step waits for a part of x that has no slot until the step goes on.

        A slot is free again when no product reads it: those in flight do, but for the last ones of
        a group of scales, which are waited for.
        """
        pieces = self.x_columns * config.depth // self.width
        per_part, slots = pieces // config.parts, self.slots(config)
        per_group = max(1, pieces // (self.groups * config.depth or 1))
        for part in range(slots, config.parts):
            piece = part * per_part
            done = max(piece - config.in_flight, piece // per_group * per_group)
            if done // per_part <= part - slots:
                return True
        return False

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """The stored configuration, or the first candidate."""
        return Config(**stored) if stored else next(iter(self.candidates(1)), Config())

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit, the best guess first.

        >>> found = Plan(16, 16384, 32, 256, 64, (64,), (16,), 2).candidates(4)
        >>> [(c.ways, c.stages, c.depth, c.parts) for c in found]
        [(4, 3, 1, 1), (2, 6, 1, 1), (2, 3, 2, 1), (4, 4, 1, 2)]
        """
        found = dict.fromkeys(c for c in self._guesses() if c is not None)
        # One step at a time leaves the memory idle while it is computed with: those last.
        return sorted(found, key=self._one_at_a_time)[:most]

    def _guesses(self) -> Iterator[Config | None]:
        blocks = self.n // TILE
        plain = self._deepest(Config())
        in_parts = self._first(
            Config(ways, parts=parts) for ways in (4, 2, 1) for parts in (2, 4, 8, 16)
        )
        yield plain
        if blocks < PROCESSORS:
            yield self._split(4 if 4 * blocks <= PROCESSORS else 2)
        elif -(-blocks // PROCESSORS) * PROCESSORS > 1.25 * blocks:
            # Much of the machine would have nothing to do after a first turn: all at once.
            yield self._first((Config(ways) for ways in (4, 2)), SHARED_BYTES // 2)
        yield self._deepest(Config(ways=2))
        if plain is None or self._one_at_a_time(plain):
            yield in_parts  # so that as many warpgroups fit
        yield self._first(Config(ways, depth=2) for ways in (4, 2))
        yield in_parts
        yield self._deepest(Config(ways=8))
        yield self._split(2)
        yield self._deepest(Config(ways=1))

    def _split(self, split: int) -> Config | None:
        """Such that all blocks of threads run at once, where two to a processor are enough."""
        crowded = self.n // TILE * split > PROCESSORS
        room = SHARED_BYTES // (2 if crowded else 1)
        return self._first((Config(ways, split_k=split) for ways in (4, 2)), room)

    def _first(self, tries: Iterable[Config], room: int = SHARED_BYTES) -> Config | None:
        """The first that leaves memory for more than one step."""
        deepest = (self._deepest(like, room) for like in tries)
        return next((c for c in deepest if c is not None and not self._one_at_a_time(c)), None)

    def _one_at_a_time(self, config: Config) -> bool:
        return self.stages(config) < min(2, self.steps(config))

    def _deepest(self, like: Config, room: int = SHARED_BYTES) -> Config | None:
        """The most steps on their way that fit, if any."""
        for tried in (8, 6, 4, 3, 2, 1):
            stages = max(1, min(tried, self.steps(like)))
            # Where x comes in parts, less of it is in flight than of the weights.
            slots = max(2, stages) if like.parts > 1 else 0
            config = dataclasses.replace(like, stages=stages, slots=slots)
            if self.shared_bytes(config) <= room and not self.refuse(config):
                return config
        return None
