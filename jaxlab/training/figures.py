"""What a run shows beside its curves: the figures of its task, the step that it would choose."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlab.tasks.base import Quality

# Draws into an empty matplotlib figure.
Drawing = Callable[[Any], None]


def save_figures(folder: str | os.PathLike, drawings: Mapping[str, Drawing]) -> None:
    """Draws each figure into `<name>.png` in a folder.

    Args:
      folder: an existing folder.
      drawings: by name, functions of an empty `matplotlib.figure.Figure`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name, draw in drawings.items():
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(Path(folder) / f"{name}.png", dpi=150)


def chosen_step(metrics: Sequence[Mapping[str, Any]], choice: Quality) -> dict[str, Any]:
    """The evaluation at which a metric was best: its step and its metrics; empty without any.

    Args:
      metrics: lines of the metrics file.
      choice: the metric.

    >>> lines = [{"step": 2, "trained/a": 1.0}, {"step": 4, "trained/a": 3.0}]
    >>> chosen_step(lines, Quality("a", "min"))
    {'step': 2, 'a': 1.0}
    """
    key, sign = f"trained/{choice.name}", {"min": 1, "max": -1}[choice.mode]
    found = [line for line in metrics if key in line]
    if not found:
        return {}
    best = min(found, key=lambda line: sign * line[key])
    values = {k.removeprefix("trained/"): v for k, v in best.items() if k.startswith("trained/")}
    return {"step": best["step"], **values}
