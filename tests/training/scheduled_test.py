"""Runs of matrices that have a schedule, a stored mask or a calibration behind them."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.match import leaf_paths
from jaxlab.training.checkpoint import Checkpoints
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def run_of(folder, rule, **changes):
    c = base_config("tiny.py")
    c.workdir = str(folder)
    c.steps, c.batch_size = 8, 16
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(32,))
    if rule:
        c.compress.first = {"path": "layers/0/kernel", "name": "nm", "n": 1, "m": 8, **rule}
    c.optim.lr = 0.01
    c.log.every = c.eval.every = c.checkpoint.every = 2
    c.checkpoint.keep = 9
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            c[section][name] = value
        else:
            c[section] = value
    run = Run(Experiment(c.to_dict()))
    return run, run.train()


def contents(folder):
    names = ("metrics.jsonl", "model.safetensors")
    return {name: (Path(folder) / name).read_bytes() for name in names}


def last_state(run):
    checkpoints = Checkpoints(run.folder / "checkpoints", run.experiment.task.quality)
    state = run._restore(8, len(run.experiment.phases), checkpoints)
    checkpoints.close()
    return state


@pytest.mark.parametrize(
    "rule",
    [
        {"recipe": "sdgf_geometric", "finetune_frac": 0.0},
        {"recipe": "asp", "dense_frac": 0.375},
    ],
    ids=lambda rule: rule["recipe"],
)
def test_resumed_inside_a_frame_is_bitwise_the_same(tmp_path, rule):
    _, summary = run_of(tmp_path / "whole", rule)
    assert summary["compilations"] == [1]
    assert summary["metrics"]["trained"] == pytest.approx(summary["metrics"]["finalized"])
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / str(step))
    (tmp_path / "broken" / "model.safetensors").unlink()
    run_of(tmp_path / "broken", rule)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_a_dense_recipe_trains_like_no_rule_at_all(tmp_path):
    plain, _ = run_of(tmp_path / "plain", None)
    ruled, _ = run_of(tmp_path / "ruled", {"recipe": "dense"})
    expected, actual = (last_state(run).params for run in (plain, ruled))
    np.testing.assert_array_equal(
        actual["layers"][0]["kernel"].weight, expected["layers"][0]["kernel"]
    )
    np.testing.assert_array_equal(actual["head"]["kernel"], expected["head"]["kernel"])


def test_a_fixed_mask_leaves_no_moments_behind(tmp_path):
    run, _ = run_of(tmp_path, {"recipe": "asp", "dense_frac": 0.5})
    state = last_state(run)
    pruned = ~np.asarray(state.params["layers"][0]["kernel"].mask)
    found = 0
    for path, x in leaf_paths(state.opt).items():
        if path.endswith("layers/0/kernel/weight"):
            found += 1
            assert (np.asarray(x)[pruned] == 0).all(), path
            assert (np.asarray(x)[~pruned] != 0).any(), path
    assert found == 2  # mu and nu


def test_diagnostics_are_in_the_metrics(tmp_path):
    settings = {"log__diagnostics": True}
    run, summary = run_of(tmp_path, {"recipe": "srste"}, **settings)
    assert summary["compilations"] == [1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    prefix = "layers/0/kernel/"
    names = {"grad_abs_kept", "grad_abs_pruned", "nu_kept", "nu_pruned", "flip_rate"}
    steps = [line for line in lines if f"{prefix}flip_rate" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8]
    for line in steps:
        assert {k.removeprefix(prefix) for k in line if k.startswith(prefix)} == names
        assert all(np.isfinite(line[prefix + name]) for name in names)
    noise = [line for line in lines if f"noise/{prefix}noise_ratio" in line]
    assert len(noise) == 4
    # The variance over minibatches, by hand.
    state, task = last_state(run), run.experiment.task
    kernel = state.params["layers"][0]["kernel"]

    def loss(weight, batch):
        layer = {**state.params["layers"][0], "kernel": dataclasses.replace(kernel, weight=weight)}
        params = {**state.params, "layers": {0: layer}}
        return task.loss(jaxlab.at(params, jnp.float32(1.0)), batch, jax.random.key(0))[0]

    rows = [jax.grad(loss)(kernel.weight, task.batch(step)) for step in range(8, 16)]
    variance = np.var(np.asarray(rows, np.float64), axis=0, ddof=1)
    kept = np.asarray(kernel.at(1.0).mask)
    last = noise[-1]
    assert last[f"noise/{prefix}grad_var_kept"] == pytest.approx(variance[kept].mean(), rel=1e-4)
    assert last[f"noise/{prefix}grad_var_pruned"] == pytest.approx(variance[~kept].mean(), rel=1e-4)


def test_one_shot_with_calibration_at_the_end(tmp_path):
    quality = {}
    for scores in ("magnitude", "sparsegpt"):
        rule = {"name": "nm_packed", "n": 1, "m": 8, "scores": scores}
        calibrate = {"batches": 8, "sequential": True} if scores != "magnitude" else {"batches": 0}
        _, summary = run_of(
            tmp_path / scores,
            rule,
            steps=60,
            eval__every=0,
            checkpoint__every=0,
            compress_at=1.0,
            calibrate=calibrate | {"sequential": scores != "magnitude"},
        )
        assert summary["methods"] == ["nm_packed"]
        quality[scores] = summary["metrics"]["finalized"]["loss"]
    assert quality["sparsegpt"] < quality["magnitude"]


def test_scores_without_calibration_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"layers/0/kernel.*scores='wanda'.*calibrate\.batches"):
        run_of(tmp_path, {"name": "nm_packed", "scores": "wanda"})


def test_a_frozen_kernel_is_not_written_to(tmp_path):
    run, _ = run_of(tmp_path, {"recipe": "asp", "dense_frac": 0.25}, freeze=("layers/0/kernel",))
    kernel = last_state(run).params["layers"][0]["kernel"]
    start = jax.jit(run.experiment.task.init)(jax.random.key(0))["layers"][0]["kernel"]
    np.testing.assert_array_equal(kernel.weight, start)


def test_the_table_of_a_scheduled_rule_needs_no_step(tmp_path):
    c = base_config("tiny.py")
    c.task.name, c.data.name, c.model.name = "classify", "digits", "mlp"
    c.compress.first = {"path": "layers/0/kernel", "name": "nm", "n": 1, "m": 8}
    c.compress.first.recipe = "sdgf_stepwise"
    assert "NMPacked" in str(Experiment(c.to_dict()).table_after)


def test_a_model_trained_by_a_dense_recipe_can_be_pruned(tmp_path):
    run_of(tmp_path / "dense", {"recipe": "dense"})
    rule = {"name": "nm_packed"}
    _, summary = run_of(tmp_path / "pruned", rule, init=str(tmp_path / "dense"), steps=0)
    assert summary["methods"] == ["nm_packed"]


def test_the_optimizer_goes_on_when_a_factor_becomes_sparse(tmp_path):
    sparse = (("layers/0/kernel/u", "nm", {"n": 1, "m": 8}),)
    rule = {"name": "low_rank", "rank": 4}
    run, _ = run_of(
        tmp_path,
        None,
        compress={"first": {"path": "layers/0/kernel", **rule}},
        phases={"late": {"at": 0.5, "name": "compress", "rules": sparse}},
    )
    assert "layers/0/kernel/u/weight" in leaf_paths(run.experiment.structures[-1].trainable)
    counts = [int(x) for p, x in leaf_paths(last_state(run).opt).items() if p.endswith("count")]
    assert set(counts) == {8}


def test_a_kernel_becomes_dense_as_its_schedule_has_it(tmp_path):
    """Before the mask of ASP closes, the kernel is the dense one."""
    phases = {"open": {"at": 0.25, "name": "densify"}}
    run_of(tmp_path, {"recipe": "asp", "dense_frac": 0.5}, phases=phases)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (switch,) = [line for line in lines if "loss_before" in line]
    assert switch["loss_after"] == pytest.approx(switch["loss_before"], rel=1e-6)
