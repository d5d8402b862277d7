"""What was claimed of Monarch in a small MLP, how it is judged, and its page."""

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from claim import Claim, machine, stored, verdict
from numerics_page import table
from publish_compression import at_least, with_error, worst

# What the stored results are of, and how they were made.
LARGE, SMALL = "monarch_small-large", "monarch_small-small"
BUDGETS = ("50 %", "25 %")
RANKS = (8, 16, 32, 64)
# By budget, the rank of a slice that stores it.
SLICES = {"50 %": 64, "25 %": 32}
CHANCE = 0.1
_VARIANTS = (
    "dense",
    *(f"{name} {b}" for b in BUDGETS for name in ("monarch", "low rank", "dense to sparse")),
    "block diagonal 25 %",
    "dense, before the last epoch",
    *(f"projected, rank {rank}" for rank in RANKS),
)


def accuracies(result: Any, key: str) -> list[float]:
    """Held-out accuracy of every seed."""
    return result["cells"][key]["accuracy"]


def points(result: Any, a: str, b: str) -> list[float]:
    """By seed, points of accuracy that `a` is above `b`."""
    pairs = zip(accuracies(result, a), accuracies(result, b), strict=True)
    return [100 * (x - y) for x, y in pairs]


def _margins(result: Any, a: str, b: str) -> str:
    parts = [
        f"{x} {with_error(points(result, f'{a} {x}', b.format(budget=x)), 2)}" for x in BUDGETS
    ]
    about = "points ± standard error"
    return f"{about}: {', '.join(parts)}; {len(accuracies(result, 'dense'))} seeds"


def _judge(result: Any, a: str, b: str, least: float) -> str:
    return worst([at_least(points(result, f"{a} {x}", b.format(budget=x)), least) for x in BUDGETS])


def _projected(result: Any) -> list[float]:
    return [statistics.mean(accuracies(result, f"projected, rank {r}")) for r in RANKS]


def _shown(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _projection_words(result: Any) -> str:
    parts = [f"{_shown(accuracies(result, f'projected, rank {r}'))} at {r}" for r in RANKS]
    dense = _shown(accuracies(result, "dense, before the last epoch"))
    return f"accuracy in percent: {', '.join(parts)}; {dense} before"


def _far_above(result: Any) -> bool:
    lowest = min(min(accuracies(result, f"projected, rank {r}")) for r in SLICES.values())
    return lowest >= 5 * CHANCE


def _monotone(result: Any) -> bool:
    means = _projected(result)
    return means == sorted(means)


_PAPER = "Dao et al., 2022"
_NEEDS = ("dense", *(f"monarch {b}" for b in BUDGETS))
_TUNED = tuple(f"dense to sparse {b}" for b in BUDGETS)
_ONCE = tuple(f"projected, rank {rank}" for rank in RANKS)


def claims_of(benchmark: str, command: str, images: str) -> list[Claim]:
    """The claims on one set of images."""
    of = (_PAPER, command, benchmark)
    return [
        Claim(
            "A Monarch hidden kernel (1024 x 1024, 4 blocks, half or a quarter of the parameters) "
            f"costs an MLP at most 0.5 points of accuracy on {images}",
            *of,
            lambda r: _margins(r, "monarch", "dense"),
            lambda r: _judge(r, "monarch", "dense", -0.5), _NEEDS,
        ),
        Claim(
            "A trained dense kernel projected to Monarch and fine-tuned for an epoch is at least "
            f"as good on {images} as Monarch from random factors at equal steps",
            *of,
            lambda r: _margins(r, "dense to sparse", "monarch {budget}"),
            lambda r: _judge(r, "dense to sparse", "monarch {budget}", 0), (*_NEEDS, *_TUNED),
        ),
        Claim(
            "Projected to half or a quarter and not fine-tuned, it is right at least five times "
            f"as often as chance on {images}, and more often the higher the rank of the slices",
            *of, _projection_words,
            lambda r: verdict(_far_above(r) and _monotone(r)), _ONCE,
        ),
    ]  # fmt: skip


_COMMAND = "python benchmarks/monarch_small.py"
MONARCH_CLAIMS = [
    *claims_of(LARGE, _COMMAND, "Fashion-MNIST"),
    *claims_of(SMALL, f"{_COMMAND} --size=small --seeds=5", "digits"),
]


def monarch_small_page() -> str:
    """What stands between the markers of docs/monarch_small.md."""
    records = [record for name in (LARGE, SMALL) for record in stored(name)]
    return "\n\n".join(map(_section, records)) or "Not run."


def _section(record: dict[str, Any]) -> str:
    result = record["result"]
    about = (
        f"Held-out accuracy in percent, mean ± standard deviation of {result['seeds']} seeds; "
        f"{result['epochs']} epochs ({result['steps']} steps of {result['batch_size']} images) "
        f"of {result['data']['name']}, {result['data']['train_items']} images to train on and "
        f"{result['data']['eval_items']} held out. Machine: {machine(record)}."
    )
    rows = [
        [key, f"{cell['kept']:.3f}", _shown(cell["accuracy"])]
        for key in _VARIANTS
        if (cell := result["cells"].get(key))
    ]
    wrapped = textwrap.fill(about, 100, break_on_hyphens=False)
    return "\n\n".join([wrapped, table(["hidden kernel", "stored", "accuracy"], rows)])
