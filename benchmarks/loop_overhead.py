"""What the training loop costs: its steps per second against the same optax loop by hand.

    python benchmarks/loop_overhead.py

A dense ViT on digits. Both loops see the same model, batches, optimizer and logging period; they
take turns in one process, so that a slow moment of the machine meets both. The floor is the ratio
0.95: the loop may cost 5 % and no more. Results go to benchmarks/results/.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import jax
import optax
from absl import app, flags
from records import store

from jaxlab.config import base_config
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

_STEPS = flags.DEFINE_integer("steps", 150, "Steps of each repeat.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Repeats of each loop.")
_D_MODEL = flags.DEFINE_integer("d_model", 64, "Width of the ViT.")
FLOOR = 0.95
LOG_EVERY = 10


def make_config(folder: str) -> dict[str, Any]:
    """A dense run without evaluation and checkpoints before its end."""
    c = base_config(__file__)
    c.workdir = folder
    c.steps = _STEPS.value
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="vit", patch=2, d_model=_D_MODEL.value, depth=4, heads=4)
    c.log.every = LOG_EVERY
    return c.to_dict()


def through_the_loop() -> float:
    """Steps per second as a run reports them."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        return Run(Experiment(make_config(folder))).train()["steps_per_second"]


def by_hand() -> float:
    """Steps per second of a plain loop over the same step."""
    experiment = Experiment(make_config("unused"))
    task, steps = experiment.task, experiment.steps
    decayed = optax.cosine_decay_schedule(1e-3, steps - steps // 20)
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, 1e-3, steps // 20), decayed], [steps // 20]
    )

    def mask(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01, mask=mask)
    )
    params = jax.jit(task.init)(jax.random.key(0))
    opt = tx.init(params)

    def step(params: Any, opt: Any, batch: Any, key: Any) -> Any:
        grad_fn = jax.value_and_grad(task.loss, has_aux=True)
        (loss, metrics), grads = grad_fn(params, batch, key)
        updates, opt = tx.update(grads, opt, params)
        norm = optax.tree.norm(grads)
        return optax.apply_updates(params, updates), opt, {**metrics, "loss": loss, "norm": norm}

    step = jax.jit(step, donate_argnums=(0, 1))
    key = jax.random.key(0)
    began, previous = None, None
    for i in range(steps):
        params, opt, metrics = step(params, opt, task.batch(i), key)
        if (i + 1) % LOG_EVERY == 0:
            # As in a run: what is read was computed a while ago.
            jax.device_get(previous)
            previous = metrics
            if began is None:
                # As in a run: the first window compiles and does not count.
                jax.block_until_ready(params)
                began = (i + 1, time.perf_counter())
    jax.block_until_ready(params)
    assert began is not None
    return (steps - began[0]) / (time.perf_counter() - began[1])


def pairs() -> Iterator[tuple[float, float]]:
    """Steps per second of both loops, in turns."""
    for i in range(_REPEATS.value):
        ours, hand = through_the_loop(), by_hand()
        print(f"repeat {i}: run {ours:.1f}, by hand {hand:.1f} steps/s, ratio {ours / hand:.3f}")
        yield ours, hand


def main(argv: list[str]) -> None:
    """Measures, prints and stores; exit status 1 below the floor."""
    del argv
    measured = list(pairs())
    ratios = [ours / hand for ours, hand in measured]
    ratio = statistics.median(ratios)
    result = {
        "steps": _STEPS.value,
        "repeats": _REPEATS.value,
        "d_model": _D_MODEL.value,
        "run_steps_per_second": statistics.median(ours for ours, _ in measured),
        "hand_steps_per_second": statistics.median(hand for _, hand in measured),
        "ratio": round(ratio, 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "floor": FLOOR,
    }
    print(f"ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), floor {FLOOR}")
    store("loop_overhead", result)
    if ratio < FLOOR:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
