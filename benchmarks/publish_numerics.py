"""What was claimed of the numerics modules, and how their stored results are judged."""

import statistics
from typing import Any

from claim import Claim, verdict


def recovered(result: Any, solver: str) -> list[str]:
    """The sampling ratios at which every seed was recovered."""
    errors = result["recovery"]["errors"]
    return [ratio for ratio, row in errors.items() if max(row[solver]) < 1e-5]


def _solver_ratios(result: Any) -> dict[str, float]:
    medians = {
        rank: [statistics.median(cell[solver]["seconds"]) for solver in ("exact", "cg")]
        for rank, cell in result["times"]["cells"].items()
    }
    return {rank: exact / cg for rank, (exact, cg) in medians.items()}


def _iterations(result: Any, method: str, right_rank: bool) -> list[float]:
    """Over conditions, columns and seeds; infinite where the error was not reached."""
    counts = []
    for key, cell in result["cells"].items():
        if (int(key.split()[1]) == result["r"]) == right_rank:
            found = cell[method]["iterations"]
            counts += [float("inf") if count is None else count for count in found]
    return counts


def _range(result: Any, method: str, right_rank: bool) -> str:
    counts = _iterations(result, method, right_rank)
    missed = sum(count == float("inf") for count in counts)
    reached = [count for count in counts if count < float("inf")]
    words = f"{min(reached):.0f} to {max(reached):.0f}" if reached else "never"
    note = f" ({missed} of {len(counts)} not in {result['most']})"
    return words + (note if missed and reached else "")


_SMALL, _PREC = "ScaledGD from 1e-08", "PrecGD from 0.001"
_COMPLETION = ("python benchmarks/matrix_completion.py", "matrix_completion")
_SENSING = ("python benchmarks/matrix_sensing.py", "matrix_sensing")
NUMERICS_CLAIMS = [
    Claim(
        "Matrix completion by approximate regressions (10 steps of CG) needs no more entries than "
        "by exact ones",
        "Gu et al., 2024", *_COMPLETION,
        lambda r: "all seeds recovered from, in units of r (m + n): " + ", ".join(
            f"{min(map(float, recovered(r, s)))} ({s})" for s in ("exact", "cg")
        ),
        lambda r: verdict(recovered(r, "exact") == recovered(r, "cg")),
    ),
    Claim(
        "The time that CG saves grows with the rank",
        "Gu et al., 2024", *_COMPLETION,
        lambda r: "time of exact / CG: " + ", ".join(
            f"{x:.2f} (rank {rank})" for rank, x in _solver_ratios(r).items()
        ),
        lambda r: verdict([*_solver_ratios(r).values()] == sorted(_solver_ratios(r).values())),
    ),
    Claim(
        "Matrix sensing by PrecGD takes at most twice as many iterations with columns too many as "
        "with the right number, up to a condition number of 100",
        "Zhang et al., 2021", *_SENSING,
        lambda r: f"iterations {_range(r, _PREC, False)}, right number "
        f"{_range(r, _PREC, True)}; gradient descent "
        f"{_range(r, 'GD from 0.001', True)} with the right number",
        lambda r: verdict(
            max(_iterations(r, _PREC, False)) <= 2 * max(_iterations(r, _PREC, True))
        ),
    ),
    Claim(
        "With columns too many, ScaledGD with constant damping and a small start converges "
        "whatever the condition number, up to 100",
        "Xu et al., 2023", *_SENSING,
        lambda r: f"iterations {_range(r, _SMALL, False)}",
        lambda r: verdict(max(_iterations(r, _SMALL, False)) < float("inf")),
    ),
]  # fmt: skip
