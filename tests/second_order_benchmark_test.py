"""The benchmark of second-order optimizers: its command, and how its results are read."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxlab.optim.chain import make_optimizer
from jaxlab.optim.mkor import Hybrid, scale_by_mkor

ROOT = Path(__file__).parents[1]
MODEL = "decoder"


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def race(curves, seconds=0.1):
    """A stored result with the held-out losses of (optimizer, rate, seed)."""
    cells = {
        f"{MODEL} {label}, rate {rate:g}, seed {seed}": {
            "rate": rate,
            "seed": seed,
            "held_out": losses,
            "seconds": [9.0] + [seconds] * (len(losses) - 1),
        }
        for (label, rate, seed), losses in curves.items()
    }
    return {"models": {MODEL: {"every": 10, "steps": 40}}, "cells": cells}


def test_the_best_rate_is_that_of_the_first_seed(module):
    read = module("second_order_results")
    curves = {
        ("AdamW", 0.1, 0): [4.0, 3.0, 2.5, 2.0],
        ("AdamW", 0.3, 0): [3.0, 3.5, None],
        ("AdamW", 0.03, 0): [4.0, 3.9, 3.8, 3.7],
        ("AdamW", 0.1, 1): [4.0, 3.0, 2.6, 2.2],
    }
    result = race(curves)
    assert read.best_rate(result, MODEL, "AdamW") == 0.1
    assert read.target(result, MODEL) == 2.2
    first, second = read.runs_of(result, MODEL, "AdamW")
    assert (first["seed"], second["seed"]) == (0, 1)
    assert read.steps_to(result, MODEL, first, 2.5) == 30
    assert read.steps_to(result, MODEL, second, 2.0) == read.NEVER
    # The first launch, which warms up, does not count.
    assert read.step_seconds(result, MODEL, first) == pytest.approx(0.01)
    assert read.best_rate(race({("Eva", 0.1, 0): [None]}), MODEL, "Eva") is None


@pytest.mark.parametrize(
    ("reaches", "found"),
    [(2, "reproduced"), (4, "**not reproduced**"), (9, "**not reproduced**")],
)
def test_a_race_is_judged_by_the_steps_to_the_others_end(module, reaches, found):
    read = module("publish_second_order")
    curves = {}
    for seed in range(2):
        curves["LAMB", 0.1, seed] = [5.0, 4.0, 3.5, 3.0 + seed]
        ours = [3.0 if number >= reaches else 6.0 for number in range(1, 5)]
        curves["MKOR every step", 0.1, seed] = ours
    ratios = read.step_ratios(race(curves), MODEL, "MKOR every step", "LAMB")
    assert read.judged(ratios, 0.8) == found
    assert ("not reached" in read.ratio_words(ratios)) == (reaches > 4)


def test_a_race_without_its_second_seed_is_not_run(module, monkeypatch):
    read = module("publish_second_order")
    claim = next(c for c in read.SECOND_ORDER_CLAIMS if (MODEL, "LAMB") in c.needs)
    labels = [label for _, label in claim.needs]
    losses = [3.0, 2.0, 1.0]
    whole = race({(label, 0.1, seed): losses for label in labels for seed in range(2)})
    part = race({(label, 0.1, seed): losses for seed, label in enumerate(labels)})
    for result, count in (whole, 1), (part, 0):
        record = {"benchmark": claim.benchmark, "device": "cpu", "result": result}
        monkeypatch.setattr(read, "stored", lambda name, record=record: [record])
        assert len(claim.records()) == count


def test_a_third_of_the_better_loss_in_every_seed(module):
    read, key_of = module("publish_second_order"), module("second_order_results").key_of
    losses = {"SGD-momentum": [0.3, 0.9], "Adam": [0.6, 0.3], "MKOR": [0.09, 0.099]}
    cells = {
        key_of("pixels", label, 0.1, seed): {
            "rate": 0.1,
            "seed": seed,
            "train_loss": loss,
            "accuracy": 0.9,
        }
        for label, row in losses.items()
        for seed, loss in enumerate(row)
    }
    claim, _, *_ = read.SECOND_ORDER_CLAIMS
    assert claim.verdict({"cells": cells}) == "reproduced"
    cells[key_of("pixels", "MKOR", 0.1, 1)]["train_loss"] = 0.12
    assert "not" in claim.verdict({"cells": cells})
    cells[key_of("pixels", "MKOR", 0.1, 1)]["train_loss"] = None
    assert "not" in claim.verdict({"cells": cells})


def test_the_page_says_what_a_race_leaves_open(module):
    page = module("second_order_page")
    curves = {
        (label, 0.1, seed): [3.0, 2.0, 1.0 + seed]
        for label in ("AdamW", "MKOR-H", "M-FAC m=128", "M-FAC m=512")
        for seed in range(2)
    }
    result = race(curves)
    result["models"][MODEL] |= {"steps": 290, "parameters": 1e6, "batch_size": 8}
    versions = dict.fromkeys(("jax", "flax", "optax", "numpy"), "1")
    record = {"device": "cpu", "processors": 2, "python": "3", "versions": versions}
    words = " ".join(" ".join(page._races({**record, "result": result})).split())
    assert "M-FAC m=512: the window never fills in 290 steps" in words
    assert "M-FAC m=128:" not in words
    assert "censored" in words
    assert "(second_order.png)" in words
    assert "names no revision" in words
    assert "MKOR-H: the stored runs do not say" in words
    for seed, step in enumerate((120, None)):
        result["cells"][f"{MODEL} MKOR-H, rate 0.1, seed {seed}"]["switched_at"] = step
    assert page._switch_words(result, MODEL) == (
        "MKOR-H: fell back, by seed: at step 120, not at all."
    )


def long_race():
    """Two optimizers in a race of 60 steps to a loss of 2; the shorter one had 20."""
    curves = {
        ("AdamW", 0.1, 0): [4.0, 2.0, 1.5, 1.4, 1.3, 1.2],
        ("AdamW", 0.1, 1): [4.0, 3.0, 2.0, 1.4, 1.3, 1.2],
        # Less at the end, but later there.
        ("AdamW", 0.03, 0): [4.0, 3.0, 1.9, 0.4, 0.3, 0.2],
        ("M-FAC m=512", 0.1, 0): [4.0, 3.5, 3.0, 2.5, 1.9, 1.8],
        ("M-FAC m=512", 0.1, 1): [4.0, 3.5, 3.0, 2.5, 2.2, 2.1],
        ("M-FAC m=512", 0.3, 0): [4.0, 3.9],
    }
    result = race(curves)
    result["models"][MODEL] |= {"steps": 60, "target": 2.0, "short": 20}
    cells = result["cells"]
    for key in list(cells):
        if "M-FAC" in key:
            cells[key]["options"] = {"damp": 0.1}
    # Least at the end of all, had it not been stopped there.
    cells[f"{MODEL} M-FAC m=512, rate 0.3, seed 0"] |= {"stopped": True, "held_out": [0.1]}
    return result


def test_a_race_to_a_given_loss_is_won_by_who_is_there_first(module):
    read, result = module("second_order_results"), long_race()
    assert read.target(result, MODEL) == 2.0
    assert read.best_rate(result, MODEL, "AdamW") == 0.1
    assert read.best_rate(result, MODEL, "M-FAC m=512") == 0.1
    ratios = read.reach_ratios(result, MODEL, "M-FAC m=512", "AdamW")
    assert ratios == [pytest.approx(50 / 20), read.NEVER]
    # What the other never reaches is no longer than the race.
    assert read.reach_ratios(result, MODEL, "AdamW", "M-FAC m=512") == [20 / 50, 30 / 60]


def test_a_setting_is_more_than_its_rate(module):
    read, result = module("second_order_results"), long_race()
    cells = result["cells"]
    key = read.key_of(MODEL, "M-FAC m=512", 0.1, 1, {"damp": 0.01})
    assert key == f"{MODEL} M-FAC m=512, rate 0.1, damp 0.01, seed 1"
    other = cells.pop(f"{MODEL} M-FAC m=512, rate 0.1, seed 1")
    cells[key] = {**other, "options": {"damp": 0.01}}
    assert [c["seed"] for c in read.runs_of(result, MODEL, "M-FAC m=512")] == [0]


def test_the_page_says_how_the_longer_race_was_tuned(module):
    page, result = module("second_order_page"), long_race()
    result["models"][MODEL] |= {"parameters": 1e6, "batch_size": 8, "steps": 768}
    versions = dict.fromkeys(("jax", "flax", "optax", "numpy"), "1")
    record = {"device": "cpu", "processors": 2, "python": "3", "versions": versions}
    record |= {"benchmark": page.LONG, "result": result}
    words = " ".join(" ".join(page._races(record)).split())
    assert "The target is 2.0000" in words
    assert "0.1 (damp 0.1) of 0.1 (damp 0.1), 0.3 (damp 0.1)" in words
    assert "M-FAC m=512: the window is full after 512 steps" in words
    assert "censored" not in words


def test_a_trial_ends_where_it_cannot_be_the_best(module):
    sweep = object.__new__(module("second_order").Sweep)
    sweep.size, sweep.result = module("second_order_methods").SIZES["long"], long_race()
    target = {"target": 2.0, "short": 20, "every": 10}
    sweep.size = sweep.size._replace(models={MODEL: target})
    stops = sweep.stop(MODEL, "AdamW")
    assert not stops([4.0])
    assert stops([4.0, 2.1])  # the best was there after 20 steps
    assert not stops([4.0, 2.0])
    stops = sweep.stop(MODEL, "M-FAC m=512")
    assert stops([4.0, 3.9])  # a tenth above 3.5
    assert not stops([4.0, 3.8])
    assert not stops([4.0, 3.8, 3.0])
    assert stops([4.0, 3.8, 3.0, 2.9, 2.8])
    assert not sweep.stop(MODEL, "LAMB")([9.0] * 9)


def test_parts_of_a_race_are_put_together(module, tmp_path):
    merge = module("merge_parts")
    record = {"benchmark": "race", "result": {"models": {}, "cells": {"a": 1}}}
    paths = [tmp_path / name / "race-cpu.json" for name in "01"]
    for path, cells in zip(paths, ({"a": 1, "b": 2}, {"a": 1, "c": 3}), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps({**record, "result": {"models": {}, "cells": cells}}))
    whole = json.loads(merge.main([str(path) for path in paths], tmp_path).read_text())
    assert whole["result"]["cells"] == {"a": 1, "b": 2, "c": 3}
    paths[1].write_text(json.dumps({**record, "result": {"cells": {"a": 2}}}))
    with pytest.raises(ValueError, match="/result/cells/a is 1 in one part and 2"):
        merge.main([str(path) for path in paths], tmp_path)


def test_a_hybrid_says_when_it_switched(module):
    cells, hybrid = module("second_order_cells"), Hybrid(patience=2, min_steps=1)
    for how, expected in ((hybrid, {"switched_at": 2}), (None, {})):
        tx = scale_by_mkor(hybrid=how, update_every=1)
        state = tx.init({"scale": jnp.ones(1)})
        for _ in range(4):
            _, state = tx.update({"scale": jnp.ones(1)}, state, stats={}, value=jnp.float32(1))
        assert cells.switches((state, ())) == expected
    fresh = scale_by_mkor(hybrid=hybrid).init({"scale": jnp.ones(1)})
    assert cells.switches(fresh) == {"switched_at": None}


def test_every_section_is_one_of_an_optimizer(module):
    methods = module("second_order_methods")
    for label, method in methods.METHODS.items():
        for model, rate in method.rate.items():
            section = {**method.optim, **method.on.get(model, {}), "lr": rate}
            tx, _ = make_optimizer(section, steps=10)
            assert tx.init({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}), label


def command(folder, *flags):
    """Runs the benchmark on two tiny models."""
    return subprocess.run(
        [
            sys.executable,
            "benchmarks/second_order.py",
            "--size=small",
            f"--folder={folder}",
            *flags,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_command_runs_and_goes_on_from_what_is_stored(tmp_path):
    assert command(tmp_path, "--only=cnn", "--methods=M-FAC m=128").count("held-out loss") == 1
    (path,) = tmp_path.iterdir()
    first = path.read_text()
    (cell,) = json.loads(first)["result"]["cells"].values()
    assert len(cell["held_out"]) == len(cell["seconds"]) == 2
    assert cell["held_out"][1] < cell["held_out"][0]
    methods = "--methods=M-FAC m=128,SGD-momentum"
    out = command(tmp_path, "--only=cnn", methods, "--budget_seconds=0")
    assert out.startswith("compiled 1")
    assert "no time for another run" in out
    assert path.read_text() == first
