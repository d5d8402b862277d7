"""The times that kernels were to reach, and how near a place's are."""

from typing import Any

from kernel_places import best, current, on_device, peers
from numerics_page import table

# Microseconds on an H100 that were aimed at.
GOALS = {
    "quantized_matmul int8 8192x8192 b16": 25,
    "quantized_matmul int4 8192x8192 b16": 14,
    "binary_matmul binary 8192x8192 b16": 8,
    "nm_matmul 2:4 8192x8192 b16": 31,
    "nm_matmul 1:8 8192x8192 b16": 14,
    "monarch_matmul n4096 b4096": 40,
    "monarch_matmul n16384 b4096": 130,
    "sign_matmul signs 4096x4096 b4096": 115,
    "kron_matvec float32 32x32 s16384": 70,
}
# An H100's bandwidth of its fastest copy, and operations a second, as measured.
H100 = {"bandwidth": 3.0e12, "bf16": 798e12, "int8": 2 * 798e12}


def floor_h100(cell: Any) -> float:
    """Microseconds that bytes or operations take an H100 at the least."""
    seconds = cell["bytes"] / H100["bandwidth"], cell["flops"] / H100.get(cell["peak"], 1e30)
    return max(seconds) * 1e6


def times_floor(cell: Any) -> float:
    """How many times the floor a place takes.

    That of the device, or an H100's where that is lower: a slow copy makes a high floor.
    """
    return on_device(best(cell)) / min(cell["floor"], floor_h100(cell))


def measured(result: Any) -> dict[str, Any]:
    """The places of the goals that were measured, with the kernels as they are now."""
    cells = {key: result["cells"][key] for key in GOALS if key in result["cells"]}
    return {key: cell for key, cell in cells.items() if current(result, cell)}


def reached(result: Any, key: str) -> bool:
    """Whether a place takes no longer than its figure, whatever the device."""
    return on_device(best(result["cells"][key])) <= GOALS[key]


def as_near(cell: Any, goal: float) -> bool:
    """Whether a place is as near to its device's floor as the figure to an H100's."""
    return times_floor(cell) <= goal / floor_h100(cell)


def goal_table(result: Any) -> str:
    """The figures to reach, and how near ours are."""
    lines, there = [], measured(result)
    for key, goal in GOALS.items():
        op, what = key.split(" ", 1)
        if key not in there:
            why = "an earlier kernel's" if key in result["cells"] else "not measured"
            lines.append([f"`{op}`", what, str(goal), why, "", "", "", ""])
            continue
        cell = there[key]
        of = goal / floor_h100(cell)
        words = ["yes" if ok else "no" for ok in (reached(result, key), as_near(cell, goal))]
        took = f"{on_device(best(cell)):.1f}" if best(cell) else "failed"
        here = f"{times_floor(cell):.2f}" if best(cell) else ""
        lines.append([f"`{op}`", what, str(goal), took, words[0], f"{of:.2f}", here, words[1]])
    head = ["op", "what", "figure, us", "ours here, us", "within it"]
    return table([*head, "figure, of an H100's floor", "ours, of the floor here", "as near"], lines)


def goal_words(result: Any, key: str) -> str:
    """A place's time beside its floor and its peers."""
    cell = result["cells"][key]
    others = ", ".join(
        f"{name} {on_device(row):.1f}"
        for name, row in peers(result, cell).items()
        if on_device(row) < float("inf")
    )
    before = "" if current(result, cell) else "an earlier kernel: "
    took = f"{on_device(best(cell)):.1f} us, {times_floor(cell):.2f} of the floor"
    return f"{before}{took}; {others}"


def near_words(result: Any) -> str:
    """Of each place of a goal, how many times the floor it takes, and may take."""
    return "; ".join(
        f"{key}: {times_floor(cell):.2f}, figure {GOALS[key] / floor_h100(cell):.2f}"
        for key, cell in measured(result).items()
    )


def all_near(result: Any) -> bool:
    """Whether every place of a goal was measured, and is as near to the floor."""
    there = measured(result)
    return len(there) == len(GOALS) and all(as_near(cell, GOALS[k]) for k, cell in there.items())
