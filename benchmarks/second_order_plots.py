"""Draws the plots of docs/second_order.md, held-out loss by steps and by seconds, of stored runs.

python benchmarks/second_order_plots.py
"""

import statistics
import sys
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claim import ROOT, stored
from nm_plots import Style
from second_order_page import CURVES
from second_order_results import BASE, LARGE, MODELS, final, runs_of, step_seconds, target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PALE = "#E6E6E6"
# Okabe and Ito's palette; black is what the others are measured against.
STYLES = {
    "AdamW": Style("black", ""),
    "SGD-momentum": Style("#6E6E6E", "", "--"),
    "LAMB": Style("#CC79A7", "", "--"),
    "Muon": Style("#D55E00", ""),
    "Eva": Style("#009E73", ""),
    "MKOR every step": Style("#0072B2", ""),
    "MKOR every 10": Style("#0072B2", "", "--"),
    "MKOR-H": Style("#56B4E9", "", ":"),
    "M-FAC m=128": Style("#E69F00", "", "--"),
    "M-FAC m=512": Style("#E69F00", ""),
}


def curves(result: Any) -> "Figure":
    """A row for each model that was run: the mean over the seeds, by steps and by seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = [model for model in MODELS if runs_of(result, model, BASE)]
    figure = Figure(figsize=(9.6, 3.7 * len(models) + 0.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for row, model in zip(figure.subplots(len(models), 2, squeeze=False), models, strict=True):
        for axes, timed in zip(row, (False, True), strict=True):
            _panel(axes, result, model, timed)
        row[0].set_title(MODELS[model], loc="left", fontsize=11, weight="bold")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    # A model may lack an optimizer that another has.
    shown = [lines[label] for label in STYLES if label in lines]
    place: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8.5}
    figure.legend(handles=shown, ncols=5, **place)
    return figure


def _panel(axes: "Axes", result: Any, model: str, timed: bool) -> None:
    every, loss = result["models"][model]["every"], target(result, model)
    axes.axhline(loss, color="black", lw=0.9, ls=(0, (1, 2)))
    widest = 0.0
    for label, style in STYLES.items():
        cells = [c for c in runs_of(result, model, label) if final(c) < float("inf")]
        if not cells:
            continue
        heights = [
            statistics.mean(v for v in column if v is not None)
            for column in zip_longest(*(c["held_out"] for c in cells))
        ]
        each = statistics.mean(step_seconds(result, model, c) for c in cells) if timed else 1.0
        steps = [each * every * (i + 1) for i in range(len(heights))]
        widest = max(widest, steps[-1] if label in (BASE, "LAMB", "Muon") else 0.0)
        axes.plot(steps, heights, color=style.colour, ls=style.line, lw=1.5, label=label)
    # Beyond twice what a first-order run takes there is nothing to win.
    axes.set_xlim(0, 2 * widest if timed else None)
    axes.set_ylim(0.93 * loss, 2.2 * loss)
    axes.set_xlabel("seconds of training steps" if timed else "step")
    axes.set_ylabel("held-out loss")
    axes.grid(axis="y", color=_PALE, lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def main(folder: Path = ROOT / "docs") -> None:
    """Writes an image for each race that is stored."""
    drawn = 0
    for race, name in CURVES.items():
        records = [r for r in stored(race) if any(runs_of(r["result"], m, BASE) for m in MODELS)]
        drawn += len(records)
        if records:
            curves(records[-1]["result"]).savefig(folder / name)
    if not drawn:
        sys.exit(f"second_order_plots: benchmarks/results has no {LARGE}; run second_order.py")


if __name__ == "__main__":
    main()
