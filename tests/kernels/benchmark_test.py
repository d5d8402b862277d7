"""The benchmark of the kernels: what is measured, what is stored, and how that is read."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[2]
LIMITS = {"bandwidth": 1e12, "bf16": 1e15, "int8": 2e15, "float32": 1e14}


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@dataclasses.dataclass(frozen=True)
class Factor:
    """A configuration whose kernel is right where it is 1."""

    factor: float


class Problem(NamedTuple):
    """What a choice looks at."""

    rows: int = 4
    sizes: tuple[int, int] = (8, 8)
    family: str = "f"
    key: str = "f/8x8/b4"
    layout_version: int = 3


def kernel(config):
    """A product, or what cannot be compiled."""
    if config.factor < 0:
        raise NotImplementedError("less than nothing")
    return lambda x, w: config.factor * x @ w


def timed(us, **more):
    """A row with a time on the device."""
    runs = {"device_runs": [us] * 5, "low": us, "high": us}
    return {"us": us + 1, "device_us": us, **runs, **more}


def place(op, kind, rows, us, xla, n=8192, k=8192, family="f", torch=None):
    """A stored place with one configuration and one row of XLA's."""
    mine = timed(us, family=family, key=f"{family}/{n}x{k}/b{rows}", config={"ways": 4})
    return {
        "op": op, "kind": kind, "sizes": [n, k], "rows": rows, "bytes": 10**6, "flops": 0,
        "peak": "bf16", "floor": 1.0, "xla": {"packed": timed(xla)}, "ours": [mine],
        "torch": torch or {}, "dense": f"{n}x{k} b{rows}",
    }  # fmt: skip


def slow(*rows):
    """Dense products of these rows that all are faster than."""
    return {f"8192x8192 b{r}": {"xla": timed(99.0), "torch": {}} for r in rows}


def test_a_cell_tells_right_from_wrong_and_from_what_does_not_compile(module):
    calls = [(jnp.full((4, 8), i + 1.0), jnp.ones((8, 8))) for i in range(2)]
    cell = module("kernel_cell").Cell(
        problem=Problem(), nbytes=10**6, flops=4e9, peak="bf16", calls=calls,
        configs=[Factor(1.0), Factor(2.0), Factor(-1.0)], kernel=kernel,
        reference=lambda x, w: x @ w, xla={"xla": lambda x, w: x @ w}, torch={}, tolerance=1e-6,
    )  # fmt: skip
    found = module("kernel_rows").measure([cell], LIMITS)
    right, wrong, refused = found["ours"]
    assert right["us"] > 0
    assert right["off"] == 0
    assert len(right["runs"]) == 5
    assert wrong["wrong"] == pytest.approx(1.0)
    assert "less than nothing" in refused["error"]
    # 4e9 operations take 4 us, 1e6 bytes 1 us.
    assert found["floor"] == pytest.approx(4.0)
    assert found["xla"]["xla"]["us"] > 0
    assert found["layout"] == 3


def test_nan_is_infinitely_wrong(module):
    worst = module("kernel_timing").worst
    assert worst(jnp.array([1.0, jnp.nan]), jnp.ones(2)) == float("inf")
    assert worst((jnp.ones(2), jnp.array([2.0, 4.0])), (jnp.ones(2), jnp.array([2.0, 5.0]))) == (
        pytest.approx(0.2)
    )


@pytest.mark.parametrize("of", [2, 3, 8])
def test_processes_share_all_places_and_none_twice(module, of):
    units = module("kernel_units").units()
    keys = [unit.key for unit in units]
    assert len(set(keys)) == len(keys)
    dealt = [u.key for mine in range(of) for u in units if u.share % of == mine]
    assert sorted(dealt) == sorted(keys)
    # A kind stays with one process, which knows its fastest configurations.
    shares: dict[Any, set[int]] = {}
    for unit in units:
        shares.setdefault((unit.op, unit.kind) if unit.op else unit.key, set()).add(unit.share)
    assert {len(s) for s in shares.values()} == {1}


def test_every_packed_kind_is_measured_at_both_sizes_and_all_rows(module):
    units, cases = module("kernel_units"), module("kernel_cases")
    keys = {unit.key for unit in units.units()}
    for op, kinds in cases.OPS.items():
        for kind in kinds:
            for size in (4096, 8192):
                for rows in (1, 8, 16, 32, 64):
                    assert f"{op} {kind} {size}x{size} b{rows}" in keys
                    assert f"dense {size}x{size} b{rows}" in keys
    first = [unit.key for unit in units.units("nm_matmul")][:2]
    assert first == ["dense 8192x8192 b16", "nm_matmul 2:4 8192x8192 b16"]
    assert units.units("no_such_op") == []


def test_winners_go_first_and_unknown_ones_are_left_out(module):
    few = module("kernel_rows").few
    own = [Factor(float(i)) for i in range(5)]
    assert few(own, []) == own
    assert few(own, [{"factor": 4.0}, {"factor": 9.0}]) == [own[4], own[0], own[1]]
    # The second winner is tried where the first is a guess of this place.
    assert few(own, [{"factor": 1.0}, {"factor": 3.0}]) == [own[1], own[0], own[3]]
    assert few(own, [{"factor": 9.0}]) == own


def test_a_family_is_taken_in_the_widest_ranges_that_it_won(module):
    def won(wins):
        return [(r["rows"], r["n"], r["k"]) for r in module("kernel_choices").won(wins.items())]

    # Without the corners one size at a time.
    wins = {(rows, n, n): True for rows in (1, 16) for n in (4096, 8192)}
    assert won(wins) == [([1, 16], [n] * 2, [n] * 2) for n in (4096, 8192)]
    # What was measured with more rows at one of them counts there.
    assert won(wins | {(64, 8192, 8192): True})[1] == ([1, 64], [8192] * 2, [8192] * 2)
    # As with both sides of an L: neither range has the other's end.
    wide = wins | {(rows, 8192, 4096): True for rows in (1, 16)}
    assert won(wide) == [
        ([1, 16], [4096, 8192], [4096] * 2), ([1, 16], [8192] * 2, [4096, 8192])
    ]  # fmt: skip
    wins = {(rows, n, k): True for rows in (1, 8, 16) for n in (8, 9) for k in (8, 9)}
    assert won(wins) == [([1, 16], [8, 9], [8, 9])]
    # A loss at one row leaves the others: 8 stands for 2 to 8.
    assert ([2, 16], [8, 9], [8, 9]) in won(wins | {(1, 9, 9): False})
    # Inside the range that was measured, too.
    lost = won(wins | {(8, 9, 9): False})
    assert ([1, 16], [8] * 2, [8, 9]) in lost
    assert not any(r[0] <= 8 <= r[1] and 9 in n and 9 in k for r, n, k in lost)
    assert won({(1, 8, 8): False}) == []


def test_a_kernel_is_taken_where_it_beats_all_of_xla_by_the_margin(module):
    cells = {
        "near": place("op", "a", 16, us=10.0, xla=10.9, family="a"),
        "ahead": place("op", "b", 16, us=10.0, xla=11.0, family="b"),
        "behind dense": place("op", "c", 8, us=10.0, xla=50.0, family="c"),
        "other": place("another", "d", 8, us=10.0, xla=50.0, family="d"),
    }
    dense = {"8192x8192 b16": {"xla": timed(60.0), "torch": {}}}
    dense["8192x8192 b8"] = {"xla": timed(5.0), "torch": {}}
    record = {
        "device": "NVIDIA-X", "versions": {"jax": "0.11.2"},
        "result": {"cells": cells, "dense": dense, "layout": 1},
    }  # fmt: skip
    table = module("kernel_choices").choices(record, "op")
    chosen = {key: entry["implementation"] for key, entry in table["entries"].items()}
    assert chosen == {
        "a/8192x8192/b16": "xla", "b/8192x8192/b16": "mosaic_gpu", "c/8192x8192/b8": "xla",
    }  # fmt: skip
    assert list(table["won"]) == ["b"]
    assert (table["device"], table["layout"]) == ("NVIDIA X", 1)
    # Where no dense product was measured nothing is known.
    without = {**record["result"], "dense": {"8192x8192 b16": dense["8192x8192 b16"]}}
    known = module("kernel_choices").choices({**record, "result": without}, "op")["entries"]
    assert set(known) == {"a/8192x8192/b16", "b/8192x8192/b16"}
    # Of places that were measured with several layouts the last one's count.
    cells["ahead"]["layout"] = 2
    table = module("kernel_choices").choices(record, "op")
    assert (list(table["entries"]), table["layout"]) == (["b/8192x8192/b16"], 2)


def test_a_table_is_written_only_for_the_layout_that_a_kernel_has(module, monkeypatch, tmp_path):
    choices = module("kernel_choices")
    present = module("kernel_places").present_layout("nm_matmul")
    assert present == 2
    assert module("kernel_places").present_layout("no_such_op") is None
    monkeypatch.setattr(choices, "KERNELS", tmp_path)
    cell = place("nm_matmul", "2:4", 16, us=10.0, xla=20.0)
    record = {"device": "X", "versions": {"jax": "0.11.2"}}
    for layout, written in ((present - 1, 0), (present, 1)):
        result = {"cells": {"a": cell | {"layout": layout}}, "dense": slow(16)}
        stored = [{**record, "result": result}]
        monkeypatch.setattr(choices, "stored", lambda name, stored=stored: stored)
        (tmp_path / "nm_matmul").mkdir(exist_ok=True)
        choices.write_configs("kernels")
        assert len(list(tmp_path.glob("nm_matmul/configs/X.json"))) == written


def test_the_tables_that_dispatch_reads_are_of_what_is_stored(module):
    choices, places = module("kernel_choices"), module("kernel_places")
    expected = {}
    for record in module("claim").stored("kernels"):
        for op in {cell["op"] for cell in record["result"]["cells"].values()}:
            table = choices.choices(record, op)
            if table["layout"] == places.present_layout(op):
                expected[f"{op}/{record['device']}"] = table
    found = {
        f"{path.parts[-3]}/{path.stem}": json.loads(path.read_text(encoding="utf-8"))
        for path in places.KERNELS.glob("*/configs/*.json")
    }
    assert found == expected, "run: python benchmarks/kernels.py --write_configs"


def test_parts_are_joined_and_removed(module, tmp_path):
    about = {"device": "X", "versions": {}}
    for i, speed in enumerate((1.0, 2.0)):
        cell = {"bytes": 4e6, "flops": 0, "peak": "bf16", "floor": 4.0}
        result = {
            "cells": {f"c{i}": cell},
            "dense": {f"d{i}": {}},
            "bandwidth": speed * 1e12,
            "layout": 1 + i,
        }
        record = {**about, "benchmark": f"kernels_part{i}of2", "result": result}
        (tmp_path / f"kernels_part{i}of2-X.json").write_text(json.dumps(record))
    module("kernel_choices").merge("kernels", str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == "kernels-X.json"
    record = json.loads(path.read_text())
    assert record["benchmark"] == "kernels"
    result = record["result"]
    assert list(result["cells"]) == ["c0", "c1"]
    assert list(result["dense"]) == ["d0", "d1"]
    assert result["bandwidth"] == 2e12
    # That of the part it came from.
    assert [cell["layout"] for cell in result["cells"].values()] == [1, 2]
    # 4 MB at the better bandwidth.
    assert [cell["floor"] for cell in result["cells"].values()] == [2.0, 2.0]


def test_the_rows_at_which_a_kernel_wins_are_told_from_all_that_were_measured(module):
    pages = module("kernel_tables")
    won = {1: 20.0, 8: 20.0, 16: 9.0, 64: 9.0}
    cells = {
        f"op kind b{rows}": place("op", "kind", rows, 10.0, xla, torch={"bf16": timed(9.5)})
        for rows, xla in won.items()
    }
    text = pages.range_table({"cells": cells, "dense": slow(*won)})
    assert pages.range_table({"cells": cells, "dense": slow(1, 8)}).count("| 1, 8 |") == 1
    assert "| op | kind | 8192 x 8192 | 1, 8, 16, 64 | from 1 to 8 | at none |" in text
    assert pages._range([1, 8, 16], [True, False, True]) == "at 1, 16"


def test_the_summary_says_where_a_kernel_runs_and_what_it_gains(module):
    pages, op = module("kernel_tables"), "quantized_matmul"
    cells = {
        f"{op} int4 b{rows}": place(op, "int4", rows, 10.0, xla, torch={"bf16": timed(9.0)})
        for rows, xla in {16: 10.5, 1: 40.0}.items()
    }
    cells[f"{op} int8 b16"] = place(op, "int8", 16, 10.0, 5.0)
    cells["nm_matmul 2:4 b16"] = place("nm_matmul", "2:4", 16, 10.0, 50.0)  # layout 1
    cells["gone 2:4 b16"] = place("gone", "a s16", 16, 10.0, 50.0)
    _, _, *lines = pages.gain_table({"cells": cells, "dense": slow(1, 16)}).splitlines()
    assert lines == [
        "| `gone` | a | 8192 x 8192 | 16 | never: deleted | 5.00 |  |",
        f"| `{op}` | int4 | 8192 x 8192 | 1, 16 | at 1 of 2 | 1.05 to 4.00 | 0.90 |",
        f"| `{op}` | int8 | 8192 x 8192 | 16 | never | 0.50 |  |",
    ]


def test_what_does_not_grow_with_the_work_of_a_processor_is_the_start(module):
    pages, dense = module("kernel_tables"), slow(16)
    dense["4096x4096 b16"] = dense["8192x8192 b16"]
    for large, word in ((14.0, "4.0"), (19.0, "memory binds")):
        cells = {n: place("quantized_matmul", "a", 16, us, 50.0, n, n)
                 for n, us in ((4096, 9.0), (8192, large))}  # fmt: skip
        text = pages.start_table({"cells": cells, "dense": dense})
        assert text.endswith(f"| 9.0 | {large} | {large / 9:.2f} | {word} |")


def ranked_result(pages, int8, dense, torch):
    """Places of the ranking: int4 and 2:4 take 10 us."""
    took = {"int4": 10.0, "int8": int8, "2:4": 10.0}
    cells = {
        key: place(key.split()[0], kind, 8, took[kind], 99.0) for kind, key in pages._RANKED.items()
    }
    return {
        "cells": cells,
        "dense": {"8192x8192 b8": {"xla": timed(dense), "torch": {"bf16": timed(torch)}}},
    }


@pytest.mark.parametrize(
    ("int8", "dense", "torch", "holds"),
    [(12.5, 20.0, 16.0, True), (12.4, 20.0, 16.0, False), (12.5, 20.0, 15.0, False)],
)
def test_the_ranking_holds_by_a_quarter_against_the_faster_dense(module, int8, dense, torch, holds):
    pages = module("publish_kernels")
    result = ranked_result(pages, int8, dense, torch)
    assert (pages._ranking_holds(result) == "reproduced") == holds
    assert "int4 before int8" in pages._ranking_words(result)


def test_one_slow_repeat_breaks_the_ranking(module):
    pages = module("publish_kernels")
    result = ranked_result(pages, 12.5, 20.0, 20.0)
    assert pages._ranking_holds(result) == "reproduced"
    result["cells"][pages._RANKED["int4"]]["ours"][0]["device_runs"][3] = 11.0
    assert "not" in pages._ranking_holds(result)


def test_a_figure_is_compared_as_a_time_and_as_times_the_floor(module):
    goals, key = module("kernel_goals"), "quantized_matmul int4 8192x8192 b16"
    # 10 us on an H100, of which the figure is 1.4.
    cell = place(key.split()[0], "int4", 16, 13.0, 20.0) | {"bytes": 30_000_000, "layout": 1}
    result = {"cells": {key: cell}, "dense": {}}
    # A copy twice as fast, then a slower one, which allows no more.
    for floor, near in ((5.0, False), (10.0, True), (11.0, True)):
        cell["floor"] = floor
        assert goals.reached(result, key)
        assert goals.as_near(cell, goals.GOALS[key]) == near
        row = next(row for row in goals.goal_table(result).splitlines() if "| int4 " in row)
        times = 13.0 / min(floor, 10.0)
        assert row.endswith(f"| 13.0 | yes | 1.40 | {times:.2f} | {'yes' if near else 'no'} |")
    cell |= {"ours": [timed(14.5)], "floor": 11.0}
    assert not goals.reached(result, key)
    assert not goals.as_near(cell, goals.GOALS[key])
    assert not goals.all_near(result)  # the others are not there
    cell["layout"] = 0
    assert "an earlier kernel's" in goals.goal_table(result)
    assert goals.goal_words(result, key).startswith("an earlier kernel: 14.5 us")


def test_goals_name_places_that_are_measured(module):
    keys = {unit.key for unit in module("kernel_units").units()}
    known = {key.split(" ", 1)[0] for key in keys}
    goals = [key for key in module("kernel_goals").GOALS if key.split(" ", 1)[0] in known]
    assert set(goals) <= keys
    assert len(goals) >= 5
