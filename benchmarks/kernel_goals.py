"""The times that kernels were to reach, and how near a place's are."""

from typing import Any

from kernel_places import best, on_device, peers

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


def allowed(cell: Any, goal: float) -> float:
    """Microseconds that stand to this device's floor as the goal does to an H100's.

    Never more than the goal: a slow copy makes a high floor.
    """
    seconds = cell["bytes"] / H100["bandwidth"], cell["flops"] / H100.get(cell["peak"], 1e30)
    return goal * min(1.0, cell["floor"] / (max(seconds) * 1e6))


def reached(result: Any, key: str) -> bool:
    """Whether a place takes no longer than is allowed on its device."""
    cell = result["cells"][key]
    return on_device(best(cell)) <= allowed(cell, GOALS[key])


def goal_words(result: Any, key: str) -> str:
    """A place's time beside what is allowed, its floor and its peers."""
    cell = result["cells"][key]
    took, limit = on_device(best(cell)), allowed(cell, GOALS[key])
    others = ", ".join(
        f"{name} {on_device(row):.1f}"
        for name, row in peers(result, cell).items()
        if on_device(row) < float("inf")
    )
    return (
        f"{took:.1f} us, {took / cell['floor']:.2f} of the floor {cell['floor']:.1f}; allowed here "
        f"{limit:.1f}; {others}"
    )
