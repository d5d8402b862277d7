"""The task pde through the one entrypoint: float64, resumed, a phase, calls of several steps."""

import json
import shutil

import jax
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.registry import register
from jaxlab.gp.pde_problem import make_problem
from jaxlab.gp.pde_problems import Case
from jaxlab.report.runs import group_runs, load_runs
from jaxlab.training.experiment import Experiment
from jaxlab.training.logging import read_metrics
from jaxlab.training.run import Run


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


@register("problem", "test_decay")
def decay(*, rate: float = 1.0):
    """The equation u' = -rate u without a known solution, as a user writes it."""
    start = np.zeros(9, bool)
    start[0] = True
    return Case(
        make_problem(
            [np.linspace(0, 1, 9)],
            lambda u, d, x: d(0, 1) + rate * u,
            source=lambda x: 0 * x,
            boundary=lambda x: 1 + 0 * x,
            mask=start,
            linear=True,
        ),
        freq_scale=2.0,
    )


def config(folder, **changes):
    c = base_config("tiny.py")
    c.workdir = str(folder)
    c.x64, c.steps, c.steps_per_call = True, 8, 2
    problem = {"name": "poisson_1d", "points": 24, "end": 0.5}
    c.task.update(name="pde", problem=problem, components=3, test_points=20)
    c.optim.update(lr=1e-2, weight_decay=0.0, clip=0.0)
    c.log.every = c.eval.every = c.checkpoint.every = 4
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            c[section][name] = value
        else:
            c[section] = value
    return c.to_dict()


def train(folder, **changes):
    return Run(Experiment(config(folder, **changes))).train()


def draw_nothing(monkeypatch):
    """For runs whose figures nobody looks at: they take as long as compiling the step."""
    for name in ("plot_curves", "save_figures"):
        monkeypatch.setattr(f"jaxlab.training.run.{name}", lambda *given: None)


def contents(folder):
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors")]


SECOND = {
    "phases": {"second": {"at": 0.5, "name": "second_process", "opt_state": "reset_all"}},
    "freeze": ("first/.*",),
}


def test_a_run_is_float64_and_leaves_the_process_alone(tmp_path, monkeypatch):
    summary = train(tmp_path / "whole", **SECOND)
    assert jax.numpy.zeros(()).dtype == np.float32
    assert summary["compilations"] == [1, 1]
    assert summary["quality"]["mode"] == "min"
    with jax.enable_x64(True):
        params = jaxlab.load(tmp_path / "whole" / "model.safetensors")
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float64")}
    assert set(params) == {"first", "second"}
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    assert {"solution.png", "spectrum.png"} <= names
    lines = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert all(np.isfinite(m["residual"]) for m in lines if "loss" in m)
    # The step is chosen by the criterion, whatever the error there.
    evaluated = {m["step"]: m for m in lines if "trained/criterion" in m}
    assert {m["trained/ok"] for m in evaluated.values()} == {1}
    least = min(evaluated, key=lambda step: evaluated[step]["trained/criterion"])
    assert summary["chosen"]["step"] == least
    assert summary["chosen"]["relative_l2"] == evaluated[least]["trained/relative_l2"]
    # A second process at u = 0 leaves the residual as it was, and the first is frozen.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "8")
    (tmp_path / "broken" / "model.safetensors").unlink()
    draw_nothing(monkeypatch)
    train(tmp_path / "broken", **SECOND)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_a_covariance_that_is_not_positive_definite_ends_the_run(tmp_path):
    experiment = Experiment(config(tmp_path / "run", task__kernel="se"))
    task = experiment.task
    with experiment.precision():
        params = task.init(jax.random.key(0))
        # So smooth and so large that rounding is more than the jitter.
        flat = {"log_w": np.full(3, 60.0), "log_ls": np.full(3, -6.0)}
        batch = task.batch(0)
        sums = jax.jit(task.eval_sums)
        assert task.eval_metrics(jax.device_get(sums(params, batch)))["ok"] == 1
        found = jax.device_get(sums({**params, "kernels": [flat]}, batch))
    assert found["ok"] == 0
    with pytest.raises(FloatingPointError, match="jitter=1e-06; nearest: jitter=1e-05"):
        task.eval_metrics(found)


def test_several_steps_in_one_call_are_the_same_steps(tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    for count in (1, 4):
        train(tmp_path / str(count), steps_per_call=count)
    # Two programs: how each rounds is the processor's affair.
    one, four = (read_metrics(tmp_path / str(count) / "metrics.jsonl") for count in (1, 4))
    assert [line.keys() for line in one] == [line.keys() for line in four]
    for ours, theirs in zip(one, four, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_solved_values_with_a_users_own_equation(tmp_path):
    problem = {"name": "test_decay", "rate": 2.0}
    summary = train(tmp_path, task__problem=problem, task__u_update="solve", steps=4, optim__lr=0.1)
    assert summary["quality"]["name"] == "criterion"
    with jax.enable_x64(True):
        assert "u" not in jaxlab.load(tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["data_info"]["grid"] == [9]
    (group,) = group_runs(load_runs([tmp_path]))
    assert group.title == "pde on test_decay(rate=2.0)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x64": False}, r"pde: float32 is not enough: set c\.x64 = True"),
        ({"steps_per_call": 3}, "steps_per_call=3 must divide steps = 8; nearest.*: 2"),
        ({"steps_per_call": 8}, "steps_per_call=8 must divide log.every = 4; nearest.*: 4"),
        ({"steps_per_call": 0}, "steps_per_call=0"),
        ({"task__problem": {"name": "advecton"}}, "did you mean 'advection'"),
        ({"task__problem": {"name": "poisson_1d", "solution": "sin"}}, "solution='sin' is unknown"),
        ({"task__problem": {"name": "poisson_1d", "points": 1}}, "points=1 must be 2 or more"),
        ({"task__u_update": "sgd"}, "u_update='sgd'"),
        ({"task__kernel": "sm"}, "did you mean 'stm'"),
        ({"task__nu": 0.5}, "order=2: 'matern12'"),
        ({"task__components": 0}, "Q=0"),
        ({"task__test_points": 1}, "test_points=1"),
    ],
)
def test_mistakes_stop_before_anything_is_trained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment(config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
