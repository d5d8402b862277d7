"""What the page of GP-HM says of its results: measured seconds, phases, and the commands."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def publish(monkeypatch):
    """The module of the page."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("publish_gphm")


def cell(steps, rate, **more):
    errors = {str(steps * share // 4): 0.1 for share in range(1, 5)}
    chosen = {"step": steps, "relative_l2": 0.1}
    common = {"steps": steps, "steps_per_second": rate, "errors": errors, "error": 0.1}
    return common | {"chosen": chosen, "seconds": 99.0} | more


def record(cells):
    about = {"device": "cpu", "devices": 1, "processors": 2}
    return about | {"versions": {"jax": "1", "flax": "1"}, "result": {"cells": cells}}


def test_seconds_along_a_run_are_steps_over_the_measured_rate(publish):
    cells = {"adam advection": cell(8000, 1000.0), "solve advection": cell(200, 0.0)}
    page = publish._problem_section(record(cells))
    assert "0.1 (2000, 2.00 s) | 0.1 (4000, 4.00 s) | 0.1 (8000, 8.00 s)" in page
    assert "0.1 (50) | 0.1 (100) | 0.1 (200)" in page


def test_phases_and_load_of_a_run_are_told(publish):
    cells = {
        "adam poisson_1d mix_sin": cell(2000, 10.0, load=3.0),
        "adam poisson_1d sin_cos": cell(2000, 10.0),
    }
    page = publish._problem_section(record(cells))
    assert "| poisson_1d mix_sin | adam, second process from step 1000 | 2000 |" in page
    assert "| poisson_1d sin_cos | adam | 2000 |" in page
    assert page.count("| 99 s, load 3 |") == page.count("| 99 s |") == 1


def test_printed_commands_are_those_of_the_stored_runs(publish):
    (large,) = {c.command for c in publish.GPHM_CLAIMS if c.benchmark == "gphm-large"}
    (stored,) = publish.stored("gphm-large")
    steps = {c["steps"] for k, c in stored["result"]["cells"].items() if k.startswith("adam ")}
    assert large.endswith(" --large --steps=8000")
    assert steps == {8000}
    assert large in (ROOT / "docs" / "gphm.md").read_text(encoding="utf-8")
