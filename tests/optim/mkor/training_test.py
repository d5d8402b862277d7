"""MKOR in the training loop: across a phase that prunes, and with padding in its batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.optim.chain import make_optimizer
from jaxlab.optim.mkor import MkorState
from jaxlab.training.experiment import Experiment
from jaxlab.training.loop import make_train_step
from jaxlab.training.run import Run
from jaxlab.training.state import init_state, restructure

PARAMS = {
    "up": {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.ones(3)},
    "down": {"kernel": jnp.linspace(1, -1, 6).reshape(3, 2)},
}


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def loss_fn(params, batch, key):
    h = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None, None, :])
    each = jnp.sum((h @ params["down"]["kernel"] - 1) ** 2, axis=-1)
    return jnp.sum(each * batch["mask"]) / jnp.sum(batch["mask"]), {}


def batch(seed, padding):
    x = np.random.default_rng(seed).normal(1, 1, size=(4, 5, 4))
    mask = np.broadcast_to(np.arange(5) < 3, (4, 5))
    x = np.where(mask[..., None], x, padding)
    return {"x": np.float32(x), "mask": np.float32(mask)}


def optimizer(name):
    section = {"name": name, "lr": 0.05, "schedule": {"name": "constant"}}
    return make_optimizer(section | ({"update_every": 1} if name == "mkor" else {}), steps=10)[0]


def trained(tx, state, steps, padding=0.0, weight=None, accumulate=1):
    step = jax.jit(make_train_step(loss_fn, tx, steps=10, accumulate=accumulate, weight=weight))
    for i in range(steps):
        state, _ = step(state, batch(i, padding))
    return state


def factors(state):
    is_state = lambda x: isinstance(x, MkorState)  # noqa: E731
    found = [x for x in jax.tree.leaves(state.opt, is_leaf=is_state) if is_state(x)]
    assert len(found) == 1
    return found[0].factors


def test_a_pruned_kernel_is_second_order_with_the_factors_it_had():
    tx = optimizer("mkor")
    state = trained(tx, init_state(PARAMS, tx, freeze=(), ema=0.0), 3)

    def prune(params, opt, key):
        return jaxlab.compress(params, [("up/kernel", "sparse", {"sparsity": 0.5})]), None

    new = restructure(state, prune, tx, freeze=(), key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, factors(new), factors(state))
    assert sorted(factors(new)) == ["down/kernel", "up/kernel"]
    after = trained(tx, new, 1)
    for path in ("up/kernel", "down/kernel"):
        assert np.any(np.asarray(factors(after)[path].ja) != np.asarray(factors(state)[path].ja))
    # What is pruned stays, and the rest does not move along the gradient.
    mask = np.asarray(new.params["up"]["kernel"].mask)
    moved = np.asarray(after.params["up"]["kernel"].weight - new.params["up"]["kernel"].weight)
    assert np.array_equal(moved != 0, mask)
    sgd = optimizer("sgd")
    plain = trained(sgd, init_state(new.params, sgd, freeze=(), ema=0.0), 1)
    raw = np.asarray(plain.params["up"]["kernel"].weight - new.params["up"]["kernel"].weight)
    assert np.sum(raw * moved) < 0.99 * np.linalg.norm(raw) * np.linalg.norm(moved)


@pytest.mark.parametrize("name", ["mkor", "eva"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_padding_changes_nothing(name, accumulate):
    tx = optimizer(name)
    start = init_state(PARAMS, tx, freeze=(), ema=0.0)
    mask = lambda batch: batch["mask"]  # noqa: E731
    how = {"accumulate": accumulate}
    nothing, junk = (trained(tx, start, 3, padding, mask, **how) for padding in (0.0, 50.0))
    jax.tree.map(np.testing.assert_array_equal, nothing, junk)
    unweighted = trained(tx, start, 3, 50.0, **how)
    assert np.any(unweighted.params["up"]["kernel"] != junk.params["up"]["kernel"])
    # A scalar counts all alike.
    scalar = trained(tx, start, 3, 50.0, lambda batch: jnp.ones(()), **how)
    jax.tree.map(np.testing.assert_array_equal, scalar, unweighted)


def test_a_run_asks_its_task_what_rows_count(tmp_path, monkeypatch):
    c = base_config("padding")
    c.update({"steps": 1, "batch_size": 8, "workdir": str(tmp_path / "run")})
    c.task.update({"name": "classify"})
    c.data.update({"name": "digits"})
    c.model.update({"name": "mlp", "hidden": (8,)})
    c.optim.update({"name": "mkor", "lr": 0.1, "schedule": {"name": "constant"}})
    experiment, asked = Experiment(c.to_dict()), []
    own = experiment.task.calibration_weight
    monkeypatch.setattr(
        experiment.task, "calibration_weight", lambda batch: asked.append(batch) or own(batch)
    )
    Run(experiment).train()
    assert len(asked) == 1
