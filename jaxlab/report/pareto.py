"""The Pareto front of quality against stored size, and its plot."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxlab.report.runs import Group, Mode, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

# Blue and vermilion of Okabe and Ito's palette stay apart for every kind of colour vision. Filled
# against hollow says the same again, so a print in grey loses nothing.
_FRONT, _DOMINATED, _GREY = "#0072B2", "#D55E00", "#6E6E6E"


def pareto_front(points: Sequence[tuple[float, float]], mode: Mode) -> list[int]:
    """Which points no other point dominates.

    A point dominates another if it is no larger and no worse, and differs from it; so of two equal
    points both stay. A point whose quality is not finite is never on the front.

    Args:
      points: (size, quality) pairs; a smaller size is better.
      mode: "max" if more quality is better, "min" if less is.

    Returns:
      Indices of the front, by rising size.

    Raises:
      ValueError: another mode.

    >>> pareto_front([(10, 0.90), (20, 0.85), (30, 0.95)], "max")
    [0, 2]
    """
    if mode not in ("max", "min"):
        raise ValueError(f"pareto_front: mode={mode!r}; valid: max, min")
    sign = -1.0 if mode == "max" else 1.0
    losses = [(size, sign * quality) for size, quality in points]
    finite = [i for i, (_, loss) in enumerate(losses) if math.isfinite(loss)]
    front: list[int] = []
    for i in sorted(finite, key=lambda i: losses[i]):
        if not front or losses[i][1] < losses[front[-1]][1] or losses[i] == losses[front[-1]]:
            front.append(i)
    return front


def plot(groups: Sequence[Group], path: str | Path | None = None) -> "Figure":
    """Draws finalized quality against stored size, one panel per group.

    Each row is a labelled point with an error bar of one sample standard deviation over seeds; the
    Pareto front is a line of steps and each dense size a dotted line.

    Args:
      groups: at least one.
      path: the image file to write, if any.

    Returns:
      A matplotlib figure with its own Agg canvas; matplotlib's global state is not touched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(groups), 2)
    lines = -(-len(groups) // columns)
    # Labels of a crowded panel need room; ten fit into the usual height.
    height = 4.3 + 0.12 * max(0, max(len(g.rows) for g in groups) - 10)
    figure = Figure(figsize=(6.4 * columns, height * lines + 0.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    paths = [_draw_panel(axes, group) for axes, group in zip(grid, groups, strict=False)]
    marks = [
        Line2D([], [], color=_FRONT, marker="o", label="Pareto front"),
        Line2D([], [], color=_DOMINATED, marker="o", mfc="white", ls="", label="dominated"),
        Line2D([], [], color=_GREY, marker="|", ms=11, ls="", label="±1 sd over seeds"),
        Line2D([], [], color=_GREY, ls=":", label="dense size"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    # Labels are placed in pixels, so the layout must be final first and must not move for them.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, group, avoid in zip(grid, groups, paths, strict=False):
        _place_labels(axes, group.rows, avoid)
    if path is not None:
        figure.savefig(path)
    return figure


def _draw_panel(axes: "Axes", group: Group) -> list[list[tuple[float, float]]]:
    """Draws all but the labels; returns the polylines that labels had better not cross."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    sizes = [size for row in group.rows for size in (row.stored_bytes, row.dense_bytes)]
    low, high = min(sizes), max(sizes)
    # Ticks sit at 1, 2 and 5 of each decade: a span of 6 holds at least two.
    pad = max(1.3, math.sqrt(6 * low / high))
    low, high = low / pad, high * pad
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))

    points = [(row.stored_bytes, row.finalized.mean) for row in group.rows]
    front = pareto_front(points, group.mode)
    for i, row in enumerate(group.rows):
        if math.isfinite(row.finalized.mean):
            colour = _FRONT if i in front else _DOMINATED
            style: dict[str, Any] = {"color": colour, "mfc": colour if i in front else "white"}
            style |= {"ms": 6, "mew": 1.4, "elinewidth": 1.2, "capsize": 2.5, "zorder": 3}
            axes.errorbar(*points[i], row.finalized.sd, fmt="o", **style)
    avoid = []
    if not front:
        axes.set_yticks([])
    else:
        corners = [*(points[i] for i in front), (high, points[front[-1]][1])]
        axes.step(*zip(*corners, strict=True), where="post", color=_FRONT, lw=2.2, alpha=0.35)
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            avoid.append([(x0, y0), (x1, y0), (x1, y1)])
    axes.margins(y=0.18)
    axes.autoscale_view(scalex=False)
    for size in {row.dense_bytes for row in group.rows}:
        axes.axvline(size, color=_GREY, ls=":", lw=1.3, zorder=1)
        avoid.append([(size, y) for y in axes.get_ylim()])

    absent = ", ".join(row.label for row in group.rows if not math.isfinite(row.finalized.mean))
    note = f"\nnot shown, quality not finite: {absent}" if absent else ""
    axes.set_title(group.title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(f"stored size (log scale){note}")
    axes.set_ylabel(f"{group.quality} ({group.direction} is better)")
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color="#B0B0B0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    return avoid


def _place_labels(
    axes: "Axes", rows: Sequence[Row], avoid: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Gives each point's label the cheapest of many places around it, one label after another."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    to_pixels = axes.transData.transform
    unit = axes.figure.dpi / 72  # pixels per point
    low, high = axes.get_window_extent().get_points()
    shown = [row for row in rows if math.isfinite(row.finalized.mean)]
    anchors, marks = [], []
    for row in shown:
        mean, sd = row.finalized.mean, row.finalized.sd or 0.0
        x, y = to_pixels((row.stored_bytes, mean))
        reach = to_pixels((row.stored_bytes, mean + sd))[1] - y
        anchors.append((x, y))
        marks.append((_box(x, y, 8 * unit, 8 * unit), _box(x, y, 6 * unit, 2 * reach)))
    labels, strokes, leaders = [], [], []
    for line in avoid:
        for (x0, y0), (x1, y1) in itertools.pairwise(to_pixels(vertex) for vertex in line):
            strokes.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))

    for i in sorted(range(len(shown)), key=anchors.__getitem__):
        row, (x, y) = shown[i], anchors[i]
        taken = [*labels, *(box for j, pair in enumerate(marks) if j != i for box in pair)]
        text = axes.annotate(
            row.label,
            (row.stored_bytes, row.finalized.mean),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            color="#222222",
            zorder=5,
            arrowprops={"arrowstyle": "-", "color": _GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        extent = Text.get_window_extent(text)  # an annotation's own adds its leader line
        width, height = extent.width + 2 * unit, extent.height
        best: tuple[float, Any] = (math.inf, None)
        for distance, angle in itertools.product((7, 14, 24, 36, 50, 66, 84), range(0, 360, 30)):
            dx = math.cos(math.radians(angle)) * (distance * unit + width / 2)
            dy = math.sin(math.radians(angle)) * (distance * unit + height / 2)
            box = _box(x + dx, y + dy, width, height)
            leader = [_box(x + t / 12 * dx, y + t / 12 * dy, 0, 0) for t in range(3, 13)]
            outside = any(box[:2] < low) or any(box[2:] > high)
            cost = distance + 1e4 * outside + 1e3 * _overlaps([box], [*taken, *marks[i]])
            cost += 200 * (_overlaps(leader, taken) + _overlaps([box], leaders))
            cost += 30 * _overlaps([box], strokes)
            if cost < best[0]:
                best = (cost, (distance, dx, dy, box, leader))
        distance, dx, dy, box, leader = best[1]
        text.set_position((dx / unit, dy / unit))
        labels.append(box)
        if distance > 14:
            leaders.extend(leader)
        elif text.arrow_patch is not None:
            text.arrow_patch.set_visible(False)


def _box(x: float, y: float, width: float, height: float) -> Box:
    height = abs(height)
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _overlaps(some: Sequence[Box], others: Sequence[Box]) -> int:
    """How many pairs of boxes share a point."""
    return sum(
        a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
        for a in some
        for b in others
    )
