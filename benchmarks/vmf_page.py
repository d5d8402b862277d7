"""The generated part of docs/special/vmf.md."""

from typing import Any

from claim import ROOT, machine, spread, stored
from numerics_page import table, with_content

PAGE = ROOT / "docs" / "special" / "vmf.md"


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


def _digits(result: Any) -> str:
    rows = [
        [
            dim,
            components,
            spread(cell["accuracy"] for cell in seeds),
            spread(cell["centroid_accuracy"] for cell in seeds),
            spread(cell["outside_auroc"] for cell in seeds),
            f"{min(cell['finite'] for cell in seeds):.0%}",
        ]
        for (dim, components), seeds in group(result, "digits").items()
    ]
    head = [
        "p", "components a class", "accuracy", "nearest centroid", "AUROC, permuted pixels",
        "finite",
    ]  # fmt: skip
    return table(head, rows)


def content(record: Any) -> str:
    """All tables of a stored result."""
    result = record["result"]
    ratios = [
        [p, f"{c['scipy']:.0%}", f"{c['ours']:.0%}"] for p, c in single(result, "ratio").items()
    ]
    mixtures = [
        [
            *name.split(),
            f"{cell['trace'][0]:.1f} to {cell['trace'][-1]:.1f}",
            f"{cell['clusters_found']} of {cell['clusters']}",
            "yes" if cell["finite"] else "no",
        ]
        for name, cell in single(result, "mixture").items()
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
            _digits(result),
            "Mixtures by EM in float32, 20 steps:",
            table(
                ["p", "components", "points", "mean log-likelihood", "clusters found", "finite"],
                mixtures,
            ),
        ]
    )


def write_page() -> None:
    """Rewrites the page from what is stored, the CPU's results."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_content(text, content(stored("vmf_fit")[0])), encoding="utf-8")
    print(f"rewritten: {PAGE.relative_to(ROOT)}")
