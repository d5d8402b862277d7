"""Pictures of a solution and of the kernels that were learned, into matplotlib figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BLUE, _ORANGE = "#0072b2", "#d55e00"


def draw_solution(
    figure: Any, axes: Sequence[np.ndarray], found: np.ndarray, exact: np.ndarray | None
) -> None:
    """Draws a solution of one or two variables, and its error where the exact one is known.

    Args:
      figure: an empty `matplotlib.figure.Figure`.
      axes: the points of each axis.
      found: the solution there.
      exact: the exact one, or None.
    """
    count = 1 if exact is None else 2
    figure.set_size_inches(9, 3.4)
    panels = np.atleast_1d(figure.subplots(1, count))
    shown = [("solution", found)] + ([] if exact is None else [("error", found - exact)])
    for panel, (title, values) in zip(panels, shown, strict=True):
        panel.set_title(title)
        # Of more than two variables, the plane through the middle of the others.
        plane = values[(..., *(n // 2 for n in values.shape[2:]))] if values.ndim > 2 else values
        if plane.ndim == 1:
            panel.plot(axes[0], plane, color=_BLUE, linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
            continue
        image = panel.pcolormesh(axes[0], axes[1], plane.T, shading="nearest", cmap="RdBu_r")
        figure.colorbar(image, ax=panel)


def draw_spectrum(figure: Any, processes: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Draws the weights of the components over their frequencies, a panel for each axis.

    Args:
      figure: an empty `matplotlib.figure.Figure`.
      processes: for each process, the components of each axis; without frequencies they are at 0.
    """
    count = len(processes[0])
    figure.set_size_inches(5 * count, 3.4)
    panels = np.atleast_1d(figure.subplots(1, count))
    colors = (_BLUE, _ORANGE)
    for axis, panel in enumerate(panels):
        for number, kernels in enumerate(processes):
            weight = np.exp(np.asarray(kernels[axis]["log_w"]))
            freq = np.abs(np.asarray(kernels[axis].get("freq", np.zeros_like(weight))))
            color = colors[number % len(colors)]
            panel.vlines(freq, 1e-8, np.maximum(weight, 1e-8), color=color, linewidth=1)
            panel.plot(freq, weight, "o", color=color, markersize=4, label=f"process {number + 1}")
        panel.set(xlabel="frequency", ylabel="weight", yscale="log", title=f"axis {axis}")
        panel.spines[["top", "right"]].set_visible(False)
    if len(processes) > 1:
        panels[0].legend(frameon=False)
