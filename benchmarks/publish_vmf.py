"""What is claimed of von Mises-Fisher fits, and how their stored results are judged."""

import statistics
from typing import Any

from claim import CPU, Claim, spread, stored, verdict
from vmf_page import group, in_errors, single


def _fits(result: Any) -> list[Any]:
    return [cell for seeds in group(result, "fit").values() for cell in seeds]


def _worst_error(result: Any, which: str) -> float:
    return max(
        in_errors(cell, float(kappa), which)
        for (_, kappa), seeds in group(result, "fit").items()
        for cell in seeds
    )


def _digits(result: Any, components: str) -> dict[str, list[Any]]:
    found = group(result, "digits")
    return {p: seeds for (p, count), seeds in found.items() if count == components}


def _against_centroid(result: Any) -> str:
    return "; ".join(
        f"p = {p}: accuracy {spread(c['accuracy'] for c in seeds)}, nearest centroid "
        f"{spread(c['centroid_accuracy'] for c in seeds)}"
        for p, seeds in _digits(result, "1").items()
    )


def _docstrings(result: Any) -> list[Any]:
    return group(result, "docstrings")["10", "1"]


def vmf_facts() -> dict[str, str]:
    """The generated lines of the docstring of configs/vmf_digits.py."""
    return _facts(_digits(_on_cpu(), "1"), "p")


def docstrings_facts() -> dict[str, str]:
    """The generated lines of the docstring of configs/vmf_docstrings.py."""
    found = group(_on_cpu(), "docstrings")
    return _facts(
        {number: cells for (number, count), cells in found.items() if count == "1"}, "modules"
    )


def _on_cpu() -> Any:
    return next(r["result"] for r in stored("vmf_fit") if r["device"] == CPU)


def _facts(cells: dict[str, list[Any]], of: str) -> dict[str, str]:
    runs = next(iter(cells.values()))
    seconds = statistics.median(c["seconds"] for c in runs)
    found = "; ".join(
        f"{of} = {number} accuracy {spread(c['accuracy'] for c in seeds)}, finite "
        f"{min(c['finite'] for c in seeds):.0%}"
        for number, seeds in cells.items()
    )
    return {
        "Wall time, 2 CPU cores:": f"{seconds:.0f} s besides starting (shared machine)",
        "Result:": f"{found}; ({len(runs)} seed{'s' * (len(runs) > 1)})",
    }


_SHARES = (0.39, 0.24, 0.09, 0.0)
_RUN = ("python benchmarks/vmf_fit.py", "vmf_fit")
# A machine may have run some kinds of cells only.
_FIT, _RATIO, _DIGITS = ("fit 32768 100000 2",), ("ratio 131072",), ("digits 32768 1 2",)
_DOCSTRINGS = ("docstrings 10 1 0",)
_MIXTURE = "mixture 2048 100 100000"
VMF_CLAIMS = [
    Claim(
        "A fit in 2048, 8192 and 32768 dimensions succeeds at every concentration from 100 to 1e5, "
        "where the same with scipy's Bessel functions fails for most",
        "Plesner et al., 2024", *_RUN,
        lambda r: f"scipy fails in {sum(c['scipy'] is None for c in _fits(r))} of "
        f"{len(_fits(r))} fits, ours in none",
        lambda r: verdict(
            2 * sum(c["scipy"] is None for c in _fits(r)) > len(_fits(r))
            and all(0 < c["ours"] < float("inf") for c in _fits(r))
        ),
        _FIT,
    ),
    Claim(
        "The ratio of scipy's Bessel functions is finite for 39, 24, 9 and 0 % of concentrations "
        "from 0.01 to 1e6 in 2048, 8192, 32768 and 131072 dimensions (to 1 point), ours for all",
        "ours", *_RUN,
        lambda r: "scipy " + ", ".join(f"{c['scipy']:.1%}" for c in single(r, "ratio").values())
        + "; ours " + ", ".join(f"{c['ours']:.0%}" for c in single(r, "ratio").values()),
        lambda r: verdict(
            all(
                abs(c["scipy"] - share) <= 0.01
                for c, share in zip(single(r, "ratio").values(), _SHARES, strict=True)
            )
            and all(c["ours"] == 1 for c in single(r, "ratio").values())
        ),
        _RATIO,
    ),
    Claim(
        "The fit's likelihood is at least that of Banerjee's approximation in every cell",
        "ours", *_RUN,
        lambda r: f"gained, by point: {min(c['gain'] for c in _fits(r)):.1e} to "
        f"{max(c['gain'] for c in _fits(r)):.1e} nats",
        lambda r: verdict(min(c["gain"] for c in _fits(r)) >= 0),
        _FIT,
    ),
    Claim(
        "The fitted concentration is within 3 standard errors of the true one in every cell "
        "(500 points)",
        "ours", *_RUN,
        lambda r: f"largest error {_worst_error(r, 'ours'):.0f} standard errors: with more "
        "dimensions than points the mean is long by chance, and maximum likelihood biased; with "
        f"the mean direction known, {_worst_error(r, 'known_mean'):.1f}",
        lambda r: verdict(_worst_error(r, "ours") < 3),
        _FIT,
    ),
    Claim(
        "Every log-likelihood of held-out digits is finite in 2048, 8192 and 32768 dimensions",
        "ours", *_RUN,
        lambda r: "finite: " + ", ".join(
            f"{min(c['finite'] for c in seeds):.0%} (p = {p})"
            for p, seeds in _digits(r, "1").items()
        ),
        lambda r: verdict(
            all(c["finite"] == 1 for seeds in _digits(r, "1").values() for c in seeds)
        ),
        _DIGITS,
    ),
    Claim(
        "One distribution a class classifies digits in random dimensions better than the nearest "
        "centroid by cosine",
        "ours", *_RUN,
        _against_centroid,
        lambda r: verdict(
            all(
                sum(c["accuracy"] - c["centroid_accuracy"] for c in seeds) > 0
                for seeds in _digits(r, "1").values()
            )
        ),
        _DIGITS,
    ),
    Claim(
        "Every log-likelihood of held-out docstrings is finite, by embeddings of 384 dimensions, "
        "and code is less likely than docstrings (AUROC above 0.5)",
        "ours", f"{_RUN[0]} --only=docstrings", _RUN[1],
        lambda r: f"finite: {min(c['finite'] for c in _docstrings(r)):.0%}; AUROC "
        f"{spread(c['outside_auroc'] for c in _docstrings(r))}",
        lambda r: verdict(
            all(c["finite"] == 1 and c["outside_auroc"] > 0.5 for c in _docstrings(r))
        ),
        _DOCSTRINGS,
    ),
    Claim(
        "One distribution a module classifies docstrings better than the nearest centroid by "
        "cosine",
        "ours", f"{_RUN[0]} --only=docstrings", _RUN[1],
        lambda r: f"accuracy {spread(c['accuracy'] for c in _docstrings(r))}, nearest centroid "
        f"{spread(c['centroid_accuracy'] for c in _docstrings(r))}",
        lambda r: verdict(
            sum(c["accuracy"] - c["centroid_accuracy"] for c in _docstrings(r)) > 0
        ),
        _DOCSTRINGS,
    ),
    Claim(
        "A mixture of 100 distributions in 2048 dimensions is fitted to 1e5 points by EM without "
        "a value that is not finite",
        "ours", f"{_RUN[0]} --only=mixture --mixture=2048,100,100000", _RUN[1],
        lambda r: f"{r['cells'][_MIXTURE]['clusters_found']} of 100 clusters found in "
        f"{r['cells'][_MIXTURE]['seconds']:.1f} s, 20 steps",
        lambda r: verdict(r["cells"][_MIXTURE]["finite"]),
        (_MIXTURE,),
    ),
]  # fmt: skip
