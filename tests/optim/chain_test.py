"""The optimizer of a config section: of every config, and what is one optimizer's alone."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.optim.chain import make_optimizer
from jaxlab.training.experiment import Experiment

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}


def config(path, tmp_path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # What a folder of a model has is nothing to its optimizer.
    module.minilm_folder = lambda: tmp_path
    return module.get_config("smoke")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_every_optimizer_by_its_name(path, tmp_path):
    c = config(path, tmp_path)
    section = {**c.optim.to_dict(), "step_adamw": {"freeze_nu_at": 5}}
    for name in registry.names("optimizer"):
        tx, rate = make_optimizer({**section, "name": name}, steps=10)
        tx.init(PARAMS)
        assert np.isfinite(rate(0))


@pytest.mark.parametrize("name", ["mfac", "mkor", "eva"])
@pytest.mark.parametrize("experiment", ["vmf_digits", "pde_poisson_1d", "nm_digits"])
def test_second_order_fits_tasks_of_every_kind(name, experiment, tmp_path):
    (path,) = [path for path in CONFIGS if path.stem == experiment]
    c = config(path, tmp_path)
    c.optim.name, c.workdir = name, str(tmp_path)
    assert Experiment(c.to_dict()).structures


def test_a_section_of_its_own_is_for_one_optimizer():
    section = {"name": "sgd", "lr": 0.1, "schedule": {"name": "constant"}, "clip": 0.0}
    section |= {"weight_decay": 0.0, "momentum": 0.5}
    grads = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}

    def second(section):
        tx, _ = make_optimizer(section, steps=5)
        _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        return float(tx.update(grads, state, PARAMS)[0]["kernel"][0, 0])

    assert second(section) == pytest.approx(-0.15)
    assert second(section | {"sgd": {"momentum": 0.0}}) == pytest.approx(-0.1)
    assert second(section | {"mkor": {"update_every": 5}}) == pytest.approx(-0.15)
    with pytest.raises(ValueError, match="'mkor' takes no 'momentun'"):
        make_optimizer(section | {"mkor": {"momentun": 0.0}}, steps=5)
    with pytest.raises(ValueError, match="optim: sgd=3 must be a section"):
        make_optimizer(section | {"sgd": 3}, steps=5)
