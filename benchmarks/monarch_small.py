"""Structured hidden layers in an MLP of d-1024-1024-10: accuracy at equal parameters.

    python benchmarks/monarch_small.py                                       # one GPU, minutes
    python benchmarks/monarch_small.py --size=small --seeds=5                # 2 CPU cores, digits

The kernel of 1024 x 1024 is dense, Monarch with 4 blocks, low rank or block-diagonal. All variants
take the same epochs; dense to sparse trains a dense kernel for all epochs but the last, projects it
and fine-tunes for that one. A cell is a variant; its seeds train at once, under vmap, on images
that stay on the device. Cells that are stored are not run again.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from records import load, store

from jaxlab.config import base_config
from jaxlab.core import registry
from jaxlab.core.compress import Rule, compress
from jaxlab.data.batching import epoch_indices
from jaxlab.optim.chain import make_optimizer
from jaxlab.training.experiment import build_task
from jaxlab.training.loop import make_train_step, stream
from jaxlab.training.state import init_state

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "small: digits, few steps.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of each variant.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs in all, of which dense to sparse has one.")
_PATH = flags.DEFINE_string("path", "/usr/share/datasets/fashion-mnist", "The four IDX files.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")

KERNEL = "layers/1/kernel"
# By budget, rank of each slice: 4 blocks and slices of rank 64 store half of 1024 x 1024.
BUDGETS = {"50 %": 64, "25 %": 32}
# Of the slices of what the trained dense kernel is projected to.
RANKS = (8, 16, 32, 64)


def monarch(rank: int, init: str) -> list[Rule]:
    """Four blocks with slices of a rank; blocked outputs, as the configs have them."""
    return [(KERNEL, "monarch", {"k": 4, "l": 4, "rank": rank, "blocked": True, "init": init})]


def variants() -> dict[str, list[Rule]]:
    """What is trained from the start, for all epochs."""
    found: dict[str, list[Rule]] = {"dense": []}
    for budget, rank in BUDGETS.items():
        found[f"monarch {budget}"] = monarch(rank, "variance_preserving")
        # 4 slices each way: 8 rank 1024 numbers, those of a product of rank 4 * rank.
        found[f"low rank {budget}"] = [(KERNEL, "low_rank", {"rank": 4 * rank})]
    blocks = {"nblocks": 4, "init": "variance_preserving"}
    found["block diagonal 25 %"] = [(KERNEL, "block_diagonal", blocks)]
    return found


class Trainer:
    """The task, its images on the device, and training that is compiled once for each variant."""

    def __init__(self, section: dict[str, Any], batch_size: int):
        c = base_config(__file__)
        c.batch_size = batch_size
        c.task.name = "classify"
        c.data.update(section)
        c.model.update(name="mlp", hidden=(1024, 1024))
        self.optim = c.optim.to_dict()
        self.task, self.batch_size = build_task(c.to_dict()), batch_size
        self.count = self.task.info["train_items"]
        # One batch of all images, in an order of its own.
        whole = registry.build("data", section, seed=0, batch_size=self.count).batch(0)
        self.images = jax.tree.map(jnp.asarray, whole)
        self.held_out = list(self.task.eval_batches())
        self.seeds = range(_SEEDS.value)
        self.keys = jnp.stack([stream(seed, "init") for seed in self.seeds])
        self._sums = jax.jit(jax.vmap(self.task.eval_sums, in_axes=(0, None)))

    def steps(self, epochs: int) -> int:
        """Whole batches of some epochs."""
        return epochs * self.count // self.batch_size

    def rows(self, first: int, steps: int) -> jax.Array:
        """The images of some steps of every seed: (seeds, steps, batch)."""
        draw = partial(epoch_indices, batch_size=self.batch_size, count=self.count)
        found = [[draw(seed, first + i) for i in range(steps)] for seed in self.seeds]
        return jnp.asarray(np.array(found), jnp.int32)

    def start(self, rules: list[Rule]) -> Any:
        """Parameters of every seed."""

        def one(key: jax.Array) -> Any:
            return compress(self.task.init(key), rules, key=jax.random.fold_in(key, 1))

        return jax.jit(jax.vmap(one))(self.keys)

    def train(self, params: Any, first: int, steps: int, *, lr: float) -> Any:
        """The parameters of every seed after some steps under a schedule of their own."""
        tx, _ = make_optimizer({**self.optim, "lr": lr}, steps=steps)
        step = make_train_step(self.task.loss, tx, steps=steps)

        def one(params: Any, images: Any, rows: jax.Array) -> Any:
            def body(state, taken):
                return step(state, jax.tree.map(lambda x: x[taken], images))[0], None

            state = init_state(params, tx, freeze=(), ema=0.0)
            return jax.lax.scan(body, state, rows)[0].params

        several = jax.jit(jax.vmap(one, in_axes=(0, None, 0)))
        return several(params, self.images, self.rows(first, steps))

    def accuracy(self, params: Any) -> list[float]:
        """Held-out accuracy of every seed."""
        sums = [jax.device_get(self._sums(params, batch)) for batch in self.held_out]
        total = jax.tree.map(lambda *parts: np.sum(parts, 0, np.float64), *sums)
        rows = [jax.tree.map(lambda v, i=i: float(v[i]), total) for i in self.seeds]
        return [round(self.task.eval_metrics(row)["accuracy"], 6) for row in rows]


def kept(params: Any) -> float:
    """Numbers of the hidden kernel as a fraction of the dense one's, by the seeds' stacked tree."""
    w = params["layers"][1]["kernel"]
    return sum(x.size for x in jax.tree.leaves(w)) / (w.shape[0] * 1024 * 1024)


def main(argv: list[str]) -> None:
    """Runs the variants that are missing and stores each."""
    del argv
    large = _SIZE.value == "large"
    section = {"name": "fashion_mnist", "path": _PATH.value} if large else {"name": "digits"}
    trainer = Trainer(section, 128 if large else 64)
    epochs, lr = _EPOCHS.value, 1e-3
    steps, dense_steps = trainer.steps(epochs), trainer.steps(epochs - 1)
    name = f"monarch_small-{_SIZE.value}"
    facts = {"data": trainer.task.info, "epochs": epochs, "steps": steps, "seeds": _SEEDS.value}
    facts |= {"batch_size": trainer.batch_size, "lr": lr, "fine_tune_lr": lr / 3}
    result = load(name, _FOLDER.value)
    if result is None or {k: result[k] for k in facts} != facts:
        result = {**facts, "cells": {}}

    def keep(key: str, params: Any, began: float) -> None:
        found = {"accuracy": trainer.accuracy(params), "kept": kept(params)}
        result["cells"][key] = {**found, "wall_seconds": round(time.perf_counter() - began, 2)}
        store(name, result, _FOLDER.value)
        mean = np.mean(found["accuracy"])
        seconds = result["cells"][key]["wall_seconds"]
        print(f"{key}: accuracy {mean:.4f}, {seconds} s", flush=True)

    with jax.default_matmul_precision("highest"):
        for key, rules in variants().items():
            if key not in result["cells"]:
                began = time.perf_counter()
                keep(key, trainer.train(trainer.start(rules), 0, steps, lr=lr), began)
        tuned = {rank: f"dense to sparse {budget}" for budget, rank in BUDGETS.items()}
        last = [f"projected, rank {rank}" for rank in RANKS] + [*tuned.values()]
        if all(key in result["cells"] for key in last):
            return
        began = time.perf_counter()
        dense = trainer.train(trainer.start([]), 0, dense_steps, lr=lr)
        keep("dense, before the last epoch", dense, began)
        for rank in RANKS:
            began = time.perf_counter()
            rules = monarch(rank, "project")
            params = jax.jit(jax.vmap(partial(compress, rules=rules)))(dense)
            keep(f"projected, rank {rank}", params, began)
            if rank in tuned:
                began = time.perf_counter()
                params = trainer.train(params, dense_steps, steps - dense_steps, lr=lr / 3)
                keep(tuned[rank], params, began)


if __name__ == "__main__":
    app.run(main)
