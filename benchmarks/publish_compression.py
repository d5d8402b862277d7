"""What was claimed of low rank and Monarch, and how its stored results are judged."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from claim import Claim, spread, stored, verdict

# By the start of the MLP: where kernels start larger, training leaves more of the start in them.
STARTS = {
    "he_normal": "variance 2 / fan_in (He)",
    "lecun_normal": "variance 1 / fan_in (LeCun)",
}
REVERSE = "reverse_sparsification-large"
REVERSE_SMALL = "reverse_sparsification-small"
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


def low_rank(start: str) -> str:
    """The name of the results of a start."""
    return f"low_rank_digits-{start}"


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


def closed(result: Any, variant: str) -> float:
    """How much of the gap between Monarch and dense a variant closes, in percent."""
    gap = statistics.mean(above(result, "monarch", "dense"))
    return 100 * statistics.mean(above(result, "monarch", variant)) / gap


def _closed_words(result: Any) -> str:
    parts = [f"{v} {round(closed(result, v))} %" for v in SWITCHED]
    gain = with_error(above(result, *SWITCHED))
    return (
        f"gap closed: {', '.join(parts)}; bits per byte that more dense steps save {gain} "
        f"(standard error), {len(bits(result, 'dense'))} seeds"
    )


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
_ON_TEXT = "python benchmarks/reverse_sparsification.py"
_ON_TEXT_SMALL = f"{_ON_TEXT} --size=small --seeds=3 --steps=150"
_ON_LAYER = "python benchmarks/monarch_product.py"
_PAPER = "Dao et al., 2022"


def _digits_claims(start: str) -> list[Claim]:
    command = f"python benchmarks/low_rank_digits.py --seeds=8 --init={start}"
    model = f"a digits MLP that started at {STARTS[start]}"
    of = ("ours", command, low_rank(start))
    return [
        Claim(
            f"One shot at rank 8 on {model}, from 128 images: centred LoRD is at least 20 points "
            "above SVD and above ASVD",
            *of, *_margins(8, 20, *_RANK_8),
        ),
        Claim(
            f"Centring, with the bias that goes with it, gains at least 1.5 points on {model}, at "
            "rank 8",
            *of, *_margins(8, 1.5, *_CENTRE),
        ),
        Claim(
            f"Uncentred LoRD and whitening differ by at most 0.2 points on {model}, at rank 8, in "
            "every seed",
            *of, _apart,
            lambda r: verdict(max(map(abs, points(r, "LoRD uncentred", "whitening", 8))) <= 0.2),
        ),
        Claim(
            f"At rank 24 LoRD is within 1 point of the dense model, centred or not, on {model}",
            *of, _losses,
            lambda r: worst([at_least([1 - x for x in _below_dense(r, m, 24)], 0) for m in _LORD]),
        ),
    ]  # fmt: skip


COMPRESSION_CLAIMS = [
    *(claim for start in STARTS for claim in _digits_claims(start)),
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
        "In a small decoder (width 128, 4 layers), Monarch for a part of the steps ends at least "
        "as near to dense as Monarch throughout, in the mean",
        _PAPER, _ON_TEXT_SMALL, REVERSE_SMALL, _quality_words(*VARIANTS), _nearer,
    ),
    Claim(
        "In a small decoder, the gap to dense that is closed grows with the share of dense steps",
        _PAPER, _ON_TEXT_SMALL, REVERSE_SMALL, _closed_words,
        lambda r: at_least(above(r, *SWITCHED), 0),
    ),
    Claim(
        "In a small decoder, Monarch kernels are multiplied out without a jump of the loss: at "
        "most 0.001 on the next batch",
        _PAPER, _ON_TEXT_SMALL, REVERSE_SMALL,
        lambda r: f"largest change {_largest_jump(r):.1e} over {2 * len(bits(r, 'dense'))} runs",
        lambda r: verdict(_largest_jump(r) <= JUMP),
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
