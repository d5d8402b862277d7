"""What bounds each kernel, for docs/kernels.md, of the stored counters."""

from typing import Any

import kernel_counters as counters
from claim import stored
from numerics_page import table

NAME = "kernel_profile"
_HEAD = ["kernel", "us, cold caches", "nearest its ceiling", "then", "instructions a weight"]
_HEAD += ["issue slots", "warps wait for", "registers", "memory read, MB", "other kernels, us"]


def bounds(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an entry, what the table has."""
    launch = entry["counters"]
    near = [f"{name} {percent:.0f} %" for name, percent in counters.ceilings(launch).items()]
    executed, weights = counters.instructions(launch), entry.get("weights")
    # Counted by warps of 32.
    each = f"{32 * executed / weights:.2f}" if executed and weights else ""
    waits = [f"{name} {value:.2f}" for name, value in counters.stalls(launch).items()]
    slots = counters.ceilings(launch).get("issue slots")
    read = launch.get("dram__bytes_read.sum")
    registers = launch.get("launch__registers_per_thread")
    return {
        "us": f"{counters.seconds(launch) * 1e6:.1f}",
        "nearest": near[0] if near else "",
        "then": ", ".join(near[1:3]),
        "each": each,
        "slots": "" if slots is None else f"{slots:.0f} %",
        "waits": ", ".join(waits[:3]),
        "registers": "" if registers is None else f"{registers:.0f}",
        "read": "" if read is None else f"{read / 1e6:.1f}",
        "others": ", ".join(f"{name} {took * 1e6:.1f}" for name, took in entry["others"]),
    }


def line(key: str, entry: dict[str, Any]) -> str:
    """One line for the terminal."""
    found = bounds(entry)
    return (
        f"{key}: {found['us']} us, {found['nearest']} (then {found['then']}), "
        f"{found['each'] or 'no count of'} instructions a weight, waits for {found['waits']}"
    )


def profile_table() -> str:
    """The table of every device that was profiled."""
    parts = []
    for record in stored(NAME):
        cells = record["result"]["cells"]
        rows = [[key, *bounds(entry).values()] for key, entry in cells.items()]
        parts.append(f"Counters of one call on {record['device']}:\n\n{table(_HEAD, rows)}")
    return "\n\n".join(parts) or "Counters: not read."
