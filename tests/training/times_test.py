"""What a summary says of time: speed wherever it can be measured, seconds of the whole run."""

import json
import shutil
import time

import jax
import pytest

from jaxlab.config import base_config
from jaxlab.training.checkpoint import Checkpoints
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def train(folder, *, steps=6, every=2):
    c = base_config("tiny.py")
    c.workdir, c.steps, c.batch_size = str(folder), steps, 16
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(32,))
    c.log.every = c.eval.every = c.checkpoint.every = every
    c.checkpoint.keep = 9
    run = Run(Experiment(c.to_dict()))
    return run.train(), run


def test_a_resumed_run_took_as_long_as_its_parts(tmp_path, caplog):
    whole, run = train(tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", run.experiment.task.quality)
    parts = [checkpoints.seconds(step) for step in (2, 4, 6)]
    checkpoints.close()
    assert 0 < parts[0] < parts[1] < parts[2] < whole["wall_seconds"]
    for step in (4, 6):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    began = time.perf_counter()
    resumed, _ = train(tmp_path)
    took = time.perf_counter() - began
    assert parts[0] < resumed["wall_seconds"] <= round(parts[0] + took, 2)
    assert json.loads((tmp_path / "summary.json").read_text()) == resumed
    assert "could not be restored" not in caplog.text


def test_seconds_are_unknown_behind_a_checkpoint_that_does_not_say_them(tmp_path, monkeypatch):
    train(tmp_path)
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr(Checkpoints, "seconds", lambda self, step: None)
    assert train(tmp_path)[0]["wall_seconds"] is None


@pytest.mark.parametrize("every", [1, 2, 10])
def test_speed_is_measured_wherever_logs_and_evaluations_fall(tmp_path, every):
    assert train(tmp_path, every=every)[0]["steps_per_second"] > 0


def test_speed_of_the_call_that_compiles_alone_is_no_number(tmp_path):
    assert train(tmp_path, steps=1)[0]["steps_per_second"] is None
