"""What was measured of kernels, by kind of device: the tables in `<op>/configs`."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Protocol

import jax

from jaxlab.kernels.plan import STEPS

VERSION = jax.__version_info__[:2]


def file_name(kind: str) -> str:
    """Of the stored configurations of a kind of device."""
    return kind.replace(" ", "-") + ".json"


@functools.cache
def _table(op: str, kind: str) -> dict[str, Any]:
    file = resources.files("jaxlab.kernels") / op / "configs" / file_name(kind)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Problem(Protocol):
    """What the choice of an implementation looks at."""

    @property
    def rows(self) -> int:
        """Of x."""
        ...

    @property
    def family(self) -> str:
        """What may be measured at some sizes and taken at those between: a kind of weights."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs of the dense matrix."""
        ...

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        ...

    @property
    def layout_version(self) -> int:
        """Of packed weights: what was measured with another does not count."""
        ...

    def _replace(self, *, rows: int) -> "Problem":
        """The same with another number of rows."""
        ...

    def cut(self, stored: Mapping[str, Any] | None) -> Any:
        """How its kernel is cut: a stored configuration, or else by a rule of thumb."""
        ...


def stored(op: str, kind: str, problem: Problem) -> dict[str, Any] | None:
    """What was measured for a problem: `implementation`, `config`, `us`, `xla_us`; or None.

    For what was not measured itself, the table's `won` has ranges of rows, outputs and inputs for a
    family, whose corners were measured and in which the kernel won wherever it was; within one the
    kernel is the choice, cut as with the next larger number of rows that was measured at this size,
    if one was. Entries count from the version of jax on that they were measured with, and for the
    layout of packed weights that they were.
    """
    table = _table(op, kind)
    measured_with = tuple(int(v) for v in table.get("jax", "99.0").split(".")[:2])
    if measured_with > VERSION or table.get("layout") != problem.layout_version:
        return None
    entries = table.get("entries", {})
    if entry := entries.get(problem.key):
        return entry
    where = {"rows": problem.rows, "n": problem.sizes[0], "k": problem.sizes[1]}
    for won in table.get("won", {}).get(problem.family, ()):
        if all(won[axis][0] <= at <= won[axis][1] for axis, at in where.items()):
            steps = (step for step in STEPS if step > problem.rows)
            larger = (entries.get(problem._replace(rows=step).key) for step in steps)
            config = next((entry["config"] for entry in larger if entry), None)
            return {"implementation": won["implementation"], "config": config}
    return None
