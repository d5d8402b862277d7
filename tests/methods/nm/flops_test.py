"""FLOP accounting: every recipe against a loop over the steps, and what equal totals allow."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.nm import flops as nm_flops
from jaxlab.methods.nm.flops import nm_iso_flop_table, nm_train_flops
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.recipes import RECIPES
from jaxlab.methods.nm.schedule import NMConfig, nm_frames, nm_phase

UP, DOWN, SCORES = "blocks/0/mlp/up/kernel", "blocks/0/mlp/down/kernel", "blocks/0/attn/scores"
LAYERS = {UP: 3.0, DOWN: 5.0, SCORES: 2.0}
CUSTOM = ((0.2, 3, 8), (0.45, 2, 4), (0.7, 1, 8))
EXTRA = {"custom": {"frames": CUSTOM}}


def config(recipe, steps=97, n=1, m=8, **fields):
    fields = {"dense_frac": 0.13, "finetune_frac": 0.21, **EXTRA.get(recipe, {}), **fields}
    return NMConfig(NMPattern(n, m), recipe, steps, **fields)


def by_step(cfg, layers=LAYERS):
    """The same total, one step after another, from the phase of each and the rule as it is said."""
    rule = RECIPES[cfg.recipe]
    phases = jax.tree.map(np.asarray, nm_phase(cfg, jnp.arange(cfg.total_steps)))
    frames = nm_frames(cfg)
    total, in_mask = 0.0, 0
    for step in range(cfg.total_steps):
        if cfg.updates_mask(step):
            in_mask = phases.frame[step]
        pattern = frames[in_mask if cfg.keeps_mask else phases.frame[step]][1]
        rho = pattern.n / pattern.m
        forward = to_input = to_weight = 1.0
        if not phases.is_dense[step] and phases.decay[step] == 0:
            forward = to_input = rho
            learns_pruned = not rule.fixed and cfg.grad_mode == "ste"
            to_weight = 1.0 if learns_pruned else rho
        sparse = layers[UP] + layers[DOWN]
        total += sparse * (forward + to_input + to_weight) + 3 * layers[SCORES]
    return total


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_the_sum_of_its_steps(recipe):
    for fields in ({}, {"grad_mode": "masked"}, {"dense_frac": 0.0, "finetune_frac": 0.0}):
        cfg = config(recipe, **fields)
        cost = nm_train_flops(cfg, LAYERS)
        assert cost["train"] == pytest.approx(by_step(cfg), rel=1e-12)
        assert cost["dense"] == 3 * 97 * 10
        assert cost["ratio"] == pytest.approx(cost["train"] / cost["dense"], rel=1e-12)


@pytest.mark.parametrize(
    ("recipe", "beta_total"),
    [("mdgf_linear", 0.4), ("mdgf_linear", 1.0), ("mdgf_linear", 2.7), ("mdgf_exp", 300.0)],
)
def test_the_decay_may_reach_zero_before_its_phase_ends(recipe, beta_total):
    cfg = config(recipe, beta_total=beta_total)
    assert nm_train_flops(cfg, LAYERS)["train"] == pytest.approx(by_step(cfg), rel=1e-12)
    ends = config(recipe, beta_total=0.4)
    assert (nm_train_flops(cfg, LAYERS) == nm_train_flops(ends, LAYERS)) == (beta_total <= 1)


@pytest.mark.parametrize("fields", [{"mask_update_every": 10}, {"freeze_mask_at": 80}])
@pytest.mark.parametrize("recipe", ["srste", "sdgf_stepwise", "custom"])
def test_a_stored_mask_follows_the_frames(recipe, fields):
    cfg = config(recipe, **fields)
    assert nm_train_flops(cfg, LAYERS)["train"] == pytest.approx(by_step(cfg), rel=1e-12)


def test_worked_values():
    def ratio(recipe, **fields):
        cfg = NMConfig(NMPattern(1, 4), recipe, 100, include=("up",), **fields)
        return nm_train_flops(cfg, {"up": 7.0})["ratio"]

    assert ratio("dense") == ratio("one_shot") == 1
    assert ratio("ste") == ratio("srste") == 0.5  # (2 / 4 + 1) / 3
    assert ratio("asp") == 0.25
    assert ratio("asp", dense_frac=0.5) == 0.625
    assert ratio("mdgf_exp", finetune_frac=0.2) == pytest.approx(0.8 + 0.2 * 0.5)
    assert ratio("sdgf_geometric") == 0.5  # its density is that of the target from the start
    # 3, 2, 1 of 4: 30 steps each, and 10 at the end.
    stepwise = (30 * 2.5 + 30 * 2.0 + 40 * 1.5) / 300
    assert ratio("sdgf_stepwise") == pytest.approx(stepwise)


def test_inference_overrides_and_layers_that_no_pattern_matches():
    layers = {"a/mlp/kernel": 8.0, "b/mlp/kernel": 8.0, "head": 1.0}
    overrides = (("b/.*", NMPattern(2, 4)),)
    cfg = NMConfig(NMPattern(1, 8), "ste", 10, overrides=overrides)
    cost = nm_train_flops(cfg, layers)
    assert cost["inference"] == 8 / 8 + 8 / 2 + 1
    assert cost["inference_ratio"] == 6 / 17
    assert cost["train"] == 10 * (8 * 1.25 + 8 * 2.0 + 3)
    # A dense run has no pattern, whatever its target would be.
    dense = nm_train_flops(dataclasses.replace(cfg, recipe="dense"), {"head": 1.0})
    assert dense["ratio"] == dense["inference_ratio"] == 1


def test_frames_that_do_not_divide_the_axis_have_the_density_of_the_next():
    cfg = config("sdgf_densify", dense_frac=0.0)
    free = nm_train_flops(cfg, {UP: 1.0})["ratio"]
    narrow = nm_train_flops(cfg, {UP: 1.0}, {UP: 8})["ratio"]
    assert free < narrow == nm_train_flops(config("ste", dense_frac=0.0), {UP: 1.0})["ratio"]


def test_a_long_run_is_summed_exactly_and_not_step_by_step(monkeypatch):
    asked = []

    def counted(cfg, step):
        asked.append(step.size)
        return nm_phase(cfg, step)

    monkeypatch.setattr(nm_flops, "nm_phase", counted)
    steps, flops = 10**6, 10**15 + 1
    cfg = config("mdgf_linear", steps, dense_frac=0.1, finetune_frac=0.2)
    train = nm_train_flops(cfg, {UP: flops})["train"]
    assert train == float(flops * (3 * 800_000 + 200_000 + 200_000 // 4))
    assert nm_train_flops(dataclasses.replace(cfg, beta_total=7.0), {UP: flops})["train"] < train
    assert 0 < sum(asked) < 500


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_iso_steps_are_the_most_that_the_budget_pays_for(recipe):
    runs = {"dense": config("dense"), recipe: config(recipe)}
    row = nm_iso_flop_table(runs, LAYERS)[-1]
    budget = nm_train_flops(runs["dense"], LAYERS)["train"]
    at, above = (
        nm_train_flops(config(recipe, row["iso_steps"] + more), LAYERS)["train"] for more in (0, 1)
    )
    assert at <= budget < above
    assert row["share"] == pytest.approx(by_step(runs[recipe]) / budget)
    assert row["is_iso"] == (row["share"] == 1)


def test_the_table_says_which_results_may_stand_side_by_side():
    ste = NMConfig(NMPattern(1, 4), "ste", 200, include=("up",))
    runs = {
        "dense": dataclasses.replace(ste, recipe="dense", total_steps=100),
        "ste": ste,
        "ste, equal steps": dataclasses.replace(ste, total_steps=100),
    }
    rows = nm_iso_flop_table(runs, {"up": 4.0}, results={"ste": 0.9})
    assert [(r["run"], r["steps"], r["share"], r["iso_steps"], r["is_iso"]) for r in rows] == [
        ("dense", 100, 1.0, 100, True),
        ("ste", 200, 1.0, 200, True),
        ("ste, equal steps", 100, 0.5, 200, False),
    ]
    assert [r["result"] for r in rows] == [None, 0.9, None]
    half = nm_iso_flop_table(runs, {"up": 4.0}, budget=600)
    assert [r["iso_steps"] for r in half] == [50, 100, 100]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cfg: nm_train_flops(config("ste", 0, dense_frac=0.0), LAYERS), "total_steps=0"),
        (lambda cfg: nm_train_flops(cfg, {UP: -1.0}), r"mlp/up/kernel'\]=-1"),
        (lambda cfg: nm_train_flops(cfg, {UP: math.nan}), "=nan must be 0 or more"),
        (lambda cfg: nm_train_flops(cfg, {UP: 0.0}), "has no FLOPs"),
        (lambda cfg: nm_train_flops(cfg, {"up": 1.0}), "matches no path"),
        (lambda cfg: nm_iso_flop_table({"a": cfg}, LAYERS, budget=0.0), "budget=0.0 must be"),
        (lambda cfg: nm_iso_flop_table({"ste": cfg}, LAYERS, results={"st": 1}), "mean 'ste'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(config("ste"))
