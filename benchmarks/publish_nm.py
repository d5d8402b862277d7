"""What was claimed of N:M sparsity, and the words that its stored results are judged in."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from claim import Claim, spread, verdict

LARGE = "nm_language_model-large"
# In the order of the tables; the exponential decay by its beta_total.
RECIPES = {
    "one_shot": "one shot",
    "asp": "ASP",
    "ste": "STE",
    "srste": "SR-STE",
    "mdgf_exp@5": "mask decay, exponential, 5",
    "mdgf_exp": "mask decay, exponential, 10",
    "mdgf_exp@20": "mask decay, exponential, 20",
    "mdgf_linear": "mask decay, linear",
    "sdgf_stepwise": "structure decay, stepwise",
    "sdgf_geometric": "structure decay, geometric",
}
DECAYS = ("mdgf_exp@5", "mdgf_exp", "mdgf_exp@20")
LEARNED = ("ste", "srste", "mdgf_exp")
# On digits there is one rate of decay.
DIGITS_LABELS = {**RECIPES, "mdgf_exp": "mask decay", "dense": "dense"}
PATTERNS = ("2:4", "1:8", "1:16", "1:32")
SIDE_BY_SIDE = "the cells shared by two such cards, one process each"


def values(result: Any, key: str, quality: str = "bits_per_byte") -> list[float]:
    """The finalized quality of every seed of a cell."""
    return result["cells"][key][quality]["finalized"]


def mean(result: Any, key: str, quality: str = "bits_per_byte") -> float:
    """The mean over the seeds of a cell."""
    return statistics.mean(values(result, key, quality))


def pooled(*cells: Sequence[float]) -> float:
    """The sample standard deviation that cells share, each about its own mean."""
    squares = sum((len(v) - 1) * statistics.variance(v) for v in cells)
    return (squares / sum(len(v) - 1 for v in cells)) ** 0.5


def best_decay(result: Any, pattern: str) -> str:
    """The exponential mask decay with the fewest bits per byte."""
    return min((f"{pattern} {r}" for r in DECAYS), key=lambda key: mean(result, key))


def gain(result: Any, pattern: str, over: str) -> tuple[float, float]:
    """Bits per byte that the best exponential decay saves, and the pooled deviation of seeds."""
    ours, theirs = best_decay(result, pattern), f"{pattern} {over}"
    saved = mean(result, theirs) - mean(result, ours)
    return saved, pooled(values(result, ours), values(result, theirs))


def gains(*patterns: str) -> Callable[[Any], str]:
    """The best exponential decay against SR-STE, in words."""

    def words(result: Any) -> str:
        parts = []
        for pattern in patterns:
            ours, theirs = best_decay(result, pattern), f"{pattern} srste"
            _, deviation = gain(result, pattern, "srste")
            parts.append(
                f"{pattern}: bits per byte {spread(values(result, ours))} "
                f"({RECIPES[ours.split()[1]]}), {spread(values(result, theirs))} (SR-STE), "
                f"{len(values(result, ours))} seeds, pooled deviation {deviation:.4f}"
            )
        return "; ".join(parts)

    return words


def beats_srste(result: Any) -> str:
    """Whether the gain is more than the pooled deviation, at 1:16 and at 1:32."""
    found = [gain(result, pattern, "srste") for pattern in ("1:16", "1:32")]
    return verdict(all(saved > deviation for saved, deviation in found))


def ties(result: Any) -> str:
    """Whether the difference at 2:4 is within the pooled deviation."""
    saved, deviation = gain(result, "2:4", "srste")
    better = "mask decay" if saved > 0 else "SR-STE"
    tie = abs(saved) <= deviation
    return verdict(tie) + ("" if tie else f": {better} is better by {abs(saved):.4f}")


def _sane(result: Any) -> list[tuple[str, float]]:
    others = {r: mean(result, f"1:16 {r}") for r in RECIPES if f"1:16 {r}" in result["cells"]}
    first = {r: others.pop(r) for r in ("one_shot", "asp")}
    best = min(others, key=others.__getitem__)
    return [*first.items(), (best, others[best])]


def over_run(result: Any, key: str, name: str) -> list[float]:
    """A diagnostic of every seed, averaged over the run."""
    rows = [probe[name] for probe in result["cells"][key]["probes"]]
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def _noise(result: Any) -> str:
    return ", ".join(
        f"{name} {spread(over_run(result, f'1:32 {key}', 'noise_ratio'))}"
        for key, name in (("srste", "SR-STE"), ("dense", "dense"))
    )


def _paired(result: Any) -> tuple[float, float, int]:
    pairs = zip(values(result, "1:32 srste"), values(result, "1:32 mdgf_exp"), strict=True)
    gains = [a - b for a, b in pairs]
    return statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5, len(gains)


def _beyond(difference: float, error: float) -> str:
    """The verdict on a difference that should be positive, given its standard error."""
    return "undecided" if abs(difference) <= error else verdict(difference > 0)


def _margins(result: Any, below: str) -> list[tuple[str, float, float]]:
    """(recipe, points above `below`, standard error) of the learned masks on digits, at 1:16."""
    low = values(result, f"1:16 {below}", "accuracy")
    found = []
    for recipe in LEARNED:
        own = values(result, f"1:16 {recipe}", "accuracy")
        error = sum(statistics.variance(v) / len(v) for v in (own, low)) ** 0.5
        points = 100 * (statistics.mean(own) - statistics.mean(low))
        found.append((DIGITS_LABELS[recipe], points, 100 * error))
    return found


def at_least(below: str, points: float) -> tuple[Callable[[Any], str], Callable[[Any], str]]:
    """Figures and verdict of a margin that all learned masks must keep on digits."""

    def figures(result: Any) -> str:
        found = [f"{r} +{p:.1f} ± {e:.1f}" for r, p, e in _margins(result, below)]
        return f"points of accuracy ± standard error: {', '.join(found)}; {_seeds(result)}"

    def judge(result: Any) -> str:
        _, least, error = min(_margins(result, below), key=lambda row: row[1])
        return _beyond(least - points, error)

    return figures, judge


def overheads(result: Any) -> str:
    """Ratios with their spread over the rounds, and what was run."""
    rows = "; ".join(
        f"{row['pattern']} {row['recipe']} {row['ratio']:.3f} ({row['min']:.3f} to "
        f"{row['max']:.3f}; floor {row['floor']:.2f})"
        for row in result["rows"]
    )
    settings = ", ".join(f"{k} {result[k]}" for k in ("depth", "attention", "dtype", "rounds"))
    return f"{rows}; {settings}"


def _seeds(result: Any) -> str:
    return f"{min(cell['seeds'] for cell in result['cells'].values())} seeds"


def _accuracies(result: Any, keys: Sequence[str]) -> str:
    parts = [
        f"{DIGITS_LABELS[key.split()[1]]} {spread(values(result, key, 'accuracy'))}" for key in keys
    ]
    return f"accuracy {', '.join(parts)}; {_seeds(result)}"


DIGITS = "python benchmarks/nm_digits.py"
LANGUAGE = "python benchmarks/nm_language_model.py"
PAPER = "Bambhaniya et al., 2024"
AT_2_4 = ("2:4 srste", "2:4 mdgf_exp", "2:4 asp", "1:16 dense")
NM_CLAIMS = [
    Claim(
        "At 1:16 and 1:32 the best exponential mask decay beats SR-STE by more than the pooled "
        "standard deviation of the seeds",
        PAPER, LANGUAGE, LARGE, gains("1:16", "1:32"), beats_srste,
        [f"{p} {r}" for p in ("1:16", "1:32") for r in ("srste", *DECAYS)], SIDE_BY_SIDE,
    ),
    Claim(
        "At 2:4 exponential mask decay and SR-STE tie: they differ by no more than the pooled "
        "standard deviation of the seeds",
        PAPER, LANGUAGE, LARGE, gains("2:4"), ties,
        [f"2:4 {r}" for r in ("srste", *DECAYS)], SIDE_BY_SIDE,
    ),
    Claim(
        "At 1:16 one-shot pruning loses more than ASP, and ASP more than the best recipe",
        "ours", LANGUAGE, LARGE,
        lambda r: "bits per byte " + ", ".join(f"{RECIPES[k]} {v:.4f}" for k, v in _sane(r)),
        lambda r: verdict(_sane(r)[0][1] > _sane(r)[1][1] > _sane(r)[2][1]),
        ["1:16 one_shot", "1:16 asp", "1:16 srste"], SIDE_BY_SIDE,
    ),
    Claim(
        "Gradients that reach pruned weights are noisier than those of kept ones: their variance "
        "over minibatches, pruned / kept, is above 1 (SR-STE, 1:32)",
        PAPER, LANGUAGE, LARGE,
        lambda r: f"ratio, mean over the run: {_noise(r)}",
        lambda r: verdict(statistics.mean(over_run(r, "1:32 srste", "noise_ratio")) > 1),
        ["1:32 srste", "1:32 dense"], SIDE_BY_SIDE,
    ),
    Claim(
        "On a small decoder at 1:32, exponential mask decay beats SR-STE seed by seed in the mean",
        "ours", f"{LANGUAGE} --size=small --patterns=1:32x5 --recipes=srste,mdgf_exp --diagnosed=",
        "nm_language_model-small",
        lambda r: "bits per byte gained {:.4f} ± {:.4f} (standard error), {} seeds".format(
            *_paired(r)
        ),
        lambda r: _beyond(*_paired(r)[:2]),
        ["1:32 srste", "1:32 mdgf_exp"],
    ),
    Claim(
        "Learned masks (STE, SR-STE, exponential mask decay) beat ASP on digits by at least 4 "
        "points at 1:16",
        "ours", DIGITS, "nm_digits", *at_least("asp", 4), ["1:16 asp"],
    ),
    Claim(
        "Learned masks beat one-shot pruning on digits by at least 40 points at 1:16",
        "ours", DIGITS, "nm_digits", *at_least("one_shot", 40), ["1:16 one_shot"],
    ),
    Claim(
        "SR-STE at 1:16 costs at most 2.5 points of accuracy on digits",
        "ours", DIGITS, "nm_digits",
        lambda r: _accuracies(r, ("1:16 srste", "1:16 dense")),
        lambda r: verdict(
            mean(r, "1:16 dense", "accuracy") - mean(r, "1:16 srste", "accuracy") <= 0.025
        ),
        ["1:16 srste", "1:16 dense"],
    ),
    Claim(
        "At 2:4 SR-STE, exponential mask decay, ASP and dense are within 1 point on digits",
        "ours", DIGITS, "nm_digits",
        lambda r: _accuracies(r, AT_2_4),
        lambda r: verdict(
            max(mean(r, k, "accuracy") for k in AT_2_4)
            - min(mean(r, k, "accuracy") for k in AT_2_4)
            <= 0.01
        ),
        AT_2_4,
    ),
    Claim(
        "A step with SR-STE or mask decay takes at most 1.05 of a dense one at 2:4 and 1:8, and "
        "1.10 at 1:32 (4096 tokens, width 512)",
        "ours", "python benchmarks/nm_overhead.py", "nm_overhead",
        overheads,
        lambda r: verdict(all(row["ratio"] <= row["floor"] for row in r["rows"])),
    ),
    Claim(
        "SparseGPT on a 4096 x 4096 kernel needs at most 4 times the kernel in float32, besides "
        "the Hessian",
        "ours", "python benchmarks/sparsegpt_memory.py", "sparsegpt_memory",
        lambda r: f"{r['kernels_in_float32_besides_the_hessian']:.2f} times the kernel",
        lambda r: verdict(r["kernels_in_float32_besides_the_hessian"] <= r["limit"]),
    ),
]  # fmt: skip
