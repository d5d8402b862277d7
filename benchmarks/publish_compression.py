"""What was claimed of low rank and Monarch, and how its stored results are judged."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from claim import Claim, spread, stored, verdict

LOW_RANK = "low_rank_digits"
REVERSE = "reverse_sparsification-large"
PRODUCT = "monarch_product"
VARIANTS = ("dense", "monarch", "dense from 0.9", "dense from 0.7")
# The switch is exact but for the rounding of a product of factors.
JUMP = 1e-3
SWITCHED = VARIANTS[2:]
_WIDE = [f"4096x4096, {n} blocks" for n in (4, 16)]
_NARROW = [f"768x2048, {n} blocks" for n in (4, 16)]
_KINDS = ("forward", "training")


def with_error(differences: Sequence[float], digits: int = 4) -> str:
    """The mean of paired differences and its standard error, in words."""
    mean, error = _mean_and_error(differences)
    return f"{mean:+.{digits}f} ± {error:.{digits}f}"


def _mean_and_error(differences: Sequence[float]) -> tuple[float, float]:
    deviation = statistics.stdev(differences)
    return statistics.mean(differences), deviation / len(differences) ** 0.5


def at_least(differences: Sequence[float], least: float) -> str:
    """The verdict on paired differences whose mean is to be at least so much."""
    mean, error = _mean_and_error(differences)
    return "undecided" if abs(mean - least) <= error else verdict(mean > least)


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on several that must all hold."""
    order = (verdict(False), "undecided", verdict(True))
    return min(verdicts, key=order.index)


# Low rank on digits.


def accuracies(result: Any, method: str, rank: int) -> list[float]:
    """Held-out accuracy of every seed."""
    return [seed[f"{method}, rank {rank}"] for seed in result["seeds"].values()]


def points(result: Any, a: str, b: str, rank: int) -> list[float]:
    """By seed, points of accuracy that `a` is above `b`."""
    pairs = zip(accuracies(result, a, rank), accuracies(result, b, rank), strict=True)
    return [100 * (x - y) for x, y in pairs]


def _margins(
    rank: int, least: float, *pairs: tuple[str, str]
) -> tuple[Callable[[Any], str], Callable[[Any], str]]:
    def figures(result: Any) -> str:
        found = [f"{a} - {b} {with_error(points(result, a, b, rank), 1)}" for a, b in pairs]
        return f"points ± standard error: {', '.join(found)}; {len(result['seeds'])} seeds"

    def judge(result: Any) -> str:
        return worst([at_least(points(result, a, b, rank), least) for a, b in pairs])

    return figures, judge


def _apart(result: Any) -> str:
    found = points(result, "LoRD uncentred", "whitening", 8)
    return f"points, by seed: {', '.join(f'{x:+.2f}' for x in found)}"


def _below_dense(result: Any, method: str, rank: int) -> list[float]:
    pairs = zip(result["seeds"].values(), accuracies(result, method, rank), strict=True)
    return [100 * (seed["dense"] - x) for seed, x in pairs]


def _losses(result: Any) -> str:
    parts = [f"{m} {with_error(_below_dense(result, m, 24), 1)}" for m in _LORD]
    dense = [seed["dense"] for seed in result["seeds"].values()]
    return f"points below dense: {', '.join(parts)}; dense {spread(dense)}, {len(dense)} seeds"


_LORD = ("LoRD centred", "LoRD uncentred")


# Reverse sparsification.


def bits(result: Any, variant: str) -> list[float]:
    """Held-out bits per byte of every seed."""
    return [run["quality"]["finalized"] for run in runs(result, variant)]


def runs(result: Any, variant: str) -> list[Any]:
    """The runs of a variant by seed."""
    return [run for key, run in result["runs"].items() if key.startswith(f"{variant}, seed ")]


def above(result: Any, variant: str, other: str) -> list[float]:
    """By seed, how many bits per byte a variant needs more than another."""
    return [a - b for a, b in zip(bits(result, variant), bits(result, other), strict=True)]


def jumps(result: Any, variant: str) -> list[float]:
    """How much the loss of the next batch changes at each switch."""
    phases = [phase for run in runs(result, variant) for phase in run["phases"]]
    return [abs(phase["loss_after"] - phase["loss_before"]) for phase in phases]


def speed_ratio(result: Any, variant: str) -> float:
    """Steps per second of a variant, of the dense run's."""
    own, dense = (
        statistics.mean(run["steps_per_second"] for run in runs(result, v))
        for v in (variant, "dense")
    )
    return own / dense


def _monarch_speed(result: Any) -> float:
    return speed_ratio(result, "monarch")


def _largest_jump(result: Any) -> float:
    return max(jump for variant in SWITCHED for jump in jumps(result, variant))


def _nearer(result: Any) -> str:
    gained = {v: above(result, "monarch", v) for v in SWITCHED}
    return "; ".join(f"{v}: {at_least(found, 0)}" for v, found in gained.items())


def _quality_words(*variants: str) -> Callable[[Any], str]:
    def words(result: Any) -> str:
        parts = [f"{v} {spread(bits(result, v))}" for v in variants]
        return f"bits per byte {', '.join(parts)}; {len(bits(result, variants[0]))} seeds"

    return words


# One Monarch product.


def _ratios(keys: Sequence[str], form: str) -> Callable[[Any], str]:
    def words(result: Any) -> str:
        rows = []
        for key in keys:
            for kind in _KINDS:
                row = result["cells"][key][f"{form}, {kind}"]
                low, high = row["spread"]
                rows.append(f"{key}, {kind} {row['ratio']:.2f} ({low:.2f} to {high:.2f})")
        return f"time of {form} / dense: {'; '.join(rows)}; {result['dtype']}"

    return words


def _faster(keys: Sequence[str], form: str) -> Callable[[Any], str]:
    def judge(result: Any) -> str:
        rows = [result["cells"][key][f"{form}, {kind}"] for key in keys for kind in _KINDS]
        return verdict(all(row["ratio"] < 1 for row in rows))

    return judge


def _reached(result: Any) -> float:
    cell = result["cells"][_WIDE[0]]
    return cell["share"] / cell["blocked, forward"]["ratio"]


_RANK_8 = (("LoRD centred", "SVD"), ("LoRD centred", "ASVD"))
_CENTRE = (("LoRD centred", "LoRD uncentred"),)
_ON_DIGITS = "python benchmarks/low_rank_digits.py --seeds=8"
_ON_TEXT = "python benchmarks/reverse_sparsification.py"
_ON_LAYER = "python benchmarks/monarch_product.py"
_PAPER = "Dao et al., 2022"
COMPRESSION_CLAIMS = [
    Claim(
        "One shot at rank 8 on a digits MLP, from 128 images: centred LoRD is at least 20 points "
        "above SVD and above ASVD",
        "ours", _ON_DIGITS, LOW_RANK, *_margins(8, 20, *_RANK_8),
    ),
    Claim(
        "Centring, with the bias that goes with it, gains at least 1.5 points on a digits MLP at "
        "rank 8",
        "ours", _ON_DIGITS, LOW_RANK, *_margins(8, 1.5, *_CENTRE),
    ),
    Claim(
        "Uncentred LoRD and whitening differ by at most 0.2 points on a digits MLP at rank 8, in "
        "every seed",
        "ours", _ON_DIGITS, LOW_RANK, _apart,
        lambda r: verdict(max(map(abs, points(r, "LoRD uncentred", "whitening", 8))) <= 0.2),
    ),
    Claim(
        "At rank 24 LoRD is within 1 point of the dense digits MLP, centred or not",
        "ours", _ON_DIGITS, LOW_RANK, _losses,
        lambda r: worst([at_least([1 - x for x in _below_dense(r, m, 24)], 0) for m in _LORD]),
    ),
    Claim(
        "Monarch kernels can be multiplied out during a run without a jump of the loss: at most "
        "0.001 on the next batch",
        _PAPER, _ON_TEXT, REVERSE,
        lambda r: f"largest change {_largest_jump(r):.1e} over {2 * len(bits(r, 'dense'))} runs",
        lambda r: verdict(_largest_jump(r) <= JUMP),
    ),
    Claim(
        "Monarch for 70 % of the steps and dense for the rest ends within 0.02 bits per byte of "
        "dense throughout",
        _PAPER, _ON_TEXT, REVERSE, _quality_words("dense", "dense from 0.7"),
        lambda r: at_least([0.02 - x for x in above(r, "dense from 0.7", "dense")], 0),
    ),
    Claim(
        "Monarch for a part of the steps ends nearer to dense than Monarch throughout",
        _PAPER, _ON_TEXT, REVERSE, _quality_words("monarch", *SWITCHED), _nearer,
    ),
    Claim(
        "A training step with Monarch kernels takes less time than a dense one (width 768, 4 "
        "blocks, bfloat16)",
        _PAPER, _ON_TEXT, REVERSE,
        lambda r: f"steps per second, Monarch / dense: {_monarch_speed(r):.2f}",
        lambda r: verdict(_monarch_speed(r) > 1),
    ),
    Claim(
        "A Monarch layer with blocked outputs is faster than the dense layer of 4096 x 4096",
        "ours", _ON_LAYER, PRODUCT,
        _ratios(_WIDE, "blocked"), _faster(_WIDE, "blocked"), _WIDE,
    ),
    Claim(
        "A Monarch layer with blocked outputs is faster than the dense layer of 768 x 2048",
        "ours", _ON_LAYER, PRODUCT,
        _ratios(_NARROW, "blocked"), _faster(_NARROW, "blocked"), _NARROW,
    ),
    Claim(
        "At 4096 x 4096 and 4 blocks the forward product reaches 60 % of its floor, the dense "
        "product's time times the share of its operations",
        "ours", _ON_LAYER, PRODUCT,
        lambda r: f"{100 * _reached(r):.0f} % with blocked outputs",
        lambda r: verdict(_reached(r) >= 0.6), _WIDE,
    ),
]  # fmt: skip


def reverse_facts() -> dict[str, str]:
    """The generated lines of the docstring of configs/monarch_python_source.py."""
    for record in stored(REVERSE):
        result = record["result"]
        seconds = [run["wall_seconds"] for run in result["runs"].values()]
        parts = [f"{spread(bits(result, v))} {v}" for v in VARIANTS]
        return {
            "Wall time, one H100:": f"{statistics.median(seconds):.0f} s with size=large (median "
            f"of {len(seconds)} runs)",
            "Result:": f"bits per byte with size=large, {len(bits(result, 'dense'))} seeds:; "
            + "; ".join(parts),
        }
    return {}
