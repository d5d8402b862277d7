"""The generated part of docs/special/vmf.md."""

from typing import Any

from claim import machine, spread, stored
from numerics_page import table


def group(result: Any, kind: str) -> dict[tuple[str, ...], list[Any]]:
    """Cells of a kind by the words of their name, without the last: the seeds of one setting."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for name, cell in result["cells"].items():
        first, *words = name.split()
        if first == kind:
            found.setdefault(tuple(words[:-1]), []).append(cell)
    return found


def single(result: Any, kind: str) -> dict[str, Any]:
    """Cells of a kind that have no seed, by the rest of their name."""
    names = [name for name in result["cells"] if name.split()[0] == kind]
    return {name.removeprefix(f"{kind} "): result["cells"][name] for name in names}


def in_errors(cell: Any, kappa: float, which: str) -> float:
    """The error of an estimate, in standard errors of the maximum-likelihood estimate."""
    return abs(cell[which] - kappa) / cell["standard_error"]


def _fits(result: Any) -> str:
    rows = []
    for (p, kappa), seeds in group(result, "fit").items():
        failed = sum(cell["scipy"] is None for cell in seeds)
        worst = max(abs(cell["banerjee"] / cell["ours"] - 1) for cell in seeds)
        rows.append(
            [
                p,
                f"{float(kappa):g}",
                ", ".join(f"{cell['ours']:.5g}" for cell in seeds),
                f"{failed} of {len(seeds)}",
                f"{worst:.1e}",
                f"{min(cell['gain'] for cell in seeds):.1e}",
                f"{max(in_errors(cell, float(kappa), 'ours') for cell in seeds):.1f}",
                f"{max(in_errors(cell, float(kappa), 'known_mean') for cell in seeds):.1f}",
            ]
        )
    head = [
        "p", "kappa", "fitted", "scipy fails", "Banerjee off by", "likelihood gained on it",
        "error / s.e.", "the same, mu known",
    ]  # fmt: skip
    return table(head, rows)


def _classes(result: Any, kind: str, of: str, outside: str) -> str:
    rows = [
        [
            number,
            components,
            spread(cell["accuracy"] for cell in seeds),
            spread(cell["centroid_accuracy"] for cell in seeds),
            spread(cell["outside_auroc"] for cell in seeds),
            f"{min(cell['finite'] for cell in seeds):.0%}",
        ]
        for (number, components), seeds in group(result, kind).items()
    ]
    head = [of, "components a class", "accuracy", "nearest centroid", f"AUROC, {outside}", "finite"]
    return table(head, rows)


def vmf_page() -> str:
    """What stands between the markers of the page."""
    records = stored("vmf_fit")
    record, result = records[0], records[0]["result"]
    ratios = [
        [p, f"{c['scipy']:.0%}", f"{c['ours']:.0%}"] for p, c in single(result, "ratio").items()
    ]
    mixtures = [
        [
            machine(of),
            *name.split(),
            f"{cell['trace'][0]:.1f} to {cell['trace'][-1]:.1f}",
            f"{cell['clusters_found']} of {cell['clusters']}",
            "yes" if cell["finite"] else "no",
            f"{cell['seconds']:.1f}" if "seconds" in cell else "",
        ]
        for of in records
        for name, cell in single(of["result"], "mixture").items()
    ]
    return "\n\n".join(
        [
            f"Machine: {machine(record)}.",
            f"Fits to {result['points']} points, 3 seeds each:",
            _fits(result),
            "Share of a grid of kappa from 0.01 to 1e6 where the ratio of Bessel functions is "
            "finite:",
            table(["p", "scipy", "here"], ratios),
            "Digits in random dimensions, mean and deviation over 3 draws of the features:",
            _classes(result, "digits", "p", "permuted pixels"),
            "Modules of the standard library by embeddings of docstrings, 384 dimensions:",
            _classes(result, "docstrings", "modules", "code"),
            "Mixtures by EM in float32, 20 steps; seconds are without compiling:",
            table(
                [
                    "machine",
                    "p",
                    "components",
                    "points",
                    "mean log-likelihood",
                    "clusters found",
                    "finite",
                    "seconds",
                ],
                mixtures,
            ),
        ]
    )
