"""How the stored rows of a place in the kernels' tables are read."""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parents[1] / "jaxlab" / "kernels"


def on_device(timed: dict[str, Any]) -> float:
    """Microseconds of the kernels alone, or where that is not known of the call."""
    return timed.get("device_us", timed.get("us", float("inf")))


def ranked(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Configurations that ran and were right, fastest first."""
    return sorted((o for o in found if "us" in o), key=on_device)


def best(cell: dict[str, Any]) -> dict[str, Any]:
    """The fastest configuration; empty where none was right."""
    return next(iter(ranked(cell["ours"])), {})


def peers(result: Any, cell: Any) -> dict[str, dict[str, Any]]:
    """Every other row of a place, by name: XLA's first, dense products with them."""
    dense = result["dense"].get(cell.get("dense"), {})
    xla = {**({"dense bf16": dense["xla"]} if dense else {}), **cell["xla"]}
    torch = {**dense.get("torch", {}), **cell["torch"]}
    return {
        **{f"XLA {name.removeprefix('xla').strip()}".strip(): row for name, row in xla.items()},
        **{f"torch {name.removeprefix('torch').strip()}": row for name, row in torch.items()},
    }


def floor(cell: Any, limits: Any) -> float:
    """Microseconds that bytes or operations take at the least.

    Args:
      cell: with "bytes", "flops" and "peak".
      limits: "bandwidth", and operations a second by peak; of one that is missing there is none.
    """
    operations = cell["flops"] / limits.get(cell["peak"], float("inf"))
    return round(max(cell["bytes"] / limits["bandwidth"], operations) * 1e6, 2)


def layout_of(result: Any, cell: Any) -> int:
    """Version of the layout of weights that a place was measured with."""
    # Places have not always said theirs.
    return cell.get("layout", result.get("layout", 1))


def present_layout(op: str) -> int | None:
    """That of the op's kernel, or None where it has none any more."""
    if not (KERNELS / op / "api.py").exists():
        return None
    return importlib.import_module(f"jaxlab.kernels.{op}").Problem.layout_version


def current(result: Any, cell: Any) -> bool:
    """Whether a place was measured with the layout that its kernel has now."""
    return layout_of(result, cell) == present_layout(cell["op"])


def complete(result: Any, cell: Any) -> bool:
    """Whether the dense product that a place is compared with was measured, too."""
    place = cell.get("dense")
    return place is None or bool(result["dense"].get(place, {}).get("xla"))


def fastest(result: Any, cell: Any, of: str = "") -> float:
    """Microseconds of the fastest peer whose name begins with `of`; 0 where there is none."""
    rows = peers(result, cell).items()
    return min((on_device(row) for name, row in rows if name.startswith(of)), default=0.0)
