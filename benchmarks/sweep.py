"""Many small training runs at once: the seeds of a cell under vmap, several steps in one launch.

A cell is a config and a number of seeds; seed s has the parameters and the data that
`train.py --config=...:seed=s` has. Cells are compiled ahead in threads, and each is stored when it
is done, so that a sweep can be stopped and started again: it does what is missing.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from records import load, store

from jaxlab.core.lifecycle import at, finalize
from jaxlab.methods.nm import NM, NMConfig
from jaxlab.training.diagnostics import gradient_noise
from jaxlab.training.experiment import Experiment, build_task
from jaxlab.training.loop import make_train_step, stream
from jaxlab.training.state import TrainState

_CHUNK = flags.DEFINE_integer("chunk", 50, "Steps in one launch.")
_PROBES = flags.DEFINE_integer("probes", 20, "Diagnostics are taken so many times in a run.")
_MINUTES = flags.DEFINE_float("minutes", 1e9, "No cell is begun that would end after so many.")
_AHEAD = flags.DEFINE_integer("ahead", 3, "Cells that are compiled ahead, in threads.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
NOISE_BATCHES = 8


class Cell(NamedTuple):
    """One entry of a sweep.

    Attributes:
      key: how results call it.
      config: settings of the experiment.
      seeds: how many.
      diagnosed: whether gradients and masks are watched, which costs compile time.
      one_shot: N:M patterns, "n:m", that the trained model is also pruned to at once, by key.
    """

    key: str
    config: dict[str, Any]
    seeds: int
    diagnosed: bool = False
    one_shot: dict[str, str] = {}


class Program(NamedTuple):
    """What was compiled for a cell."""

    experiment: Experiment
    init: Any
    chunk: Any
    probe: Any
    evaluate: Any
    pruned: dict[str, Any]


def sweep(name: str, cells: Sequence[Cell]) -> None:
    """Runs the cells that are missing from the stored results, as long as there is time."""
    began = time.perf_counter()
    result = load(name, _FOLDER.value) or {"cells": {}}
    todo = [cell for cell in cells if cell.key not in result["cells"]]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are stored", flush=True)
    if not todo:
        return
    seeds = range(max(cell.seeds for cell in todo))
    tasks = [build_task({**todo[0].config, "seed": seed}) for seed in seeds]
    result["data"] = tasks[0].info
    held_out = _stacked(list(tasks[0].eval_batches()))
    longest = 0.0
    with ThreadPoolExecutor(_AHEAD.value) as pool:
        waiting: list[Future[Program]] = []
        for i, cell in enumerate(todo):
            ahead = todo[len(waiting) : i + _AHEAD.value]
            waiting += [pool.submit(build, c, tasks[0], held_out) for c in ahead]
            program = waiting[i].result()
            if time.perf_counter() - began + longest > 60 * _MINUTES.value:
                print("no time for another cell; the same command goes on from here", flush=True)
                break
            found = run(cell, program, tasks[: cell.seeds], held_out)
            result["cells"] |= found
            longest = max(longest, found[cell.key]["seconds"])
            store(name, result, _FOLDER.value)
        for future in waiting:
            future.cancel()


def build(cell: Cell, task: Any, held_out: Any) -> Program:
    """Compiles a cell's functions, all of them over a leading axis of seeds."""
    began = time.perf_counter()
    experiment = Experiment(cell.config)
    steps = experiment.steps
    # The step count is one for all seeds: with one each, a switch would compute all its branches.
    over_seeds = TrainState(step=None, trainable=0, frozen=0, opt=0, ema=None)  # pyright: ignore
    make_step = partial(make_train_step, task.loss, experiment.tx, steps=steps)
    seeds_step = jax.vmap(make_step(), in_axes=(over_seeds, 0), out_axes=(over_seeds, 0))

    def init(keys):
        def one(key):
            state = experiment.init_state(task.init(key))
            for phase in experiment.phases:
                state = experiment.phase_fn(phase)(state, key)
            return state

        return jax.vmap(one, out_axes=over_seeds)(keys)

    def chunk(state, batches):
        def body(state, batch):
            state, metrics = seeds_step(state, batch)
            return state, metrics["loss"]

        return jax.lax.scan(body, state, batches)

    def probe(state, batches):
        """Diagnostics of one step that is not kept, and of the gradient's noise around it."""
        watched = make_step(diagnostics=True)

        def one(state, batches):
            rows = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(NOISE_BATCHES)]
            _, metrics = watched(state, rows[0])
            noise = gradient_noise(task.loss, state, rows, jax.random.key(0), steps=steps)
            return _mean_over_matrices(metrics | noise)

        return jax.vmap(one, in_axes=(over_seeds, 1))(state, batches)

    def evaluate(state, held_out, pattern=None):
        """Sums over the held-out data, of the acting and of the finalized weights."""

        def one(state):
            if pattern is None:
                now = at(state.eval_params, jnp.minimum(state.step / steps, 1.0))
                forms = {"trained": now, "finalized": finalize(now)}
            else:
                forms = {"finalized": finalize(in_one_shot(state.eval_params, pattern))}

            def body(carry, batch):
                return carry, {f: task.eval_sums(p, batch) for f, p in forms.items()}

            _, sums = jax.lax.scan(body, None, held_out)
            return jax.tree.map(lambda x: jnp.sum(x, 0), sums)

        return jax.vmap(one, in_axes=(over_seeds,))(state)

    def compiled(fn, *args, **kwargs):
        return jax.jit(fn, **kwargs).lower(*args).compile()

    with jax.default_matmul_precision(experiment.config["matmul_precision"]):
        keys = seed_keys(cell.seeds)
        state = jax.eval_shape(init, keys)
        several = partial(_batches, [task] * cell.seeds, 0)
        program = Program(
            experiment,
            compiled(init, keys),
            compiled(chunk, state, several(_CHUNK.value), donate_argnums=0),
            compiled(probe, state, several(NOISE_BATCHES)) if cell.diagnosed else None,
            compiled(evaluate, state, held_out),
            {
                key: compiled(partial(evaluate, pattern=pattern), state, held_out)
                for key, pattern in cell.one_shot.items()
            },
        )
    print(f"{cell.key}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    return program


def run(cell: Cell, program: Program, tasks: list[Any], held_out: Any) -> dict[str, Any]:
    """Trains a cell; returns what is stored, by the key of the cell."""
    began, steps = time.perf_counter(), program.experiment.steps
    if steps % _CHUNK.value:
        sys.exit(f"sweep: --chunk={_CHUNK.value} must divide the {steps} steps")
    state = program.init(seed_keys(cell.seeds))
    losses, probes = [], []
    every = max(steps // _PROBES.value // _CHUNK.value, 1) * _CHUNK.value
    for start in range(0, steps, _CHUNK.value):
        if program.probe is not None and start % every == 0:
            report = program.probe(state, _batches(tasks, start, NOISE_BATCHES))
            probes.append({"step": start, **report})
        state, loss = program.chunk(state, _batches(tasks, start, _CHUNK.value))
        losses.append(jnp.mean(loss, 0))
    name = tasks[0].quality.name
    values = _qualities(tasks[0], program.evaluate(state, held_out))
    seconds = time.perf_counter() - began
    shared = {"seeds": cell.seeds, "steps": steps}
    found = {
        cell.key: {
            **shared,
            "seconds": round(seconds, 1),
            name: values,
            "loss_per_chunk": _rounded(jnp.stack(losses)),
            "probes": _rounded(probes),
            "config": dict(program.experiment.config["compress"]),
        }
    }
    for key, evaluate in program.pruned.items():
        found[key] = {**shared, name: _qualities(tasks[0], evaluate(state, held_out))}
    for key, entry in found.items():
        print(f"{key}: {name} {entry[name]['finalized']}, {seconds:.0f} s", flush=True)
    return found


def in_one_shot(params: Any, pattern: str) -> Any:
    """A trained tree with every N:M matrix of another pattern, "n:m", to be applied at once."""
    n, m = map(int, pattern.split(":"))

    def change(w):
        target = dataclasses.replace(w.config.pattern, n=n, m=m)
        return dataclasses.replace(w, config=NMConfig(target, "ste"))

    is_nm = lambda w: isinstance(w, NM)  # noqa: E731
    return jax.tree.map(lambda w: change(w) if is_nm(w) else w, params, is_leaf=is_nm)


def seed_keys(count: int) -> jax.Array:
    """The keys that train.py draws the parameters of each seed from."""
    return jnp.stack([stream(seed, "init") for seed in range(count)])


def _batches(tasks: list[Any], start: int, count: int) -> Any:
    """Arrays (count, seeds, ...) of the batches of some steps."""
    steps = range(start, start + count)
    return _stacked([_stacked([task.batch(step) for task in tasks]) for step in steps])


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *rows: np.stack(rows), *trees)


def _mean_over_matrices(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Reports of matrices, "<path>/<name>", averaged over the matrices."""
    found: dict[str, list[jax.Array]] = {}
    for path, value in metrics.items():
        prefix, _, name = path.rpartition("/")
        if prefix:
            found.setdefault(name, []).append(value)
    return {name: jnp.mean(jnp.stack(values), 0) for name, values in found.items()}


def _qualities(task: Any, sums: Any) -> dict[str, list[float]]:
    """The task's metric of every seed, by form of the weights."""
    found = {}
    for form, by_name in jax.device_get(sums).items():
        rows = [dict(zip(by_name, row, strict=True)) for row in zip(*by_name.values(), strict=True)]
        found[form] = _rounded([task.eval_metrics(row)[task.quality.name] for row in rows])
    return found


def _rounded(tree: Any) -> Any:
    """Host numbers to five significant digits."""
    number = np.vectorize(lambda x: float(f"{x:.5g}"))
    return jax.tree.map(lambda x: number(np.asarray(jax.device_get(x), float)).tolist(), tree)
