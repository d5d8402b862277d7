"""What is claimed of the kernels, and the tables of docs/kernels.md."""

from collections.abc import Callable, Iterable
from typing import Any

from claim import Claim, machine, stored, verdict
from kernel_goals import GOALS, allowed, goal_words, reached
from kernel_places import best, on_device, peers
from numerics_page import table
from publish_kernel_profile import profile_table

NAME = "kernels"
_COMMAND = "python benchmarks/kernels.py"
# Of section 7 of what the kernels were written to: pairs, faster first.
_RANKING = (("int4", "int8"), ("int8", "dense bf16"), ("2:4", "dense bf16"))
_RANKED = {
    "int4": "quantized_matmul int4 8192x8192 b8",
    "int8": "quantized_matmul int8 8192x8192 b8",
    "2:4": "nm_matmul 2:4 8192x8192 b8",
}
_MONARCH = "monarch_matmul n4096 b4096"


def kernels_page() -> str:
    """What stands between the markers of docs/kernels.md."""
    parts = []
    for record in stored(NAME):
        result = record["result"]
        ops = dict.fromkeys(cell["op"] for cell in result["cells"].values())
        parts.append(f"Machine: {machine(record)}; {_limits(result)}.")
        parts += [f"`{op}`:\n\n{op_table(result, op)}" for op in ops]
        parts.append(
            f"Where a kernel wins, of the rows that were measured:\n\n{range_table(result)}"
        )
        parts.append(
            "The figures that were aimed at on an H100, and as many times the floor of this "
            f"device:\n\n{goal_table(result)}"
        )
    return "\n\n".join([*parts, profile_table()]) if parts else "Not run."


def _limits(result: Any) -> str:
    words = [f"a copy reads and writes {result['bandwidth'] / 1e12:.2f} TB/s"]
    words += [
        f"a dense {name} product makes {result[name] / 1e12:.0f}e12 operations a second"
        for name in ("bf16", "float32")
        if name in result
    ]
    return ", ".join(words)


def op_table(result: Any, op: str) -> str:
    """All places of an op, with every row that was measured there."""
    cells = [cell for cell in result["cells"].values() if cell["op"] == op]
    found = [peers(result, cell) for cell in cells]
    names = list(dict.fromkeys(name for rows in found for name in rows))
    lines = []
    for cell, rows in zip(cells, found, strict=True):
        mine = best(cell)
        n, k = cell["sizes"]
        lines.append(
            [
                cell["kind"],
                f"{n} x {k}",
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


def range_table(result: Any) -> str:
    """By kind and size, the rows at which ours is faster than XLA, and than torch too."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for cell in result["cells"].values():
        kind = cell["kind"] if cell.get("dense") else best(cell).get("family", "")
        n, k = cell["sizes"]
        groups.setdefault((cell["op"], kind, f"{n} x {k}"), []).append(cell)
    lines = []
    for group, cells in groups.items():
        ordered = sorted(cells, key=lambda cell: cell["rows"])
        rows = [cell["rows"] for cell in ordered]
        lines.append(
            [
                *group,
                ", ".join(map(str, rows)),
                _range(rows, [wins(result, cell, "XLA") for cell in ordered]),
                _range(rows, [wins(result, cell, "") for cell in ordered]),
            ]
        )
    head = ["op", "what", "n x k", "rows measured", "ahead of XLA", "ahead of XLA and torch"]
    return table(head, lines)


def wins(result: Any, cell: Any, of: str) -> bool:
    """Whether ours is faster than every peer whose name begins with `of`."""
    others = [on_device(row) for name, row in peers(result, cell).items() if name.startswith(of)]
    return on_device(best(cell)) < min(others, default=0.0)


def _range(rows: list[int], won: list[bool]) -> str:
    ahead = [r for r, ok in zip(rows, won, strict=True) if ok]
    if not ahead:
        return "nowhere"
    if len(ahead) == 1:
        return f"at {ahead[0]}"
    whole = won[rows.index(ahead[0]) : rows.index(ahead[-1]) + 1]
    return f"from {ahead[0]} to {ahead[-1]}" if all(whole) else "at " + ", ".join(map(str, ahead))


def goal_table(result: Any) -> str:
    """The figures to reach, and how near ours are."""
    lines = []
    for key, goal in GOALS.items():
        if key not in result["cells"]:
            lines.append([key, str(goal), "", "", "", "not measured"])
            continue
        cell = result["cells"][key]
        times = allowed(cell, goal) / cell["floor"]
        took = on_device(best(cell))
        here = f"{times * cell['floor']:.1f} ({times:.2f} of the floor)"
        found = f"{took:.1f} ({took / cell['floor']:.2f})" if best(cell) else "failed"
        lines.append([key, str(goal), here, found, f"{cell['floor']:.1f}", _word(result, key)])
    head = ["place", "goal on an H100", "as much here", "ours (of the floor)", "floor", ""]
    return table(head, lines)


def _word(result: Any, key: str) -> str:
    return "reached" if reached(result, key) else "missed"


def ratios(result: Any) -> dict[str, list[float]]:
    """Of the pairs that are ranked, how many times as fast the first is, in each repeat."""
    places = {name: result["cells"][key] for name, key in _RANKED.items()}
    runs = {name: _runs(best(cell)) for name, cell in places.items()}
    # The faster of XLA's and torch's.
    rows = peers(result, places["int8"])
    dense = [rows[name] for name in ("XLA dense bf16", "torch bf16") if name in rows]
    runs["dense bf16"] = _runs(min(dense, key=on_device, default={}))
    return {
        f"{fast} before {slow}": [b / a for a, b in zip(runs[fast], runs[slow], strict=True)]
        for fast, slow in _RANKING
    }


def _runs(row: dict[str, Any]) -> list[float]:
    return row.get("device_runs") or row.get("runs") or []


def _ranking_words(result: Any) -> str:
    return "; ".join(
        f"{pair} {min(found):.2f}x to {max(found):.2f}x" if found else f"{pair}: no repeats stored"
        for pair, found in ratios(result).items()
    )


def _ranking_holds(result: Any) -> str:
    return verdict(all(found and min(found) >= 1.25 for found in ratios(result).values()))


def _monarch_gain(result: Any) -> float:
    cell = result["cells"][_MONARCH]
    rows = peers(result, cell)
    of = ("XLA dense", "torch dense")
    dense = [on_device(row) for name, row in rows.items() if name.startswith(of)]
    return min(dense, default=0.0) / on_device(best(cell))


def _least_gain(result: Any) -> tuple[float, str]:
    gains = [
        (_best_of(result, cell, "XLA") / on_device(best(cell)), name)
        for name, cell in result["cells"].items()
    ]
    return min(gains)


def _ahead(result: Any) -> int:
    cells = result["cells"].values()
    return sum(_best_of(result, c, "XLA") >= 1.1 * on_device(best(c)) for c in cells)


def _best_of(result: Any, cell: Any, of: str) -> float:
    rows = peers(result, cell).items()
    return min((on_device(row) for name, row in rows if name.startswith(of)), default=0.0)


def _of(key: str, words: Callable[[Any, str], str]) -> Callable[[Any], str]:
    return lambda result: words(result, key)


def _goal_claims() -> Iterable[Claim]:
    for key, goal in GOALS.items():
        op, what = key.split(" ", 1)
        yield Claim(
            f"`{op}`, {what}, takes at most {goal} us on an H100, and on another device as many "
            "times the floor",
            "ours", f"{_COMMAND} --op={op}", NAME, _of(key, goal_words),
            _of(key, lambda result, key: verdict(reached(result, key))), [key],
        )  # fmt: skip


KERNEL_CLAIMS = [
    *_goal_claims(),
    Claim(
        "At 8192 x 8192 and 8 rows int4 is ahead of int8, int8 of dense bfloat16 and 2:4 of dense "
        "bfloat16, each by a quarter in each of 5 repeats",
        "ours", _COMMAND, NAME, _ranking_words, _ranking_holds, [*_RANKED.values()],
    ),
    Claim(
        "A Monarch product of n = 4096 with 4096 rows takes at most half of the dense one's time",
        "ours", f"{_COMMAND} --op=monarch_matmul", NAME,
        lambda r: f"{_monarch_gain(r):.2f}x of the faster dense product's speed",
        lambda r: verdict(_monarch_gain(r) >= 2), [_MONARCH],
    ),
    Claim(
        "A kernel takes at least a tenth less than everything of XLA, dense products with it, at "
        "every shape that was measured",
        "ours", _COMMAND, NAME,
        lambda r: (
            f"at {_ahead(r)} of {len(r['cells'])} shapes; least gain {_least_gain(r)[0]:.2f}x "
            f"({_least_gain(r)[1]})"
        ),
        lambda r: verdict(_ahead(r) == len(r["cells"])),
        ["quantized_matmul int8 8192x8192 b16"],
    ),
]  # fmt: skip
