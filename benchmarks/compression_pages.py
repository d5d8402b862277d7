"""The generated parts of docs/reverse_sparsification.md and docs/low_rank_digits.md."""

import statistics
import textwrap
from typing import Any

from claim import machine, spread, stored
from numerics_page import table
from publish_compression import (
    PRODUCT,
    REVERSE,
    REVERSE_SMALL,
    STARTS,
    SWITCHED,
    VARIANTS,
    above,
    accuracies,
    bits,
    closed,
    jumps,
    low_rank,
    runs,
    speed_ratio,
    with_error,
)

_METHODS = ("SVD", "ASVD", "whitening", "LoRD uncentred", "LoRD centred")
_RANKS = (4, 8, 12, 16, 24)
_FORMS = ("monarch", "blocked")


def low_rank_page() -> str:
    """What stands between the markers of docs/low_rank_digits.md."""
    found = [
        _accuracy_section(record, start) for start in STARTS for record in stored(low_rank(start))
    ]
    return "\n\n".join(found) or "Not run."


def _accuracy_section(record: dict[str, Any], start: str) -> str:
    result = record["result"]
    dense = [seed["dense"] for seed in result["seeds"].values()]
    rows = [[m, *(_percent(accuracies(result, m, r)) for r in _RANKS)] for m in _METHODS]
    about = (
        f"Kernels started at {STARTS[start]}: held-out accuracy in percent, mean ± standard "
        f"deviation of {len(dense)} seeds; dense {_percent(dense)}. Machine: {machine(record)}."
    )
    return "\n\n".join([_wrapped(about), table(["rank", *map(str, _RANKS)], rows)])


def _percent(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def reverse_page() -> str:
    """What stands between the markers of docs/reverse_sparsification.md."""
    parts = [part for record in stored(REVERSE) for part in _training(record)]
    parts += [part for record in stored(PRODUCT) for part in _products(record)]
    for record in stored(REVERSE_SMALL):
        # Its times are those of a machine that others use too.
        quality = _training(record)[1:4]
        parts += ["## The small decoder", *quality]
    # Tables and headings are lines of their own, and stay.
    return "\n\n".join(p if p[0] in "|#" else _wrapped(p) for p in parts) or "Not run."


def _training(record: dict[str, Any]) -> list[str]:
    result = record["result"]
    first = runs(result, "dense")[0]
    data, steps = first["data"], first["steps"]
    about = (
        f"{steps} steps; {data['train_items'] / 1e6:.1f} million bytes of Python "
        f"{data['python']}'s standard library to train on, {data['eval_targets']} bytes of "
        f"{len(data['eval_modules'])} other modules held out; {len(bits(result, 'dense'))} seeds. "
        f"Machine: {machine(record)}."
    )
    head = ["variant", "bits per byte", "above dense", "below Monarch", "gap closed"]
    rows = [[v, spread(bits(result, v)), *_against(result, v)] for v in VARIANTS]
    notes = (
        "Differences are paired by seed, with their standard error; the gap is that between "
        "Monarch and dense."
    )
    speeds = [_speeds(result, v) for v in VARIANTS]
    cost = ["variant", "steps per second", "of dense", "stored, MB", "change of loss at the switch"]
    return ["## Bits per byte", about, table(head, rows), notes, "## Time", table(cost, speeds)]


def _against(result: Any, variant: str) -> list[str]:
    over = above(result, variant, "dense") if variant in VARIANTS[1:] else []
    under = above(result, "monarch", variant) if variant in SWITCHED else []
    share = f"{round(closed(result, variant))} %" if under else ""
    return [*(with_error(x) if x else "" for x in (over, under)), share]


def _speeds(result: Any, variant: str) -> list[str]:
    found = runs(result, variant)
    speed = statistics.mean(run["steps_per_second"] for run in found)
    changes = jumps(result, variant)
    return [
        variant,
        f"{speed:.2f}",
        f"{speed_ratio(result, variant):.2f}",
        f"{found[0]['bytes']['file'] / 1e6:.0f}",
        ", ".join(f"{x:.1e}" for x in changes),
    ]


def _products(record: dict[str, Any]) -> list[str]:
    result = record["result"]
    head = ["layer", "pass", "dense, us", "floor, us"]
    for form in _FORMS:
        head += [f"{form}, us", "of dense"]
    rows = []
    for key, cell in result["cells"].items():
        for kind in ("forward", "training"):
            dense = cell[f"dense, {kind}"]["microseconds"]
            row = [key, kind, f"{dense:.0f}", f"{cell['share'] * dense:.0f}"]
            for form in _FORMS:
                found = cell[f"{form}, {kind}"]
                low, high = found["spread"]
                row += [
                    f"{found['microseconds']:.0f}",
                    f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})",
                ]
            rows.append(row)
    about = (
        f"One layer, {result['tokens']} tokens, {result['dtype']}: medians, and the ratios' range "
        f"over the rounds. Training is the forward and the backward pass. Machine: "
        f"{machine(record)}."
    )
    return ["## One product", about, table(head, rows)]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)
