"""The one-shot pruning table of docs/mfac_pruning.md, what was claimed of it, and the verdicts."""

import statistics
import textwrap
from collections.abc import Iterable
from typing import Any

from claim import Claim, machine, stored, verdict
from numerics_page import table
from publish_compression import at_least

NAME = "mfac_pruning"
SPARSITIES = (0.8, 0.9, 0.95)
TRAININGS = ("AdamW", "SGD-momentum")
MAGNITUDE, RECOMPUTED = "magnitude", "blocks of 128, 8 recomputations"
# Labels, and the settings of the phase.
METHODS: dict[str, dict[str, Any]] = {
    MAGNITUDE: {"saliency": "magnitude"},
    "saliency only, blocks of 128": {"recomputations": 1, "update": False},
    "blocks of 128, one pass": {"recomputations": 1},
    RECOMPUTED: {"recomputations": 8},
    "everything one block, 8 recomputations": {"block": 0, "recomputations": 8},
    "blocks of 128, 8 recomputations, joint": {"recomputations": 8, "joint": True},
}
# n of every m inputs; no settings is the rule `nm` by magnitude.
GROUPS = ((2, 4), (1, 4), (1, 8), (1, 16))
GROUPS_BY_SIZE, GROUPS_RECOMPUTED = "N:M by magnitude", "N:M, blocks of 128, recomputed"
GROUP_METHODS: dict[str, dict[str, Any] | None] = {
    GROUPS_BY_SIZE: None,
    "N:M, blocks of 128, one pass": {"recomputations": 1},
    GROUPS_RECOMPUTED: {"recomputations": 16},
}


def accuracies(result: Any, training: str, method: str, sparsity: float | str) -> list[float]:
    """Held-out accuracy of every seed that has it."""
    key = f"{method}, {sparsity}"
    return [c[key] for c in _cells(result, training) if key in c]


def margins(result: Any, training: str, method: str, sparsity: float | str) -> list[float]:
    """By seed, how far a method is above magnitude."""
    keys = [f"{m}, {sparsity}" for m in (method, MAGNITUDE)]
    cells = [c for c in _cells(result, training) if all(key in c for key in keys)]
    return [c[keys[0]] - c[keys[1]] for c in cells]


def mfac_page() -> str:
    """What stands between the markers of docs/mfac_pruning.md."""
    parts = [part for record in stored(NAME) for part in _sections(record)]
    return "\n\n".join(parts) or "Not run."


def _cells(result: Any, training: str) -> list[Any]:
    return [c for key, c in result["cells"].items() if key.startswith(f"{training}, seed ")]


def _sections(record: dict[str, Any]) -> list[str]:
    result, parts = record["result"], []
    for training in TRAININGS:
        dense = [c["dense"] for c in _cells(result, training)]
        if not dense:
            continue
        about = (
            "Held-out accuracy in percent, mean ± standard deviation over the seeds; dense "
            f"{_percent(dense)}. Machine: {machine(record)}."
        )
        sparsities = {f"{s:.2f}": s for s in SPARSITIES}
        groups = {f"{n}:{m}": f"{n}:{m}" for n, m in GROUPS}
        parts += [
            f"## Trained by {training}",
            textwrap.fill(about, 100, break_on_hyphens=False),
            _table(result, training, "sparsity", METHODS, sparsities),
            _table(result, training, "kept of each group", GROUP_METHODS, groups),
        ]
    return [part for part in parts if part]


def _table(
    result: Any, training: str, label: str, methods: Iterable[str], targets: dict[str, Any]
) -> str:
    rows = []
    for method in methods:
        found = [accuracies(result, training, method, target) for target in targets.values()]
        if found[0]:
            rows.append([method, str(len(found[0])), *map(_percent, found)])
    return table([label, "seeds", *targets], rows) if rows else ""


def _percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _words(training: str, method: str, *sparsities: float) -> Any:
    def words(result: Any) -> str:
        parts = []
        for s in sparsities:
            found = margins(result, training, method, s)
            listed = ", ".join(f"{x:+.3f}" for x in found)
            parts.append(f"at {s:.2f} {statistics.mean(found):+.3f} (by seed {listed})")
        return f"above magnitude: {'; '.join(parts)}"

    return words


_COMMAND = f"python benchmarks/{NAME}.py"
_WITHOUT_UPDATE = "saliency only, blocks of 128"
MFAC_PRUNING_CLAIMS = [
    Claim(
        "One-shot pruning of a digits MLP by M-FAC with 8 recomputations is more accurate than by "
        f"magnitude, in every seed and at every sparsity ({training})",
        "Frantar et al., 2021", _COMMAND, NAME,
        _words(training, RECOMPUTED, *SPARSITIES),
        lambda r, training=training: verdict(
            all(x > 0 for s in SPARSITIES for x in margins(r, training, RECOMPUTED, s))
        ),
        [f"{training}, seed 0"],
    )
    for training in TRAININGS
] + [
    Claim(
        "The mean margin of recomputed M-FAC over magnitude on a digits MLP is at least "
        f"{least:.2f} at a sparsity of {sparsity:.2f} ({TRAININGS[0]})",
        "ours", _COMMAND, NAME,
        _words(TRAININGS[0], RECOMPUTED, sparsity),
        lambda r, sparsity=sparsity, least=least: at_least(
            margins(r, TRAININGS[0], RECOMPUTED, sparsity), least
        ),
    )
    for sparsity, least in ((0.8, 0.15), (0.9, 0.4))
] + [
    Claim(
        "Without recomputation and without moving the weights that live, M-FAC's saliency is worth "
        f"at most 0.05 over magnitude on a digits MLP, at every sparsity ({TRAININGS[0]})",
        "ours", _COMMAND, NAME,
        _words(TRAININGS[0], _WITHOUT_UPDATE, *SPARSITIES),
        lambda r: verdict(
            all(
                statistics.mean(margins(r, TRAININGS[0], _WITHOUT_UPDATE, s)) <= 0.05
                for s in SPARSITIES
            )
        ),
    ),
]  # fmt: skip
