"""What was claimed of one-shot compression of a sentence encoder, and how it is judged."""

import statistics
from collections.abc import Callable
from typing import Any

from claim import Claim, spread, stored, verdict

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


def _each(keys: list[str], name: str) -> Callable[[Any], str]:
    def words(result: Any) -> str:
        parts = [
            f"{LABELS[k.split()[0]]} {k.split()[1]}: {spread(result['cells'][k][name])}"
            for k in keys
        ]
        return f"{name.replace('_', ' ')} {'; '.join(parts)}; {_draws(result, keys)}"

    return words


def _draws(result: Any, keys: list[str]) -> str:
    counts = sorted({len(by_draw(result, k)) for k in keys})
    return f"{' to '.join(map(str, (counts[0], counts[-1])[: len(counts)]))} draws of a method"


def _margins(result: Any) -> str:
    least = {m: min(differences(result, "lord_centred 0.7", f"{m} 0.7")) for m in _MARGINS}
    return verdict(all(least[m] >= margin for m, margin in _MARGINS.items()))


def _ranked(result: Any) -> str:
    wrong = []
    for r in RATIOS:
        same = differences(result, f"lord {r}", f"whiten {r}")
        if max(map(abs, same)) > _SAME:
            wrong.append(f"at {r} whitening and LoRD differ by {max(map(abs, same)):.4f}")
        for better, worse in (("lord_centred", "lord"), ("lord", "asvd"), ("lord", "svd")):
            least = min(differences(result, f"{better} {r}", f"{worse} {r}"))
            if least < 0:
                wrong.append(f"at {r} {LABELS[better]} is {-least:.4f} below {LABELS[worse]}")
    return verdict(not wrong) + (f": {'; '.join(wrong)}" if wrong else "")


def gaps(result: Any, worse: str) -> list[float]:
    """By ratio, how far the mean over draws is below that of centred LoRD."""
    return [
        statistics.mean(differences(result, f"lord_centred {r}", f"{worse} {r}")) for r in RATIOS
    ]


def _gap_words(result: Any) -> str:
    parts = [
        f"below by {', '.join(f'{g:.4f}' for g in gaps(result, m))} ({LABELS[m]})"
        for m in ("lord", "asvd", "svd")
    ]
    return f"mean cosine at {', '.join(map(str, RATIOS))}: {'; '.join(parts)}"


def _growing(result: Any) -> str:
    names = ("lord", "asvd", "svd")
    wrong = [LABELS[m] for m in names if gaps(result, m) != sorted(gaps(result, m))]
    return verdict(not wrong) + (f" for {', '.join(wrong)}" if wrong else "")


def _always(pairs: list[tuple[str, str]], name: str) -> Callable[[Any], str]:
    """Whether the first of each pair is at least the second, in every draw."""

    def judge(result: Any) -> str:
        wrong = []
        for better, worse in pairs:
            found = differences(result, better, worse, name)
            if min(found) < 0:
                below = sum(x < 0 for x in found)
                wrong.append(
                    f"{_cell(better)} is below {_cell(worse)} in {below} of {len(found)} draws, "
                    f"by up to {-min(found):.4f}"
                )
        return verdict(not wrong) + (f": {'; '.join(wrong)}" if wrong else "")

    return judge


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
    return f"{'; '.join(rows)}; {len(result['ranks'])} draws of both samples"


def _monotone(result: Any) -> str:
    wrong = []
    for draw, row in result["ranks"].items():
        for name in ("recall_at_10", "recall_at_1"):
            dense, more, less = (row[k][name] for k in ("dense", "192", "96"))
            if not dense > more > less:
                wrong.append(f"draw {draw} {name}: {dense:.4f}, {more:.4f}, {less:.4f}")
    return verdict(not wrong) + (f": {'; '.join(wrong)}" if wrong else "")


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
_AT_07 = _keys("lord_centred", "asvd", "svd", ratios=(0.7,))
_GREEDY = _keys("greedy", "lord_centred")
_NM = [f"{m} {p}" for m in ("sparsegpt", "wanda", "magnitude") for p in ("2:4", "4:8")]
MINILM_CLAIMS = [
    Claim(
        "On a sentence encoder's MLP at seven tenths of its parameters, centred LoRD keeps a mean "
        "cosine at least 0.08 above ASVD and 0.15 above SVD, in every draw of calibration data",
        "ours", COMMAND, NAME, _each(_AT_07, "mean_cosine"), _margins, _AT_07,
    ),
    Claim(
        "In every draw, at 0.9, 0.7 and 0.5: centred LoRD is at least uncentred LoRD, which is "
        "whitening and above ASVD and SVD (mean cosine)",
        "Kaushal et al., 2023", COMMAND, NAME,
        _each(_keys(*_DECOMPOSITIONS), "mean_cosine"), _ranked, _keys(*_DECOMPOSITIONS),
    ),
    Claim(
        "The gaps below centred LoRD grow with compression",
        "ours", COMMAND, NAME, _gap_words, _growing, _keys(*_DECOMPOSITIONS),
    ),
    Claim(
        "Ranks by spectra (greedy) are at least as good as uniform ones at equal parameters, in "
        "every draw (mean cosine)",
        "Kaushal et al., 2023", COMMAND, NAME, _each(_GREEDY, "mean_cosine"),
        _always([(f"greedy {r}", f"lord_centred {r}") for r in RATIOS], "mean_cosine"), _GREEDY,
    ),
    Claim(
        "One-shot N:M on a sentence encoder: SparseGPT is at least Wanda, Wanda at least "
        "magnitude, and 4:8 at least 2:4, in every draw (Spearman)",
        "ours", COMMAND, NAME, _each(_NM, "spearman"),
        _always(
            [(f"sparsegpt {p}", f"wanda {p}") for p in ("2:4", "4:8")]
            + [(f"wanda {p}", f"magnitude {p}") for p in ("2:4", "4:8")]
            + [(f"{m} 4:8", f"{m} 2:4") for m in ("sparsegpt", "wanda", "magnitude")],
            "spearman",
        ),
        _NM,
    ),
    _Open(
        "Retrieval falls with the rank: dense is above rank 192, which is above rank 96, in every "
        "draw",
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
