"""One-shot pruning of a digits MLP: accuracy by method and sparsity, nothing trained afterwards.

    python benchmarks/mfac_pruning.py            # 2 CPU cores, minutes

A 64-128-128-10 MLP is trained for every seed; then its three kernels are pruned together by the
phase `prune`, to each sparsity from the dense model, with 256 gradients of 16 images, and by
`prune_nm` to n of every m.
"""

import tempfile
from functools import partial
from typing import Any

import jax
from absl import app, flags
from publish_mfac import GROUP_METHODS, GROUPS, METHODS, NAME, SPARSITIES, TRAININGS
from records import load, store
from tqdm import tqdm

from jaxlab.config import base_config
from jaxlab.training.experiment import Experiment
from jaxlab.training.phases import compress
from jaxlab.training.pruning import prune
from jaxlab.training.pruning_nm import prune_nm
from jaxlab.training.run import Run
from jaxlab.training.surroundings import Surroundings

_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the trained model and of its gradients.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_METHODS = flags.DEFINE_multi_string("method", [], "A method's label; all if none is given.")
_STEPS = flags.DEFINE_integer("steps", 800, "Training steps.")
OPTIMIZERS: dict[str, dict[str, Any]] = {
    TRAININGS[0]: {"name": "adamw", "lr": 1e-3},
    TRAININGS[1]: {"name": "sgd", "lr": 0.1, "momentum": 0.9},
}


def config(training: str, seed: int, folder: str) -> Any:
    """The dense model's experiment."""
    c = base_config("mfac_pruning.py", f"seed={seed}")
    c.workdir = folder
    c.steps, c.batch_size = _STEPS.value, 128
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(128, 128))
    c.optim.update(**OPTIMIZERS[training], schedule={"name": "constant"})
    c.log.every = c.steps
    return c.to_dict()


def cell(training: str, seed: int, todo: list[str], bar: tqdm) -> dict[str, float]:
    """Held-out accuracy of the dense model and of every method at every sparsity."""
    with tempfile.TemporaryDirectory() as folder:
        settings = config(training, seed, folder)
        run = Run(Experiment(settings))
        found = {"dense": run.train()["quality"]["finalized"]}
        experiment = run.experiment
        params = Experiment({**settings, "init": folder}).initial_params()
    around = Surroundings(
        experiment.steps,
        experiment.steps,
        experiment.loss,
        experiment.batch,
        experiment.task.calibration_weight,
    )
    for method in todo:
        for target, phase in phases_of(method, around):
            pruned, _ = phase(params, None, jax.random.key(seed))
            found[f"{method}, {target}"] = run.evaluate(pruned)["accuracy"]
            bar.update()
    return found


def phases_of(method: str, run: Surroundings) -> list[tuple[str, Any]]:
    """By target, the transforms that prune by a method: to sparsities, or to N:M groups."""
    if method in METHODS:
        make = partial(prune, run=run, rows=16, **METHODS[method])
        return [(str(s), make(sparsity=s)) for s in SPARSITIES]
    settings = GROUP_METHODS[method]
    found = []
    for n, m in GROUPS:
        if settings is None:
            rule = (".*/kernel", "nm", {"n": n, "m": m, "recipe": "asp"})
            phase = compress(run=run, rules=[rule])
        else:
            phase = prune_nm(run=run, n=n, m=m, rows=16, **settings)
        found.append((f"{n}:{m}", phase))
    return found


def last_target(method: str) -> str:
    """The one that is measured last."""
    return str(SPARSITIES[-1]) if method in METHODS else "{}:{}".format(*GROUPS[-1])


def main(argv: list[str]) -> None:
    """Runs what is missing and stores each seed."""
    del argv
    result = load(NAME, _FOLDER.value) or {"cells": {}}
    chosen = _METHODS.value or [*METHODS, *GROUP_METHODS]
    cells = {f"{t}, seed {s}": (t, s) for t in TRAININGS for s in range(_SEEDS.value)}
    missing = {
        key: [m for m in chosen if f"{m}, {last_target(m)}" not in result["cells"].get(key, {})]
        for key in cells
    }
    count = sum(len(todo) for todo in missing.values()) * len(SPARSITIES)
    with tqdm(total=count, unit="model") as bar:
        for key, todo in missing.items():
            if todo:
                with jax.default_matmul_precision("highest"):
                    found = cell(*cells[key], todo, bar)
                result["cells"][key] = {**result["cells"].get(key, {}), **found}
                store(NAME, result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
