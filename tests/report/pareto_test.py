"""The Pareto front and its plot: which points are on it, and what the figure shows."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.text import Text

from jaxlab.report.pareto import pareto_front, plot
from jaxlab.report.runs import Group, Row, Statistic


def group(points, *, mode="max", dense=400_000, title="digits"):
    """A group of rows from (label, stored bytes, quality, sd)."""
    rows = []
    for label, stored, quality, sd in points:
        rows.append(
            Row(
                label=label,
                runs=(),
                trained=Statistic(quality, sd),
                finalized=Statistic(quality, sd),
                dense_bytes=dense,
                stored_bytes=stored,
                steps_per_second=30.0,
            )
        )
    return Group("classify", title, "accuracy", mode, tuple(rows))


def dominates(a, b, mode):
    worse = a[1] < b[1] if mode == "max" else a[1] > b[1]
    return a[0] <= b[0] and not worse and a != b


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(10))
def test_front_is_exactly_what_nothing_dominates(mode, seed):
    # Few distinct values make ties and equal points common.
    rng = np.random.default_rng(seed)
    points = [(int(s), float(q)) for s, q in rng.integers(0, 8, size=(20, 2))]
    front = pareto_front(points, mode)
    free = {
        i for i, p in enumerate(points) if not any(dominates(other, p, mode) for other in points)
    }
    assert set(front) == free
    assert len(front) == len(free)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_modes_differ_and_diverged_points_are_never_on_the_front():
    points = [(10, 0.5), (20, 0.9), (30, 0.1), (5, math.nan), (1, math.inf)]
    assert pareto_front(points, "max") == [0, 1]
    assert pareto_front(points, "min") == [0, 2]
    assert pareto_front([], "max") == []
    with pytest.raises(ValueError, match="mode='best'; valid: max, min"):
        pareto_front(points, "best")  # type: ignore[arg-type]


def texts(axes):
    return {text.get_text(): text for text in axes.texts}


def test_labels_name_every_point_and_overlap_neither_each_other_nor_points():
    rng = np.random.default_rng(1)
    sizes = 10 ** rng.uniform(4.3, 5.6, size=12)
    quality = 0.98 - 0.02 * (5.6 - np.log10(sizes)) ** 2 + 0.004 * rng.random(12)
    points = [
        (f"digits_vit_{i}", int(size), float(quality[i]), 0.001) for i, size in enumerate(sizes)
    ]
    figure = plot([group(points)])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = texts(axes)
    assert set(labels) == {label for label, *_ in points}
    # An annotation's own extent includes its leader line.
    boxes = {name: Text.get_window_extent(text) for name, text in labels.items()}
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not a.overlaps(b)
    frame = axes.get_window_extent()
    for box in boxes.values():
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        for _, size, quality, _ in points:
            assert not box.contains(*axes.transData.transform((size, quality)))


def test_each_panel_has_its_front_its_dense_sizes_and_its_direction():
    up = group([("a", 100_000, 0.9, 0.01), ("b", 50_000, 0.8, None), ("c", 200_000, 0.7, 0.01)])
    down = group([("d", 1000, 2.0, None)], mode="min", dense=4000, title="text")
    figure = plot([up, down])
    first, second = figure.axes
    assert "higher" in first.get_ylabel()
    assert "lower" in second.get_ylabel()
    assert first.get_xscale() == "log"
    (steps,) = [line for line in first.lines if line.get_drawstyle() == "steps-post"]
    corners = list(zip(steps.get_xdata(), steps.get_ydata(), strict=True))
    assert corners[:2] == [(50_000, 0.8), (100_000, 0.9)]
    assert corners[2] == (first.get_xlim()[1], 0.9)
    for axes, dense in ((first, 400_000), (second, 4000)):
        (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert list(dotted.get_xdata()) == [dense, dense]


def test_a_point_that_diverged_is_named_and_not_drawn(tmp_path):
    points = [("well", 1000, 0.9, None), ("gone", 2000, math.nan, None)]
    figure = plot([group(points), group(points[1:])], tmp_path / "pareto.png")
    for axes in figure.axes:
        assert "not finite: gone" in axes.get_xlabel()
        assert "gone" not in texts(axes)
    assert set(texts(figure.axes[0])) == {"well"}
    assert (tmp_path / "pareto.png").stat().st_size > 1000
