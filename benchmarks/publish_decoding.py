"""The table of docs/generation.md: tokens per second of greedy decoding."""

import statistics
from typing import Any

from claim import machine, stored
from numerics_page import table

NAMES = ("decoding-large", "decoding-small")


def decoding_page() -> str:
    """What stands between the markers of docs/generation.md."""
    parts = []
    for record in (r for name in NAMES for r in stored(name)):
        section = record["result"]["section"]
        sizes = ", ".join(f"{k} {section[k]}" for k in ("d_model", "depth", "d_mlp", "vocab_size"))
        parts += [f"Machine: {machine(record)}. Model: {sizes}.", _table(record["result"])]
    return "\n\n".join(parts) or "Not run."


def _table(result: Any) -> str:
    head = ["method", "batch", "MB", "tokens/s", "dense tokens/s", "ratio", "most, tokens/s"]
    rows = []
    for cell in result["cells"].values():
        ratios = sorted(cell["ratio"])
        rows.append(
            [
                cell["method"],
                str(cell["batch"]),
                f"{cell['nbytes'] / 1e6:.1f}",
                f"{statistics.median(cell['tokens_per_second']):.0f}",
                f"{statistics.median(cell['dense']):.0f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                "" if cell["most"] is None else f"{cell['most']:.0f}",
            ]
        )
    return table(head, rows)
