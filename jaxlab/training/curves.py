"""The picture of a run: training loss, and the held-out quality with and without `finalize`."""

import os
from collections.abc import Sequence
from typing import Any

from jaxlab.tasks.base import Quality


def plot_curves(
    path: str | os.PathLike, metrics: Sequence[dict[str, Any]], quality: Quality
) -> None:
    """Draws the curves of a metrics file into an image.

    Args:
      path: of the image.
      metrics: lines of the metrics file.
      quality: the task's metric.
    """
    # The object interface: no window system is asked for and no global figure is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    train = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    if train:
        left.plot(*zip(*train, strict=True), color="#0072b2", linewidth=1.2)
        # A log density may have either sign.
        left.set_yscale("log" if min(loss for _, loss in train) > 0 else "linear")
    left.set(xlabel="step", ylabel="training loss")
    styles = {"trained": ("#0072b2", "-", "o"), "finalized": ("#d55e00", "--", "s")}
    for form, (color, line, marker) in styles.items():
        key = f"{form}/{quality.name}"
        points = [(m["step"], m[key]) for m in metrics if key in m]
        if points:
            right.plot(
                *zip(*points, strict=True),
                color=color,
                linestyle=line,
                marker=marker,
                markersize=4,
                label=form,
            )
    right.set(xlabel="step", ylabel=f"held-out {quality.name.replace('_', ' ')}")
    if right.lines:
        right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)
