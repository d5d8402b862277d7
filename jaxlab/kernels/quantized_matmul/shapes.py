"""Which problems the kernel takes, and which cuts are worth a try."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, Planar
from jaxlab.kernels.plan import Config, Plan, steps_of


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

    layout_version = LAYOUT_VERSION

    @property
    def block(self) -> int:
        """How many k a block of the packing has."""
        return FORMATS[self.kind].fields * self.width

    @property
    def family(self) -> str:
        """What is measured together."""
        return f"{self.kind}/g{self.group}/w{self.width}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.n, self.k

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        return f"{self.family}/{self.n}x{self.k}/b{steps_of(self.rows)}"

    @property
    def plan(self) -> Plan:
        """As the kernel has it."""
        return Plan(
            rows=self.rows,
            n=self.n,
            blocks=self.k // self.block,
            x_columns=self.block,
            width=self.width,
            w_columns=(self.width,),
            w_bits=(16,),
            groups=self.block // self.group if self.group else 0,
        )

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """As `dispatch.Problem` has it."""
        return self.plan.cut(stored)


def problem_of(rows: int, packed: Planar, groups: int) -> Problem:
    """The problem of `rows` of x with a packed W of so many groups of scales."""
    n, k = packed.shape
    return Problem(rows, n, k, packed.kind, k // groups if groups > 1 else 0, packed.width)


def refuse(problem: Problem, config: Config) -> str:
    """Why the kernel does not take this, or nothing."""
    if problem.k % problem.block:
        return f"k={problem.k} is no multiple of {problem.block}, the packing's block"
    if problem.group and (problem.group % problem.width or problem.block % problem.group):
        return (
            f"groups of {problem.group}; it takes multiples of {problem.width} that divide "
            f"{problem.block}"
        )
    return problem.plan.refuse(config)
