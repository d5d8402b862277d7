"""Draws docs/nm_bits_per_byte.png and docs/nm_noise_flip.png from the stored language-model runs.

python benchmarks/nm_plots.py
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from claim import ROOT, stored
from publish_nm import LARGE, PATTERNS, RECIPES, mean, values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Style(NamedTuple):
    """How a recipe is drawn: colour, marker and line say the same thing three times."""

    colour: str
    marker: str
    line: str = "-"


_GREY, _PALE = "#6E6E6E", "#E6E6E6"
# Okabe and Ito's palette, which stays apart for every kind of colour vision; black is for dense.
STYLES = {
    "asp": Style("#CC79A7", "s"),
    "ste": Style("#56B4E9", "v"),
    "srste": Style("#D55E00", "D"),
    "mdgf_exp@5": Style("#0072B2", "^", ":"),
    "mdgf_exp": Style("#0072B2", "o"),
    "mdgf_exp@20": Style("#0072B2", "P", "--"),
    "mdgf_linear": Style("#009E73", "X"),
    "sdgf_stepwise": Style("#E69F00", "<"),
    "sdgf_geometric": Style("#E69F00", ">", "--"),
}
DENSE = "1:32 dense"


def bits_per_byte(result: Any) -> "Figure":
    """Bits per byte by pattern, a point for each recipe with one deviation of the seeds."""
    figure, (axes,) = _figure(1, (8.2, 4.8))
    offsets = [0.075 * (i - (len(STYLES) - 1) / 2) for i in range(len(STYLES))]
    shown = []
    for (recipe, style), offset in zip(STYLES.items(), offsets, strict=True):
        found = [values(result, f"{p} {recipe}") for p in PATTERNS]
        centres = [statistics.mean(v) for v in found]
        shown += centres
        axes.errorbar(
            [i + offset for i in range(len(PATTERNS))],
            centres,
            [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found],
            fmt=style.marker,
            color=style.colour,
            # Hollow, so that the three rates of one colour are told apart.
            mfc="white" if style.line != "-" else style.colour,
            ms=6,
            elinewidth=1.2,
            capsize=2.5,
            label=RECIPES[recipe],
            zorder=3,
        )
    dense, deviation = mean(result, DENSE), statistics.stdev(values(result, DENSE))
    axes.axhline(dense, color="black", lw=1.2, label="dense", zorder=2)
    axes.axhspan(dense - deviation, dense + deviation, color="black", alpha=0.07, lw=0)
    for i in range(1, len(PATTERNS)):
        axes.axvline(i - 0.5, color=_PALE, lw=0.9)
    top = max(shown) + 0.045
    axes.set_ylim(min(shown) - 0.02, top)
    axes.set_xlim(-0.5, len(PATTERNS) - 0.5)
    axes.set_xticks(range(len(PATTERNS)), PATTERNS)
    for i, pattern in enumerate(PATTERNS):
        value = mean(result, f"{pattern} one_shot")
        axes.text(i, top - 0.006, f"one shot: {value:.2f}", ha="center", va="top", fontsize=8.5)
    axes.set_xlabel("kept of every m weights of the feed-forward kernels")
    axes.set_ylabel("held-out bits per byte (lower is better)")
    axes.set_title("Finalized quality, ±1 sd over seeds", loc="left", fontsize=11, weight="bold")
    _finish(figure, axes, columns=4)
    return figure


def noise_and_flips(result: Any) -> "Figure":
    """Noise ratio and flip rate over the steps, at 1:32."""
    figure, panels = _figure(2, (10.4, 4.9))
    for axes, name in zip(panels, ("noise_ratio", "flip_rate"), strict=True):
        _curve(axes, result, DENSE, name, Style("black", ""), "dense")
        for recipe, style in STYLES.items():
            _curve(axes, result, f"1:32 {recipe}", name, style, RECIPES[recipe])
        axes.set_xlabel("step")
    noise, flips = panels
    noise.axhline(1, color=_GREY, lw=0.9, ls=(0, (1, 2)))
    noise.set_ylabel("gradient variance, pruned / kept")
    noise.set_title("Noise ratio at 1:32", loc="left", fontsize=11, weight="bold")
    flips.set_yscale("log")
    flips.set_ylabel("fraction of mask entries changed by a step")
    flips.set_title("Flip rate at 1:32", loc="left", fontsize=11, weight="bold")
    _finish(figure, noise, columns=4)
    return figure


def _curve(axes: "Axes", result: Any, key: str, name: str, style: Style, label: str) -> None:
    points = [(p["step"], statistics.mean(p[name])) for p in result["cells"][key]["probes"]]
    # A fixed mask lets no gradient through and never changes: its curve ends there.
    steps, heights = zip(*((step, y) for step, y in points if y > 0), strict=True)
    axes.plot(steps, heights, color=style.colour, ls=style.line, lw=1.6, label=label)


def _figure(panels: int, size: tuple[float, float]) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=104, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for axes in grid:
        axes.grid(axis="y", color=_PALE, lw=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, color="#B0B0B0")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    return figure, grid


def _finish(figure: "Figure", axes: "Axes", columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8.5}
    figure.legend(handles, labels, ncols=columns, **place)


def main(folder: Path = ROOT / "docs") -> None:
    """Writes both images."""
    records = stored(LARGE)
    if not records:
        sys.exit(f"nm_plots: benchmarks/results has no {LARGE}; run nm_language_model.py first")
    result = records[-1]["result"]
    bits_per_byte(result).savefig(folder / "nm_bits_per_byte.png")
    noise_and_flips(result).savefig(folder / "nm_noise_flip.png")


if __name__ == "__main__":
    main()
