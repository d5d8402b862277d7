"""Tables of docs/kernels.md: what a kernel gains, where it wins, and every row of a place."""

from collections.abc import Iterable
from typing import Any

from kernel_choices import MARGIN
from kernel_places import best, complete, current, fastest, on_device, peers, present_layout
from numerics_page import table

_SMALL, _LARGE, _ROWS = (4096, 4096), (8192, 8192), 16


def label(cell: Any) -> str:
    """What is multiplied, without how many rows.

    >>> label({"kind": "n4096 b16 gradient of x", "rows": 16})
    'n4096 gradient of x'
    """
    rows = (f"b{cell['rows']}", f"s{cell['rows']}")
    return " ".join(word for word in cell["kind"].split() if word not in rows)


def in_order(cells: Iterable[Any]) -> list[Any]:
    """By op, what is multiplied, size and rows."""

    def key(cell: Any) -> Any:
        return cell["op"], label(cell), [-side for side in cell["sizes"]], cell["rows"]

    return sorted(cells, key=key)


def _grouped(cells: Iterable[Any], size: bool) -> dict[tuple[str, ...], list[Any]]:
    groups: dict[tuple[str, ...], list[Any]] = {}
    for cell in in_order(cells):
        key = cell["op"], label(cell), *((_size(cell),) if size else ())
        groups.setdefault(key, []).append(cell)
    return groups


def _size(cell: Any) -> str:
    n, k = cell["sizes"]
    return f"{n} x {k}"


def gain_table(result: Any) -> str:
    """By op and what is multiplied, where the kernel runs by itself and how much faster it is."""
    lines = []
    for (op, what), cells in _grouped(shown(result), size=False).items():
        sizes = ", ".join(dict.fromkeys(_size(cell) for cell in cells))
        rows = ", ".join(str(r) for r in sorted({cell["rows"] for cell in cells}))
        gains = (_gains(result, cells, of) for of in ("XLA", "torch"))
        lines.append([f"`{op}`", what, sizes, rows, _taken(result, cells), *gains])
    head = ["op", "what", "n x k", "rows", "runs by itself"]
    return table([*head, "XLA's time over ours", "torch's time over ours"], lines)


def shown(result: Any) -> list[Any]:
    """Places of kernels as they are now, and of those that are gone, with all of XLA's rows."""
    cells = [cell for cell in result["cells"].values() if complete(result, cell)]
    return [c for c in cells if current(result, c) or present_layout(c["op"]) is None]


def takes(result: Any, cell: Any) -> bool:
    """Whether a kernel is ahead of all of XLA by the margin at which it is taken."""
    return on_device(best(cell)) * cell.get("margin", MARGIN) <= fastest(result, cell, "XLA")


def _taken(result: Any, cells: list[Any]) -> str:
    if present_layout(cells[0]["op"]) is None:
        return "never: deleted"
    won = sum(takes(result, cell) for cell in cells)
    if won == len(cells):
        return "at all" if won > 1 else "there"
    return f"at {won} of {len(cells)}" if won else "never"


def _gains(result: Any, cells: list[Any], of: str) -> str:
    found = [
        other / on_device(best(cell))
        for cell in cells
        if best(cell) and (other := fastest(result, cell, of)) < float("inf")
    ]
    found = [f"{gain:.2f}" for gain in sorted(found) if gain]
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else ""


def range_table(result: Any) -> str:
    """By kind and size, the rows at which ours is faster than XLA, and than torch too."""
    lines = []
    for group, cells in _grouped(shown(result), size=True).items():
        rows = [cell["rows"] for cell in cells]
        won = ([wins(result, cell, of) for cell in cells] for of in ("XLA", ""))
        lines.append([*group, ", ".join(map(str, rows)), *(_range(rows, ok) for ok in won)])
    head = ["op", "what", "n x k", "rows measured", "ahead of XLA", "ahead of XLA and torch"]
    return table(head, lines)


def wins(result: Any, cell: Any, of: str) -> bool:
    """Whether ours is faster than every peer whose name begins with `of`."""
    return on_device(best(cell)) < fastest(result, cell, of)


def _range(rows: list[int], won: list[bool]) -> str:
    ahead = [r for r, ok in zip(rows, won, strict=True) if ok]
    if not ahead:
        return "at none"
    if len(ahead) == 1:
        return f"at {ahead[0]}"
    whole = won[rows.index(ahead[0]) : rows.index(ahead[-1]) + 1]
    return f"from {ahead[0]} to {ahead[-1]}" if all(whole) else "at " + ", ".join(map(str, ahead))


def start_table(result: Any) -> str:
    """What twice the weights on each of twice the processors add to a time, and what that leaves.

    Of 16 rows, from 4096 x 4096 to 8192 x 8192: 64 and 128 blocks of threads.
    """
    lines = []
    for (op, what), cells in _grouped(shown(result), size=False).items():
        at = {tuple(c["sizes"]): c for c in cells if c["rows"] == _ROWS and best(c)}
        if any(side not in at for side in (_SMALL, _LARGE)) or not at[_LARGE].get("dense"):
            continue
        small, large = (on_device(best(at[side])) for side in (_SMALL, _LARGE))
        start = f"{2 * small - large:.1f}" if large < 2 * small else "memory binds"
        words = [f"{value:.1f}" for value in (small, large)]
        lines.append([f"`{op}`", what, *words, f"{large / small:.2f}", start])
    head = ["op", "what", "4096 x 4096", "8192 x 8192", "times as long", "start and end"]
    return table(head, lines) if lines else ""


def op_table(result: Any, op: str) -> str:
    """All places of an op, with every row that was measured there."""
    cells = in_order(cell for cell in result["cells"].values() if cell["op"] == op)
    found = [peers(result, cell) for cell in cells]
    names = list(dict.fromkeys(name for rows in found for name in rows))
    lines = []
    for cell, rows in zip(cells, found, strict=True):
        mine = best(cell)
        lines.append(
            [
                label(cell),
                _size(cell),
                str(cell["rows"]),
                f"{cell['floor']:.1f}",
                f"{on_device(mine):.1f}" if mine else "failed",
                f"{on_device(mine) / cell['floor']:.2f}" if mine else "",
                f"{mine['us']:.1f} ({mine['low']:.1f} to {mine['high']:.1f})" if mine else "",
                *(_shown(rows.get(name, {})) for name in names),
            ]
        )
    head = ["what", "n x k", "rows", "floor", "ours", "of the floor", "ours, a call"]
    return table([*head, *names], lines)


def _shown(row: dict[str, Any]) -> str:
    took = on_device(row)
    return f"{took:.1f}" if took < float("inf") else "failed" if row else ""
