"""Which problems the kernel takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.plan import Config, Plan, steps_of


class Problem(NamedTuple):
    """A product's sizes: (rows, k) with (n_out, k), of which n of every m are kept."""

    rows: int
    n_out: int
    k: int
    n: int
    m: int
    block: int
    kind: str
    width: int

    @property
    def family(self) -> str:
        """What is measured together."""
        return f"{self.n}:{self.m}/{self.kind}/w{self.width}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.n_out, self.k

    @property
    def key(self) -> str:
        """Under which a measurement is stored; rows in steps, as they cost the same."""
        return f"{self.family}/{self.n_out}x{self.k}/b{steps_of(self.rows)}"

    @property
    def codes(self) -> int:
        """Groups of a row in one block of codes."""
        return FORMATS[self.kind].fields * self.width

    @property
    def plan(self) -> Plan:
        """As the kernel has it."""
        return Plan(
            rows=self.rows,
            n=self.n_out,
            blocks=self.k // (self.codes * self.m),
            x_columns=self.codes * self.m,
            width=self.width,
            w_columns=(*(self.codes,) * self.n, self.width),
            w_bits=(16,) * (self.n + 1),
            groups=0,
        )

    def cut(self, stored: Mapping[str, Any] | None) -> Config:
        """As `dispatch.Problem` has it."""
        return self.plan.cut(stored)


def problem_of(rows: int, code: Planar, n: int, m: int, block: int) -> Problem:
    """The problem of `rows` of x with planes of these codes."""
    n_out, groups = code.shape
    return Problem(rows, n_out, groups * m * block, n, m, block, code.kind, code.width)


def refuse(problem: Problem, config: Config) -> str:
    """Why the kernel does not take this, or nothing."""
    if problem.block != 1:
        return f"blocks of {problem.block} entries; it takes single ones"
    if problem.k % (problem.codes * problem.m):
        return f"k={problem.k} is no multiple of {problem.codes * problem.m}"
    return problem.plan.refuse(config)
