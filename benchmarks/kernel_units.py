"""The places of the kernels' tables, most important first, and how processes share them."""

import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kernel_rows
from kernel_cases import OPS
from kernel_cell import Cell
from kernel_places import KERNELS, ranked
from kernel_rows import few

# Rows, outputs and inputs.
Place = tuple[int, int, int]

ROWS = (16, 1, 8, 64, 32)
BIG, SMALL = (8192, 8192), (4096, 4096)
# Where every configuration is tried; elsewhere the best there and a guess or two.
FIRST = (16, *BIG)
# Places after the first that come before cells other than the first two of each op.
_LATER = 8
# Outputs and inputs of the decoder of `decoding.py` at width 4096, and the kinds that it has.
DECODER = (SMALL, (11264, 4096), (4096, 11264))
DECODED = ("int4", "2:4", "1:8", "binary", "int8", "2:4 int4")
# Between these and the squares a family may be chosen where it won at all of them.
CORNERS = tuple((rows, n, k) for n, k in ((8192, 4096), (4096, 8192)) for rows in (64, 1))


class Unit(NamedTuple):
    """A place of a table.

    Attributes:
      key: under which it is stored.
      op: whose it is; empty for dense products, which all ops are compared with.
      kind: of the weights, or the place's name.
      share: what one process takes together: winners and weights stay with it.
      measure: of the results so far and the device's limits, the rows.
    """

    key: str
    op: str
    kind: str
    share: int
    measure: Callable[[dict[str, Any], dict[str, float]], dict[str, Any]]


def places(kind: str) -> Iterator[Place]:
    """Rows, outputs and inputs at which products with packed weights are measured."""
    found = [FIRST, (1, *BIG), (8, *BIG)]
    if kind in DECODED:
        found += [(rows, *size) for size in DECODER for rows in (16, 1)]
    found += [(rows, *size) for rows in ROWS for size in (SMALL, BIG)]
    found += CORNERS if kind in DECODED else ()
    yield from dict.fromkeys(found)


def at(rows: int, n: int, k: int) -> str:
    """The part of a key that says where.

    >>> at(16, 8192, 4096)
    '8192x4096 b16'
    """
    return f"{n}x{k} b{rows}"


def cell_ops() -> dict[str, Any]:
    """By op, the modules of those whose operands are not an x of few rows and packed weights.

    Each has `CELLS`, by place what makes a `Cell`, the most important first; and may have `MARGIN`,
    how many times as fast as XLA its kernel must be.
    """
    found = {}
    for path in sorted(Path(__file__).parent.glob("kernel_cases_*.py")):
        name = path.stem.removeprefix("kernel_cases_")
        folders = sorted(f.name for f in KERNELS.glob(f"{name}*") if (f / "api.py").exists())
        found[folders[0] if folders else name] = importlib.import_module(path.stem)
    return found


def units(op: str = "") -> list[Unit]:
    """All of an op, or of all, with the dense products that they are compared with."""
    packed = {o: OPS[o] for o in OPS if op in ("", o)}
    kinds = [(o, kind) for o in packed for kind in packed[o]]
    cells = {o: module for o, module in cell_ops().items() if op in ("", o)}
    of_kind = {pair: list(places(pair[1])) for pair in kinds}
    order = list(dict.fromkeys(p for found in of_kind.values() for p in found))
    # As every kind has it: what some kinds do not have comes where others have it.
    order.sort(key=lambda p: min(f.index(p) for f in of_kind.values() if p in f))
    made: list[Unit] = []
    for i, place in enumerate(order):
        made.append(Unit(f"dense {at(*place)}", "", "", -1 - i, functools.partial(_dense, place)))
        for share, (o, kind) in enumerate(kinds):
            if place in of_kind[o, kind]:
                rows = functools.partial(_skinny, o, kind, place)
                made.append(Unit(f"{o} {kind} {at(*place)}", o, kind, share, rows))
        if i == 0:
            made += _of_cells(cells, len(kinds), slice(0, 2))
        if i == _LATER:
            made += _of_cells(cells, len(kinds), slice(2, None))
    # An op of cells alone has no place.
    return made if order else _of_cells(cells, len(kinds), slice(0, None))


def _of_cells(modules: dict[str, Any], share: int, which: slice) -> list[Unit]:
    made = []
    for i, (o, module) in enumerate(modules.items()):
        for name in list(module.CELLS)[which]:
            rows = functools.partial(_cell, o, module, name)
            made.append(Unit(f"{o} {name}", o, name, share + i, rows))
    return made


def _dense(place: Place, result: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    del result, limits
    return kernel_rows.dense(*place)


def _skinny(
    op: str,
    kind: str,
    place: Place,
    result: dict[str, Any],
    limits: dict[str, float],
) -> dict[str, Any]:
    best = _best(result, f"{op} {kind} {at(*FIRST)}")
    cells = kernel_rows.skinny(op, kind, *place, best)
    return {**kernel_rows.measure(cells, limits), "dense": at(*place)}


def _cell(
    op: str, module: Any, name: str, result: dict[str, Any], limits: dict[str, float]
) -> dict[str, Any]:
    with kernel_rows.alone():
        cell: Cell = module.CELLS[name]()
    best = _best(result, f"{op} {next(iter(module.CELLS))}")
    rows = kernel_rows.measure([cell._replace(configs=few(cell.configs, best))], limits)
    margin = getattr(module, "MARGIN", None)
    return rows if margin is None else {**rows, "margin": margin}


def _best(result: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = result["cells"].get(key, {}).get("ours", [])
    return [o["config"] for o in ranked(found)[:2]]
