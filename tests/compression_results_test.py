"""Claims of low rank in a language model and of Monarch in an MLP are judged by their results."""

import copy
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def cell(bits, **more):
    spread = [bits - 0.001, bits + 0.001]
    return {"bits_per_byte": bits, "by_batch": spread, "kept": 0.59, "seconds": 4.0, **more}


@pytest.fixture
def language_model():
    """A result whose every difference is known."""
    cells = {"dense": cell(1.0)}
    cells |= {f"{m} {r}": cell(1.0 + loss) for m, loss in LOSSES.items() for r in (0.9, 0.8, 0.6)}
    cells |= {"uniform 0.6": cell(1.01), "greedy 0.6": cell(1.03)}
    cells |= {"sequential whitening 0.6": cell(1.005)}
    forward = {
        key: {
            "tokens_per_second": 2_000_000,
            "ratio": ratio,
            "spread": [ratio, ratio],
            "factored_bits_per_byte": 1.0,
        }
        for key, ratio in {"dense": 1, "LoRD 0.9": 0.9, "LoRD 0.8": 1.1, "LoRD 0.6": 1.3}.items()
    }
    cells["speed"] = {"forward": forward, "tokens": [32, 512], "dtype": "bfloat16"}
    data = {"train_items": 1, "python": "3.12.3", "eval_targets": 9, "eval_modules": ["ast"]}
    model = {"steps": 10, "data": data}
    return {"model": model, "cells": cells, "calibration": {"seconds": 9.0, "tokens": 64}}


LOSSES = {"LoRD": 0.01, "SVD": 0.05, "ASVD": 0.04}


def verdicts(claims, result):
    return [c.verdict(result) for c in claims if set(c.needs) <= set(result["cells"])]


def test_low_rank_is_judged_against_the_dense_model(module, language_model):
    claims = module("publish_low_rank")
    assert claims.loss_in_percent(language_model, "SVD 0.8") == pytest.approx(5)
    within, times, ordered, greedy, faster, quick = verdicts(claims.LOW_RANK_CLAIMS, language_model)
    assert within == times == ordered == faster == quick == "reproduced"
    assert greedy == "**not reproduced**"
    other = copy.deepcopy(language_model)
    other["cells"]["LoRD 0.8"] = cell(1.03)
    other["cells"]["speed"]["forward"]["LoRD 0.6"]["ratio"] = 0.99
    other["calibration"]["seconds"] = 17.0
    within, times, _, _, faster, quick = verdicts(claims.LOW_RANK_CLAIMS, other)
    assert within == times == faster == quick == "**not reproduced**"


def test_a_way_that_was_not_measured_stays_open(module, language_model, monkeypatch):
    claims, claim = module("publish_low_rank"), module("claim")
    record = {
        "benchmark": claims.LANGUAGE_MODEL,
        "device": "cpu",
        "processors": 2,
        "versions": {"jax": "1", "flax": "2"},
        "result": language_model,
    }
    monkeypatch.setattr(claim, "stored", lambda benchmark: [record])
    monkeypatch.setattr(claims, "stored", lambda benchmark: [record])
    (missing,) = [c for c in claims.LOW_RANK_CLAIMS if not c.records()]
    assert missing.text.startswith("At 0.6, sequential LoRD")
    page = claims.low_rank_language_model_page()
    assert "| 0.8 | 1.0100 (+1.00 %) | 1.0500 (+5.00 %) | 1.0400 (+4.00 %) |" in page
    assert "| LoRD 0.8 | 2.00 | 1.10 (1.10 to 1.10) | 1.0000 |" in page
    assert "sequential LoRD" not in page


@pytest.fixture
def small():
    """Accuracies of two seeds."""
    means = {"dense": 0.90, "monarch 50 %": 0.898, "monarch 25 %": 0.897}
    means |= {"dense to sparse 50 %": 0.901, "dense to sparse 25 %": 0.899}
    means |= {"dense, before the last epoch": 0.89}
    means |= {f"projected, rank {r}": 0.5 + r / 200 for r in (8, 16, 32, 64)}
    cells = {k: {"accuracy": [v, v + 0.001], "kept": 1.0} for k, v in means.items()}
    return {"cells": cells, "seeds": 2, "epochs": 2, "steps": 4, "batch_size": 8}


def test_monarch_is_judged_against_dense_at_both_budgets(module, small):
    claims = module("publish_monarch")
    assert claims.points(small, "dense to sparse 50 %", "monarch 50 %") == pytest.approx([0.3] * 2)
    judged = [c for c in claims.MONARCH_CLAIMS if c.benchmark == claims.SMALL]
    assert verdicts(judged, small) == ["reproduced"] * 3
    small["cells"]["monarch 25 %"]["accuracy"] = [0.89, 0.89]
    small["cells"]["dense to sparse 50 %"]["accuracy"] = [0.897, 0.897]
    small["cells"]["projected, rank 16"]["accuracy"] = [0.7, 0.7]
    assert verdicts(judged, small) == ["**not reproduced**"] * 3


def test_a_small_result_is_judged_and_shown_beside_the_large_one(module, small, monkeypatch):
    claims = module("publish_monarch")
    assert {c.benchmark for c in claims.MONARCH_CLAIMS} == {claims.LARGE, claims.SMALL}
    data = {"name": "digits", "train_items": 9, "eval_items": 3}
    record = {"device": "cpu", "processors": 2, "versions": {"jax": "1", "flax": "2"}}
    record["result"] = small | {"data": data}
    by_name = {claims.SMALL: [record], claims.LARGE: []}
    monkeypatch.setattr(claims, "stored", by_name.get)
    page = " ".join(claims.monarch_small_page().split())
    assert "2 epochs (4 steps of 8 images) of digits" in page


@pytest.fixture
def encoder():
    """Three draws of two methods, and of one that uses no data."""
    values = {"lord_centred 0.7": [0.94, 0.95, 0.96], "asvd 0.7": [0.85, 0.86, 0.89]}
    cells = {k: {"draws": [0, 1, 2], "mean_cosine": v} for k, v in values.items()}
    return {"cells": cells | {"svd 0.7": {"draws": [0], "mean_cosine": [0.7]}}}


@pytest.mark.parametrize(
    ("least", "found"),
    # Differences of 0.09, 0.09 and 0.07: mean 0.0833, standard error 0.0067.
    [(0.06, "reproduced"), (0.08, "undecided"), (0.1, "**not reproduced**")],
)
def test_encoders_are_judged_in_the_mean_beyond_a_standard_error(module, encoder, least, found):
    claims = module("publish_minilm")
    pairs = [("lord_centred 0.7", "asvd 0.7"), ("lord_centred 0.7", "svd 0.7")]
    word, notes = claims.judged(encoder, pairs, "mean_cosine", [least, 0.1])
    assert word == found
    assert len(notes) == (found != "reproduced")
    assert all(f"{1 if least < 0.09 else 3} of 3 draws" in note for note in notes)


def test_a_draw_against_the_mean_is_said_beside_the_verdict(module, encoder):
    claims = module("publish_minilm")
    encoder["cells"]["asvd 0.7"]["mean_cosine"] = [0.90, 0.91, 0.9601]
    pair = ("lord_centred 0.7", "asvd 0.7")
    word, notes = claims.judged(encoder, [pair], "mean_cosine")
    assert word == "reproduced"
    assert notes == ["LoRD centred 0.7 above ASVD 0.7: reproduced, not so in 1 of 3 draws"]
    figures = claims._each(list(pair), "mean_cosine", [pair])(encoder)
    assert "LoRD centred 0.7 - ASVD 0.7 +0.0266 ± 0.0134 (-0.0001)" in figures


def test_the_claims_ask_for_cells_that_the_benchmark_makes(module):
    asked = {key for c in module("publish_low_rank").LOW_RANK_CLAIMS for key in c.needs}
    assert asked <= set(module("low_rank_cells").cells(0.0))
