"""Whole runs: what is in the folder, killed and resumed, phases, refusals before compilation."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.cost import nbytes
from jaxlab.tasks.base import NetworkTask
from jaxlab.training.checkpoint import Checkpoints
from jaxlab.training.experiment import Experiment, build_task
from jaxlab.training.logging import read_metrics
from jaxlab.training.run import Run


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def config(folder, **changes):
    c = base_config("tiny.py")
    c.workdir = str(folder)
    c.steps, c.batch_size = 6, 16
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(32,))
    c.compress.first = {"path": "layers/0/kernel", "name": "nm", "n": 1, "m": 4}
    c.log.every = c.eval.every = c.checkpoint.every = 2
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if key == "compress":
            # One by one: a whole dict would be put into alphabetical order.
            del c.compress["first"]
            for label, rule in value.items():
                c.compress[label] = rule
        elif name:
            c[section][name] = value
        else:
            c[section] = value
    return c.to_dict()


def train(folder, **changes):
    run = Run(Experiment(config(folder, **changes)))
    return run.train(), run


def contents(folder):
    names = ("metrics.jsonl", "model.safetensors")
    return {name: (Path(folder) / name).read_bytes() for name in names}


def test_run_folder_and_summary(tmp_path):
    summary, run = train(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "model.safetensors",
        "summary.json",
        "curves.png",
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["compilations"] == [1]
    assert summary["methods"] == ["nm"]
    params = jaxlab.load(tmp_path / "model.safetensors")
    assert jaxlab.nbytes(params) == summary["bytes"]["finalized"] < summary["bytes"]["dense"]
    assert (tmp_path / "model.safetensors").stat().st_size == summary["bytes"]["file"]
    # The loaded artefact is the model that was measured.
    assert run.evaluate(params) == summary["metrics"]["finalized"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "finalized/accuracy" in line] == [2, 4, 6]
    assert summary["metrics"]["finalized"]["accuracy"] == lines[-1]["finalized/accuracy"]


def test_finalized_predictions_equal_the_trained_ones(tmp_path):
    _, run = train(tmp_path, model__hidden=(32, 32))
    packed = jaxlab.load(tmp_path / "model.safetensors")
    network = run.experiment.task.network
    images = next(iter(run.experiment.task.eval_batches()))["image"]
    # The state before finalize, from its checkpoint.
    checkpoints = Checkpoints(tmp_path / "checkpoints", run.experiment.task.quality)
    trained = run._restore(6, 1, checkpoints).params
    checkpoints.close()
    assert type(trained["layers"][0]["kernel"]) is not type(packed["layers"][0]["kernel"])
    trained_logits = network.apply(jaxlab.at(trained, 1.0), images)
    # The tolerance that docs/training.md gives.
    np.testing.assert_allclose(network.apply(packed, images), trained_logits, rtol=1e-6, atol=1e-6)


def test_seeds_differ_and_repeat(tmp_path):
    runs = [train(tmp_path / str(i), seed=seed)[0] for i, seed in enumerate((0, 0, 1))]
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert contents(tmp_path / "0") != contents(tmp_path / "2")
    assert runs[0]["config_hash"] == runs[2]["config_hash"]


def test_a_finished_run_repeated_changes_nothing(tmp_path):
    train(tmp_path)
    file = tmp_path / "summary.json"
    before, summary = contents(tmp_path), file.read_bytes()
    again, run = train(tmp_path)
    assert run.traces == []
    assert contents(tmp_path) == before
    # Its times, too: they are those of the training, and not of having looked at it again.
    assert file.read_bytes() == summary
    assert again == json.loads(summary)


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"optim/lr is 0.001 there, 0.01 here"):
        train(tmp_path, optim__lr=0.01)
    assert contents(tmp_path) == before
    train(tmp_path, log__every=1)


def test_phases_change_the_structure_and_compile_once_each(tmp_path):
    rules = (("layers/1/kernel", "low_rank", {"rank": 4}),)
    phases = {
        "late": {"at": 0.5, "name": "compress", "rules": rules},
        "open": {"at": 1.0, "name": "densify", "path": "layers/0/.*"},
    }
    changes = {"model__hidden": (32, 32), "phases": phases}
    summary, _ = train(tmp_path / "whole", **changes)
    assert summary["compilations"] == [1, 1]
    assert summary["methods"] == ["low_rank"]
    loaded = jaxlab.load(tmp_path / "whole" / "model.safetensors")
    assert loaded["layers"][0]["kernel"].shape == (64, 32)
    assert type(loaded["layers"][1]["kernel"]).name == "low_rank"


@pytest.mark.parametrize(
    "method",
    [{"name": "low_rank", "rank": 4}, {"name": "monarch", "nblocks": 4}],
    ids=lambda method: method["name"],
)
@pytest.mark.parametrize("opt_state", ["reset_converted", "reset_all", "map_first_moment"])
def test_multiplying_factors_out_does_not_move_the_loss(tmp_path, opt_state, method):
    phases = {"open": {"at": 0.5, "name": "densify", "opt_state": opt_state}}
    rule = {"path": "layers/0/kernel", **method}
    summary, _ = train(tmp_path, compress={"all": rule}, phases=phases)
    assert summary["compilations"] == [1, 1]
    assert summary["methods"] == []
    (switch,) = [m for m in read_metrics(tmp_path / "metrics.jsonl") if m.get("phase") == "open"]
    assert abs(switch["loss_after"] - switch["loss_before"]) < 1e-5 * switch["loss_before"]


@pytest.mark.parametrize(("start", "variance"), [("lecun_normal", 1), ("he_normal", 2)])
def test_an_mlp_starts_as_the_config_says(start, variance, tmp_path):
    changes = {"model__init": start, "model__hidden": (512,), "compress": {}}
    task = build_task(config(tmp_path, **changes))
    w = np.asarray(task.init(jax.random.key(0))["layers"][0]["kernel"])
    np.testing.assert_allclose(w.var() * w.shape[0], variance, rtol=0.05)


def test_an_unknown_start_of_an_mlp_is_refused(tmp_path):
    with pytest.raises(ValueError, match="init='he' is unknown; .*he_normal"):
        build_task(config(tmp_path, model__init="he")).init(jax.random.key(0))


def test_shapes_of_a_calibrated_phase_need_no_data(tmp_path, monkeypatch):
    changes = {
        "compress": {"all": {"path": "layers/0/kernel", "name": "low_rank", "rank": 4}},
        "calibrate__batches": 2,
    }

    def refuse(self, step):
        raise AssertionError("an experiment was built with data")

    with monkeypatch.context() as patch:
        patch.setattr(NetworkTask, "batch", refuse)
        experiment = Experiment(config(tmp_path, **changes))
    shapes = experiment.structures[-1].params
    trained = Run(experiment).train()
    assert trained["bytes"]["finalized"] == nbytes(shapes)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX", reason="the test extra brings it")
    train(tmp_path, log__tensorboard=True)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 500
    assert b"finalized/accuracy" in events.read_bytes()


@pytest.mark.parametrize(
    ("resume_at", "optim"),
    [(2, {"name": "mfac", "m": 4}), (4, {"name": "mkor", "hybrid": True, "update_every": 2})],
)
def test_resumed_on_either_side_of_a_phase_is_bitwise_the_same(tmp_path, resume_at, optim):
    rules = (("layers/1/kernel", "low_rank", {"rank": 4}),)
    changes = {
        "model__hidden": (32, 32),
        "ema": 0.9,
        "accumulate": 2,
        "checkpoint__keep": 9,
        "phases": {"late": {"at": 0.5, "name": "compress", "rules": rules}},
        **{f"optim__{name}": value for name, value in optim.items()},
    }
    train(tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for step in range(resume_at + 2, 7, 2):
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / str(step))
    (tmp_path / "broken" / "model.safetensors").unlink()
    train(tmp_path / "broken", **changes)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_a_phase_at_the_end_is_measured(tmp_path):
    rules = (("layers/1/kernel", "low_rank", {"rank": 1}),)
    changes = {
        "model__hidden": (32, 32),
        "phases": {"last": {"at": 1.0, "name": "compress", "rules": rules}},
    }
    summary, _ = train(tmp_path, **changes)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["phase"] == "last"
    assert last["finalized/loss"] == summary["metrics"]["finalized"]["loss"]
    before = contents(tmp_path)
    train(tmp_path, **changes)
    assert contents(tmp_path) == before


def test_the_order_of_rules_belongs_to_the_run(tmp_path):
    rules = {
        "a": {"path": "layers/.*/kernel", "name": "dense"},
        "b": {"path": ".*/kernel", "name": "low_rank", "rank": 2},
    }
    turned = {"b": {**rules["b"], "path": "head/kernel"}, "a": rules["a"]}
    one = Experiment(config(tmp_path, compress=rules))
    two = Experiment(config(tmp_path, compress=turned))
    assert one.fingerprint != two.fingerprint
    Run(one)
    with pytest.raises(ValueError, match="holds another run: compress/0/0 is a there, b here"):
        Run(two)


def test_an_experiment_can_be_run_twice(tmp_path):
    train(tmp_path / "dense", compress={})
    settings = config(tmp_path / "a", init=str(tmp_path / "dense"))
    experiment = Experiment(settings)
    first = Run(experiment).train()
    experiment.config["workdir"] = str(tmp_path / "b")
    assert Run(experiment).train()["metrics"] == first["metrics"]


def test_one_shot_compression_of_a_checkpoint(tmp_path):
    train(tmp_path / "dense", compress={}, steps=20)
    summary, _ = train(tmp_path / "small", steps=0, init=str(tmp_path / "dense"))
    assert summary["steps"] == 0
    dense = jaxlab.load(tmp_path / "dense" / "model.safetensors")
    small = jaxlab.load(tmp_path / "small" / "model.safetensors")
    kernel = dense["layers"][0]["kernel"]
    kept = small["layers"][0]["kernel"].to_dense()
    assert ((kept == kernel) | (kept == 0)).all()
    assert summary["bytes"]["finalized"] < summary["bytes"]["dense"]


def test_init_that_does_not_fit_is_refused(tmp_path):
    train(tmp_path / "dense", compress={})
    with pytest.raises(ValueError, match=r"init=.*'head/kernel' is \(32, 10\) in the file"):
        Experiment(config(tmp_path / "b", init=str(tmp_path / "dense"), model__hidden=(16,)))
    with pytest.raises(FileNotFoundError, match="no file"):
        Experiment(config(tmp_path / "b", init=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__name": "digit"}, "data 'digit' is not registered; did you mean 'digits'"),
        ({"model__name": "vitt"}, "did you mean 'vit'"),
        ({"task__name": "clasify"}, "did you mean 'classify'"),
        ({"optim__name": "adam"}, "did you mean 'adamw'"),
        ({"model__hiden": (3,)}, "takes no 'hiden'; did you mean 'hidden'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": -1}, "steps=-1"),
        ({"accumulate": 3}, "batch_size=16 must be a multiple"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"freeze": ("layer/.*",)}, "freeze: pattern 'layer/.*'"),
        ({"optim__lr_paths": (("hed/.*", 2.0),)}, "optim.lr_paths: pattern 'hed/.*'"),
        ({"compress": {"a": {"path": "layer", "name": "nm", "n": 1, "m": 4}}}, "matches no path"),
        (
            {"compress": {"a": {"path": "layers/0/kernel", "name": "nm", "n": 1, "m": 5}}},
            "'layers/0/kernel'.*nearest m: 2, 4",
        ),
        ({"compress": {"a": {"path": "layers/0/kernel"}}}, "rule 'a'.*needs 'name'"),
        ({"compress": {"a": "nm"}}, "rule 'a' is 'nm'"),
        ({"optim__lr_paths": ("head/.*", 2.0)}, "needs a tuple around it"),
        ({"optim__weight_deacy": 0.1}, "did you mean 'weight_decay'"),
        ({"log__every": 0}, "log.every=0"),
        ({"matmul_precision": "hihg"}, "did you mean 'high'"),
        ({"phases": {"x": {"at": 2.0, "name": "densify"}}}, "x.at=2.0"),
        ({"phases": {"x": {"at": 0.5, "name": "densfy"}}}, "did you mean 'densify'"),
        (
            {"phases": {"x": {"at": 0.5, "name": "densify", "opt_state": "reset"}}},
            "phases: x: opt_state='reset'",
        ),
        ({"mesh__model": 3}, "does not fit"),
        ({"task__name": "language_model"}, "data 'digits' has no 'vocab_size'"),
    ],
)
def test_mistakes_stop_before_anything_is_compiled(tmp_path, changes, message):
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(ValueError, match=message):
            Experiment(config(tmp_path / "run", **changes))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert not (tmp_path / "run").exists()


def test_the_listener_above_hears_compilations():
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3.25)(jax.numpy.ones(17))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled
