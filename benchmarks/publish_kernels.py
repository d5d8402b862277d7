"""What is claimed of the kernels, and what docs/kernels.md has of stored results."""

from collections.abc import Callable, Iterable
from typing import Any

from claim import Claim, machine, stored, verdict
from kernel_choices import MARGIN
from kernel_goals import GOALS, all_near, goal_table, goal_words, near_words, reached
from kernel_places import best, complete, current, fastest, on_device, peers, present_layout
from kernel_tables import gain_table, op_table, range_table, start_table
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


def kernels_summary() -> str:
    """What stands at the beginning of docs/kernels.md."""
    parts = []
    for record in _records():
        result = record["result"]
        parts.append(f"On {machine(record)}:\n\n{gain_table(result)}")
    return "\n\n".join(parts) or "Not run."


def kernels_page() -> str:
    """What stands at the end of docs/kernels.md."""
    parts = []
    for record in _records():
        result = record["result"]
        ops = sorted({cell["op"] for cell in result["cells"].values()})
        parts.append(f"## {record['device']}\n\n{machine(record)}; {_limits(result)}.")
        parts.append(
            "The figures that were aimed at, which are for an H100: whether the time here is within"
            " the figure, and whether it is as near to the floor here as the figure is to an "
            f"H100's:\n\n{goal_table(result)}"
        )
        if starts := start_table(result):
            parts.append(
                "16 rows, microseconds: 8192 x 8192 has twice the weights for each of twice the "
                "processors. What does not grow is start and end; where it takes more than twice "
                f"as long, memory binds:\n\n{starts}"
            )
        parts.append(f"Rows at which the kernel is faster:\n\n{range_table(result)}")
        parts += [f"`{op}`{_about(result, op)}:\n\n{op_table(result, op)}" for op in ops]
    return "\n\n".join([*parts, "## Counters", profile_table()]) if parts else "Not run."


def _records() -> list[Any]:
    """What was stored, the device with most places first."""
    return sorted(stored(NAME), key=lambda record: -len(record["result"]["cells"]))


def _about(result: Any, op: str) -> str:
    if present_layout(op) is None:
        return ", a kernel that lost and is deleted"
    cells = [cell for cell in result["cells"].values() if cell["op"] == op]
    if all(current(result, cell) for cell in cells):
        return ""
    return ", measured with an earlier layout of the weights: not the kernel that is here"


def _limits(result: Any) -> str:
    words = [f"a copy reads and writes {result['bandwidth'] / 1e12:.2f} TB/s"]
    words += [
        f"a dense {name} product makes {result[name] / 1e12:.0f}e12 operations a second"
        for name in ("bf16", "float32")
        if name in result
    ]
    return ", ".join(words)


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
    dense = [fastest(result, cell, name) for name in ("XLA dense", "torch dense")]
    return min(filter(None, dense), default=0.0) / on_device(best(cell))


def _gains(result: Any) -> list[tuple[float, str]]:
    """XLA's best time over ours, least first, wherever the kernel of now was measured."""
    return sorted(
        (fastest(result, cell, "XLA") / on_device(best(cell)), name)
        for name, cell in result["cells"].items()
        if current(result, cell) and complete(result, cell)
    )


def _gain_words(result: Any) -> str:
    gains = _gains(result)
    ahead = sum(gain >= MARGIN for gain, _ in gains)
    behind = ", ".join(f"{name} {gain:.2f}x" for gain, name in gains if gain < MARGIN)
    return f"at {ahead} of {len(gains)} places" + (f"; not at {behind}" if behind else "")


def _of(key: str, words: Callable[[Any, str], str]) -> Callable[[Any], str]:
    return lambda result: words(result, key)


def _goal_claims() -> Iterable[Claim]:
    for key, goal in GOALS.items():
        op, what = key.split(" ", 1)
        yield Claim(
            f"`{op}`, {what}, takes at most {goal} us, a figure for an H100, on the device that is "
            "named here",
            "ours", f"{_COMMAND} --op={op}", NAME, _of(key, goal_words),
            _of(key, lambda result, key: verdict(reached(result, key))), [key],
        )  # fmt: skip
    yield Claim(
        "Each of these is as near to the floor of its device as its figure is to an H100's",
        "ours", _COMMAND, NAME, near_words, lambda r: verdict(all_near(r)), [next(iter(GOALS))],
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
        "A kernel is at least a tenth faster than everything of XLA, dense products with it, at "
        "every place that was measured",
        "ours", _COMMAND, NAME, _gain_words,
        lambda r: verdict(all(gain >= MARGIN for gain, _ in _gains(r))),
        ["quantized_matmul int8 8192x8192 b16"],
    ),
]  # fmt: skip
