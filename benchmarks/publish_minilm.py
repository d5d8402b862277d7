"""What was claimed of one-shot compression of a sentence encoder, and how it is judged."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from claim import Claim, spread, stored, verdict
from publish_compression import at_least, with_error, worst

NAME = "minilm"
COMMAND = "python benchmarks/minilm.py"
RATIOS = (0.9, 0.7, 0.5)
LABELS = {
    "svd": "SVD",
    "asvd": "ASVD",
    "whiten": "whitening",
    "lord": "LoRD uncentred",
    "lord_centred": "LoRD centred",
    "greedy": "LoRD centred, ranks by spectra",
    "kfac": "K-FAC",
    "monarch": "Monarch, 4 x 4 slices",
    "block_diagonal": "block diagonal",
    "magnitude": "N:M, magnitude",
    "wanda": "N:M, Wanda",
    "sparsegpt": "N:M, SparseGPT",
    "lord_sparsegpt": "LoRD centred with N:M factors",
}
WITHOUT_DATA = ("svd", "magnitude", "block_diagonal")
# Two decompositions of the same subspace differ by rounding.
_SAME = 2e-3
_MARGINS = {"asvd": 0.08, "svd": 0.15}
# Cells, the better one first.
Pair: TypeAlias = tuple[str, str]


def by_draw(result: Any, key: str, name: str = "mean_cosine") -> dict[int, float]:
    """A quality by draw; a method that uses no data has the same on all."""
    cell = result["cells"][key]
    if key.split()[0] in WITHOUT_DATA:
        draws = sorted({draw for c in result["cells"].values() for draw in c["draws"]})
        return {draw: cell[name][0] for draw in draws}
    return dict(sorted(zip(cell["draws"], cell[name], strict=True)))


def differences(result: Any, a: str, b: str, name: str = "mean_cosine") -> list[float]:
    """How much better `a` is than `b`, on every draw that both were run on."""
    ours, theirs = by_draw(result, a, name), by_draw(result, b, name)
    return [x - theirs[draw] for draw, x in ours.items() if draw in theirs]


def _each(keys: list[str], name: str, pairs: list[Pair]) -> Callable[[Any], str]:
    """The qualities, and the differences that the verdict is on."""

    def words(result: Any) -> str:
        parts = [f"{_cell(k)}: {spread(result['cells'][k][name])}" for k in keys]
        of = f"{name.replace('_', ' ')} {'; '.join(parts)}; {_draws(result, keys)}"
        apart = [_apart(result, pair, name) for pair in pairs]
        return f"{of}. Differences ± standard error (least of a draw): {'; '.join(apart)}"

    return words


def _apart(result: Any, pair: Pair, name: str) -> str:
    found = differences(result, *pair, name)
    return f"{_cell(pair[0])} - {_cell(pair[1])} {with_error(found)} ({min(found):+.4f})"


def _draws(result: Any, keys: list[str]) -> str:
    counts = sorted({len(by_draw(result, k)) for k in keys})
    return f"{' to '.join(map(str, (counts[0], counts[-1])[: len(counts)]))} draws of a method"


def judged(
    result: Any, pairs: list[Pair], name: str, least: Sequence[float] = ()
) -> tuple[str, list[str]]:
    """Whether the first of each pair is above the second by so much, 0 if nothing is said.

    In the mean over draws, beyond a standard error or not; and in words what does not hold in the
    mean or in a draw.
    """
    verdicts, notes = [], []
    for pair, margin in zip(pairs, least or [0.0] * len(pairs), strict=True):
        found = differences(result, *pair, name)
        verdicts.append(at_least(found, margin))
        below = sum(x < margin for x in found)
        if below or verdicts[-1] != verdict(True):
            beyond = f"by {margin} " if margin else ""
            notes.append(
                f"{_cell(pair[0])} {beyond}above {_cell(pair[1])}: {verdicts[-1]}, not so in "
                f"{below} of {len(found)} draws"
            )
    return worst(verdicts), notes


def _always(pairs: list[Pair], name: str, least: Sequence[float] = ()) -> Callable[[Any], str]:
    def judge(result: Any) -> str:
        found, notes = judged(result, pairs, name, least)
        return "; ".join([found, *notes])

    return judge


def _ranked(result: Any) -> str:
    same = max(max(map(abs, differences(result, f"lord {r}", f"whiten {r}"))) for r in RATIOS)
    found, notes = judged(result, _ORDER, "mean_cosine")
    about = f"whitening is within {same:.4f} of uncentred LoRD in every draw"
    return "; ".join([worst([found, verdict(same <= _SAME)]), *notes, about])


def gaps(result: Any, worse: str) -> list[float]:
    """By ratio, how far the mean over draws is below that of centred LoRD."""
    return [
        statistics.mean(differences(result, f"lord_centred {r}", f"{worse} {r}")) for r in RATIOS
    ]


def growth(result: Any, worse: str) -> list[list[float]]:
    """By step from a ratio to the next, how much the gap grows on each draw."""
    found = [differences(result, f"lord_centred {r}", f"{worse} {r}") for r in RATIOS]
    steps = itertools.pairwise(found)
    return [[b - a for a, b in zip(x, y, strict=True)] for x, y in steps]


_BELOW = ("lord", "asvd", "svd")


def _gap_words(result: Any) -> str:
    parts = [
        f"below by {', '.join(f'{g:.4f}' for g in gaps(result, m))}, growing by "
        f"{', '.join(map(with_error, growth(result, m)))} ({LABELS[m]})"
        for m in _BELOW
    ]
    return f"mean cosine at {', '.join(map(str, RATIOS))}: {'; '.join(parts)} (standard errors)"


def _growing(result: Any) -> str:
    by = {m: worst([at_least(step, 0) for step in growth(result, m)]) for m in _BELOW}
    wrong = [f"{LABELS[m]}: {v}" for m, v in by.items() if v != verdict(True)]
    return worst(list(by.values())) + (f"; {'; '.join(wrong)}" if wrong else "")


def _cell(key: str) -> str:
    method, size = key.split()
    return f"{LABELS[method]} {size}"


def _ranks(result: Any) -> str:
    rows = []
    for name in ("recall_at_10", "recall_at_1"):
        found = [
            f"{spread(d[model][name] for d in result['ranks'].values())} ({label})"
            for model, label in (("dense", "dense"), ("192", "rank 192"), ("96", "rank 96"))
        ]
        rows.append(f"{name.replace('_at_', '@')} {', '.join(found)}")
        apart = (f"{with_error(falls)} ({min(falls):+.4f})" for falls in _falls(result, name))
        rows[-1] += f", differences {', '.join(apart)}"
    about = f"{len(result['ranks'])} draws of both samples"
    return f"{'; '.join(rows)} (± standard error, least of a draw); {about}"


_STEPS = (("dense", "192"), ("192", "96"))


def _falls(result: Any, name: str) -> list[list[float]]:
    rows = list(result["ranks"].values())
    return [[row[more][name] - row[less][name] for row in rows] for more, less in _STEPS]


def _monotone(result: Any) -> str:
    names = ("recall_at_10", "recall_at_1")
    found = [falls for name in names for falls in _falls(result, name)]
    never = [falls for falls in found if min(falls) <= 0]
    draws = f"; {len(never)} of {len(found)} differences not in every draw" if never else ""
    return worst([at_least(falls, 0) for falls in found]) + draws


def _seconds(result: Any) -> str:
    m = result["measured"]
    used = m["user_seconds"] + m["system_seconds"]
    return f"{m['wall_seconds']:.0f} s ({used:.0f} s of processors; load before {m['load_before']})"


def _beyond(measured: Any) -> int:
    return measured["peak_bytes"] - measured["narrow_peak_bytes"]


def _arrays(result: Any) -> str:
    m = result["measured"]
    peak, narrow, bound = (
        m[f"{name}_bytes"] / 2**20 for name in ("peak", "narrow_peak", "beyond_bound")
    )
    return (
        f"peak {peak:.0f} MiB, {narrow:.0f} of an encoder an eighth as wide; difference "
        f"{peak - narrow:.0f} MiB, bound {bound:.0f} MiB"
    )


def _process(result: Any) -> str:
    m = result["measured"]
    peak, idle, bound = (m[f"{name}_bytes"] / 2**20 for name in ("peak", "idle", "bound"))
    return (
        f"peak {peak:.0f} MiB, {idle:.0f} of it before anything is done; bound {bound:.0f} MiB. "
        "The rest is programs, their compiler and what the allocator keeps"
    )


class _Open(Claim):
    """A claim that is open until its needs, parts of the results, are there."""

    def records(self) -> list[dict[str, Any]]:
        return [r for r in stored(self.benchmark) if all(r["result"].get(k) for k in self.needs)]


def _keys(*methods: str, ratios: tuple[float, ...] = RATIOS) -> list[str]:
    return [f"{m} {r}" for r in ratios for m in methods]


_DECOMPOSITIONS = ("lord_centred", "lord", "whiten", "asvd", "svd")
_AT_07 = _keys("lord_centred", *_MARGINS, ratios=(0.7,))
_WEIGHTED = _keys("kfac", "lord_centred")
_GREEDY = _keys("greedy", "lord_centred")
_PATTERNS = ("2:4", "4:8")
_MASKS = ("sparsegpt", "wanda", "magnitude")
_NM = [f"{m} {p}" for m in _MASKS for p in _PATTERNS]
_FAR: list[Pair] = [("lord_centred 0.7", f"{m} 0.7") for m in _MARGINS]
_ORDER: list[Pair] = [
    (f"{better} {r}", f"{worse} {r}")
    for r in RATIOS
    for better, worse in (("lord_centred", "lord"), ("lord", "asvd"), ("lord", "svd"))
]
_BY_GRADIENTS: list[Pair] = [(f"kfac {r}", f"lord_centred {r}") for r in RATIOS]
_BY_SPECTRA: list[Pair] = [(f"greedy {r}", f"lord_centred {r}") for r in RATIOS]
_NM_ORDER: list[Pair] = [
    *((f"{a} {p}", f"{b} {p}") for a, b in itertools.pairwise(_MASKS) for p in _PATTERNS),
    *((f"{m} 4:8", f"{m} 2:4") for m in _MASKS),
]
MINILM_CLAIMS = [
    Claim(
        "On a sentence encoder's MLP at seven tenths of its parameters, centred LoRD keeps a mean "
        "cosine at least 0.08 above ASVD and 0.15 above SVD",
        "ours", COMMAND, NAME, _each(_AT_07, "mean_cosine", _FAR),
        _always(_FAR, "mean_cosine", list(_MARGINS.values())), _AT_07,
    ),
    Claim(
        "At 0.9, 0.7 and 0.5: centred LoRD is at least uncentred LoRD, which is whitening and "
        "above ASVD and SVD (mean cosine)",
        "Kaushal et al., 2023", COMMAND, NAME,
        _each(_keys(*_DECOMPOSITIONS), "mean_cosine", _ORDER), _ranked, _keys(*_DECOMPOSITIONS),
    ),
    Claim(
        "The gaps below centred LoRD grow with compression",
        "ours", COMMAND, NAME, _gap_words, _growing, _keys(*_DECOMPOSITIONS),
    ),
    Claim(
        "Weighted by gradients too (K-FAC), low rank is at least as good as centred LoRD at equal "
        "parameters (mean cosine)",
        "ours", COMMAND, NAME, _each(_WEIGHTED, "mean_cosine", _BY_GRADIENTS),
        _always(_BY_GRADIENTS, "mean_cosine"), _WEIGHTED,
    ),
    Claim(
        "Ranks by spectra (greedy) are at least as good as uniform ones at equal parameters (mean "
        "cosine)",
        "Kaushal et al., 2023", COMMAND, NAME, _each(_GREEDY, "mean_cosine", _BY_SPECTRA),
        _always(_BY_SPECTRA, "mean_cosine"), _GREEDY,
    ),
    Claim(
        "One-shot N:M on a sentence encoder: SparseGPT is at least Wanda, Wanda at least "
        "magnitude, and 4:8 at least 2:4 (Spearman)",
        "ours", COMMAND, NAME, _each(_NM, "spearman", _NM_ORDER),
        _always(_NM_ORDER, "spearman"), _NM,
    ),
    _Open(
        "Retrieval falls with the rank: dense is above rank 192, which is above rank 96",
        "ours", COMMAND, NAME, _ranks, _monotone, ["ranks"],
    ),
    _Open(
        "Compressing a sentence encoder end to end takes at most 180 s on 2 cores",
        "ours", f"{COMMAND} --measure", NAME, _seconds,
        lambda r: verdict(r["measured"]["wall_seconds"] <= 180), ["measured"],
    ),
    _Open(
        "It takes at most 3 times the model and the Grams of memory, by how much the peak grows "
        "with the width of the encoder",
        "ours", f"{COMMAND} --measure", NAME, _arrays,
        lambda r: verdict(_beyond(r["measured"]) <= r["measured"]["beyond_bound_bytes"]),
        ["measured"],
    ),
    _Open(
        "The whole process takes at most 3 times the model, the Grams and an idle process",
        "ours", f"{COMMAND} --measure", NAME, _process,
        lambda r: verdict(r["measured"]["peak_bytes"] <= r["measured"]["bound_bytes"]),
        ["measured"],
    ),
]  # fmt: skip
