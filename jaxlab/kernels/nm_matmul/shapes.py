"""Which problems the kernel takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.kernels.layout_nm import LANES, PIECE, PLANAR_WIDTH, Layout, layout_of
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.packing_nm import NM_LAYOUT_VERSION, PackedNM
from jaxlab.kernels.plan import TILE, Config, Plan, steps_of

# A block of the kernel has two tiles where they are at most as long, for 64 rows of W and 16 of x:
# two steps for each of four warpgroups fit then.
_BYTES = 27 * 1024
_WARP = 32


@dataclasses.dataclass(frozen=True)
class Cut(Config):
    """How a product is cut.

    Attributes:
      in_place: whether x is put in order in shared memory by those who multiply with it, and not
        by a launch before.
    """

    in_place: bool = False


@dataclasses.dataclass(frozen=True)
class _Plan(Plan):
    # Whether the layout is one that x can be ordered for in shared memory.
    orders: bool = False

    def candidates(self, most: int = 8) -> list[Config]:
        """As `Plan` has them, each with both ways to order x."""
        ways = (False, True) if self.orders else (False,)
        some = super().candidates(-(-most // len(ways)))
        both: list[Config] = [Cut(**vars(c), in_place=own) for c in some for own in ways]
        return [c for c in both if not _refuse_in_place(self, c)][:most]


def _refuse_in_place(plan: Plan, config: Config) -> str:
    # Two threads for each row of 64 columns, in whole warps.
    rows = plan.padded_rows * plan.x_columns * config.depth // config.parts // PIECE
    if isinstance(config, Cut) and config.in_place and rows % (_WARP // 2):
        return f"in_place=True; {rows} rows of 64 columns of x are no whole warps of threads"
    return ""


class Problem(NamedTuple):
    """A product's sizes: (rows, k) with (n_out, k), of which n of every m blocks are kept.

    `kind` is that of planar values, "" for bfloat16; `scaled` is how many k share a scale, 0 where
    a whole row of W does, or there is none.
    """

    rows: int
    n_out: int
    k: int
    n: int
    m: int
    block: int
    kind: str = ""
    scaled: int = 0

    layout_version = NM_LAYOUT_VERSION

    @property
    def layout(self) -> Layout:
        """How the weights are stored."""
        return layout_of(self.n, self.m, self.block, self.k)

    @property
    def family(self) -> str:
        """What is measured together."""
        block = f"/block{self.block}" if self.block > 1 else ""
        kind = f"/{self.kind}/g{self.scaled}" if self.kind else ""
        return f"{self.n}:{self.m}{block}{kind}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.n_out, self.k

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        return f"{self.family}/{self.n_out}x{self.k}/b{steps_of(self.rows)}"

    @property
    def tiles(self) -> int:
        """Tiles of the layout to a block of the kernel: short blocks, of whole groups of scales."""
        layout, scaled = self.layout, self.scaled
        if not layout.tile:
            return 1
        fields = FORMATS[self.kind].fields if self.kind else 1
        each = 2 * (TILE * (layout.values // fields + layout.words) + 16 * layout.tile)
        enough = 2 if 2 * each <= _BYTES and self.k % (2 * layout.tile) == 0 else 1
        whole = (t for t in (1, 2, 4, 8) if not scaled or t * layout.tile % scaled == 0)
        return next((t for t in whole if t >= enough), 1)

    @property
    def plan(self) -> _Plan:
        """As the kernel has it."""
        layout, tiles = self.layout, self.tiles
        columns = tiles * layout.tile
        fields = FORMATS[self.kind].fields if self.kind else 1
        return _Plan(
            rows=self.rows,
            n=self.n_out,
            blocks=self.k // columns if columns else 0,
            x_columns=columns,
            width=PIECE,
            w_columns=(tiles * layout.values // fields, tiles * layout.words),
            w_bits=(16, 16),
            groups=columns // self.scaled if self.scaled else 0,
            orders=LANES * layout.span == PIECE,
        )

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """As `dispatch.Problem` has it."""
        return Cut(**stored) if stored else next(iter(self.plan.candidates(1)), Cut())


def problem_of(rows: int, packed: PackedNM, groups: int = 1) -> Problem:
    """The problem of `rows` of x with packed weights, of so many groups of scales."""
    n_out, k = packed.shape
    kind = packed.values.kind if isinstance(packed.values, Planar) else ""
    scaled = k // groups if groups > 1 else 0
    return Problem(rows, n_out, k, packed.n, packed.m, packed.block, kind, scaled)


def refuse(problem: Problem, config: Config) -> str:
    """Why the kernel does not take this, or nothing."""
    layout = problem.layout
    if not layout.span:
        return (
            f"{problem.n}:{problem.m} in blocks of {problem.block} of k={problem.k}; it takes "
            "m * block of 2 to 64, a power of two, and whole tiles of the layout"
        )
    if problem.k % problem.plan.x_columns:
        return f"k={problem.k} is no multiple of {problem.plan.x_columns}"
    if problem.kind and layout.values % (FORMATS[problem.kind].fields * PLANAR_WIDTH):
        return f"values of kind {problem.kind!r}"
    if problem.scaled and (
        problem.scaled % (LANES * layout.span) or problem.plan.x_columns % problem.scaled
    ):
        return f"groups of {problem.scaled}; it takes multiples of {LANES * layout.span}"
    if isinstance(config, Cut) and config.in_place and not problem.plan.orders:
        return f"in_place=True; it takes a span of {PIECE // LANES}, not {layout.span}"
    return problem.plan.refuse(config) or _refuse_in_place(problem.plan, config)
