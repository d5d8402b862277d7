"""N:M recipes on a byte-level decoder, every pattern and seed: the paper's claim, tested.

    python benchmarks/nm_language_model.py --size=large --minutes=9     # one H100; again to go on
    python benchmarks/nm_language_model.py --size=small --patterns=1:32 --recipes=srste,mdgf_exp \
        --seeds=5                                                       # 2 CPU cores

A cell is a pattern and a recipe; its seeds train at once under vmap, and several steps in one
launch. Every finished cell is stored, so the command can be stopped and started again; it does what
is missing. benchmarks/publish.py and benchmarks/nm_plots.py take the figures from what is stored.
"""

import dataclasses
import importlib.util
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from records import load, store

from jaxlab.core.lifecycle import at, finalize
from jaxlab.methods.nm import NM, NMConfig
from jaxlab.training.diagnostics import gradient_noise
from jaxlab.training.experiment import Experiment, build_task
from jaxlab.training.loop import make_train_step, stream
from jaxlab.training.state import TrainState

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "Which variant of the config.")
_PATTERNS = flags.DEFINE_list(
    "patterns", ["1:32x3", "1:16x3", "2:4x2", "1:8x2"], "In this order, with the number of seeds."
)
_RECIPES = flags.DEFINE_list(
    "recipes",
    [
        "srste", "mdgf_exp", "mdgf_exp@5", "mdgf_exp@20", "ste", "mdgf_linear", "asp",
        "sdgf_stepwise", "sdgf_geometric",
    ],
    "Recipes, with beta_total behind the @; one-shot pruning comes from the dense run.",
)  # fmt: skip
_STEPS = flags.DEFINE_integer("steps", 0, "Steps; 0 for the config's.")
_CHUNK = flags.DEFINE_integer("chunk", 50, "Steps in one launch.")
_PROBES = flags.DEFINE_integer("probes", 20, "Diagnostics are taken so many times in a run.")
_DIAGNOSED = flags.DEFINE_list("diagnosed", ["1:32"], "Patterns with diagnostics.")
_MINUTES = flags.DEFINE_float("minutes", 1e9, "No cell is begun that would end after so many.")
_AHEAD = flags.DEFINE_integer("ahead", 3, "Cells that are compiled ahead, in threads.")
_ISO = flags.DEFINE_bool("iso", False, "Give every cell the FLOPs of the dense run.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
CONFIG = Path(__file__).parents[1] / "configs" / "nm_python_source.py"
NOISE_BATCHES = 8
_REFERENCE = ("dense",)


class Cell(NamedTuple):
    """A pattern and a recipe."""

    pattern: str
    recipe: str
    seeds: int

    @property
    def key(self) -> str:
        """As the results call it."""
        return f"{self.pattern} {self.recipe}" + " iso" * _ISO.value

    @property
    def argument(self) -> str:
        """As the config file takes it."""
        n, m = self.pattern.split(":")
        recipe, _, beta_total = self.recipe.partition("@")
        parts = [f"size={_SIZE.value}", f"recipe={recipe}", f"n={n}", f"m={m}"]
        return ",".join(parts + ([f"beta_total={beta_total}"] if beta_total else []))


class Program(NamedTuple):
    """A cell, ready to run: what was built and compiled for it."""

    experiment: Experiment
    init: Any
    chunk: Any
    probe: Any
    evaluate: Any
    pruned: dict[str, Any]


def experiment_of(cell: Cell) -> Experiment:
    """The cell's experiment; of its seeds the first."""
    spec = importlib.util.spec_from_file_location("config", CONFIG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(cell.argument)
    config.steps = _STEPS.value or config.steps
    # Of float32 products what the device finds fast: the models' own dtype decides the rest.
    config.matmul_precision = "default"
    return Experiment(config.to_dict())


def build(cell: Cell, task: Any, held_out: Any, patterns: list[str]) -> Program:
    """Compiles a cell's functions, all of them over a leading axis of seeds."""
    experiment = experiment_of(cell)
    steps = experiment.steps
    over_seeds = TrainState(step=None, trainable=0, frozen=0, opt=0, ema=None)  # pyright: ignore
    settings: dict[str, Any] = {"steps": steps, "rate": None}
    step = make_train_step(task.loss, experiment.tx, **settings)
    seeds_step = jax.vmap(step, in_axes=(over_seeds, 0), out_axes=(over_seeds, 0))

    def init(keys):
        def one(key):
            state = experiment.init_state(task.init(key))
            for phase in experiment.phases:
                state = experiment.phase_fn(phase)(state, key)
            return state

        return jax.vmap(one, out_axes=over_seeds)(keys)

    def chunk(state, tokens):
        def body(state, tokens):
            state, metrics = seeds_step(state, {"tokens": tokens})
            return state, metrics["loss"]

        return jax.lax.scan(body, state, tokens)

    def probe(state, tokens):
        """Diagnostics of one step that is not kept, and of the gradient's noise around it."""
        watched = make_train_step(task.loss, experiment.tx, diagnostics=True, **settings)

        def one(state, tokens):
            batches = [{"tokens": row} for row in tokens]
            _, metrics = watched(state, batches[0])
            noise = gradient_noise(task.loss, state, batches, jax.random.key(0), steps=steps)
            return mean_over_layers(metrics | noise)

        return jax.vmap(one, in_axes=(over_seeds, 1))(state, tokens)

    def evaluate(state, tokens, weight, pattern=None):
        """Sums of loss and weight, of the acting and of the finalized weights."""

        def one(state):
            now = at(state.eval_params, jnp.minimum(state.step / steps, 1.0))
            if pattern is None:
                forms = {"trained": now, "finalized": finalize(now)}
            else:
                forms = {"finalized": finalize(in_one_shot(state.eval_params, pattern))}

            def body(carry, batch):
                return carry, {f: task.eval_sums(p, batch) for f, p in forms.items()}

            _, sums = jax.lax.scan(body, None, {"tokens": tokens, "weight": weight})
            return jax.tree.map(lambda x: jnp.sum(x, 0), sums)

        return jax.vmap(one, in_axes=(over_seeds,))(state)

    began = time.perf_counter()
    with jax.default_matmul_precision(experiment.config["matmul_precision"]):
        keys = seed_keys(cell.seeds)
        state = jax.eval_shape(init, keys)
        batch = (cell.seeds, *task.batch(0)["tokens"].shape)
        tokens = jax.ShapeDtypeStruct((_CHUNK.value, *batch), jnp.int32)
        few = jax.ShapeDtypeStruct((NOISE_BATCHES, *batch), jnp.int32)
        compiled_probe = None
        if cell.pattern in _DIAGNOSED.value and experiment.phases:
            compiled_probe = jax.jit(probe).lower(state, few).compile()
        program = Program(
            experiment,
            jax.jit(init).lower(keys).compile(),
            jax.jit(chunk, donate_argnums=0).lower(state, tokens).compile(),
            compiled_probe,
            jax.jit(evaluate).lower(state, *held_out).compile(),
            {
                p: jax.jit(partial(evaluate, pattern=p)).lower(state, *held_out).compile()
                for p in (patterns if cell.recipe in _REFERENCE else ())
            },
        )
    print(f"{cell.key}: compiled in {time.perf_counter() - began:.0f} s", flush=True)
    return program


def in_one_shot(params: Any, pattern: str) -> Any:
    """A trained tree with every N:M matrix of another pattern, to be applied at once."""
    n, m = map(int, pattern.split(":"))

    def change(w):
        target = dataclasses.replace(w.config.pattern, n=n, m=m)
        return dataclasses.replace(w, config=NMConfig(target, "ste"))

    is_nm = lambda w: isinstance(w, NM)  # noqa: E731
    return jax.tree.map(lambda w: change(w) if is_nm(w) else w, params, is_leaf=is_nm)


def mean_over_layers(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The matrices' reports, "<path>/<name>", averaged over the matrices."""
    found: dict[str, list[jax.Array]] = {}
    for path, value in metrics.items():
        prefix, _, name = path.rpartition("/")
        if prefix:
            found.setdefault(name, []).append(value)
    return {name: jnp.mean(jnp.stack(values), 0) for name, values in found.items()}


def seed_keys(count: int) -> jax.Array:
    """The keys that train.py draws the parameters of each seed from."""
    return jnp.stack([stream(seed, "init") for seed in range(count)])


def run(cell: Cell, program: Program, tasks: list[Any], held_out: Any) -> dict[str, Any]:
    """Trains a cell; returns what is stored, by the key of the cell."""
    steps = program.experiment.steps

    def tokens(start: int, count: int) -> np.ndarray:
        rows = [
            [task.batch(start + i)["tokens"] for task in tasks[: cell.seeds]] for i in range(count)
        ]
        return np.asarray(rows)

    began = time.perf_counter()
    state = program.init(seed_keys(cell.seeds))
    losses, probes = [], []
    every = max(steps // _PROBES.value // _CHUNK.value, 1) * _CHUNK.value
    for start in range(0, steps, _CHUNK.value):
        if program.probe is not None and start % every == 0:
            probes.append({"step": start, **program.probe(state, tokens(start, NOISE_BATCHES))})
        state, loss = program.chunk(state, tokens(start, _CHUNK.value))
        losses.append(jnp.mean(loss, 0))
    bits = bits_per_byte(program.evaluate(state, *held_out))
    seconds = time.perf_counter() - began
    found = {
        cell.key: {
            "seeds": cell.seeds,
            "steps": steps,
            "seconds": round(seconds, 1),
            "bits_per_byte": bits,
            "loss_per_chunk": rounded(jnp.stack(losses)),
            "probes": rounded(probes),
            "config": program.experiment.config["compress"]["mlp"],
        }
    }
    for pattern, evaluate in program.pruned.items():
        pruned = bits_per_byte(evaluate(state, *held_out))
        found[f"{pattern} one_shot"] = {
            "seeds": cell.seeds,
            "steps": steps,
            "bits_per_byte": pruned,
        }
    for key, values in found.items():
        print(f"{key}: {values['bits_per_byte']['finalized']} bits per byte, {seconds:.0f} s")
    sys.stdout.flush()
    return found


def bits_per_byte(sums: Any) -> dict[str, list[float]]:
    """By form of the weights, of every seed."""
    sums = jax.device_get(sums)
    return {f: rounded(s["loss"] / s["weight"] / np.log(2)) for f, s in sums.items()}


def rounded(tree: Any) -> Any:
    """Host numbers to five significant digits."""
    number = np.vectorize(lambda x: float(f"{x:.5g}"))
    return jax.tree.map(lambda x: number(np.asarray(jax.device_get(x), float)).tolist(), tree)


def main(argv: list[str]) -> None:
    """Runs the cells that are missing, as long as there is time."""
    del argv
    began, name = time.perf_counter(), f"nm_language_model-{_SIZE.value}"
    result = load(name, _FOLDER.value) or {"cells": {}}
    patterns = [p.split("x") for p in _PATTERNS.value]
    seeds = max(int(count) for _, count in patterns)
    cells = [Cell(patterns[0][0], r, seeds) for r in _REFERENCE]
    cells += [Cell(p, r, int(count)) for p, count in patterns for r in _RECIPES.value]
    todo = [cell for cell in cells if cell.key not in result["cells"]]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are stored", flush=True)
    if not todo:
        return
    config = experiment_of(todo[0]).config
    tasks = [build_task({**config, "seed": seed}) for seed in range(seeds)]
    result["data"] = tasks[0].info
    held_out = list(tasks[0].eval_batches())
    held_out = [jnp.asarray(np.stack([b[k] for b in held_out])) for k in ("tokens", "weight")]
    pruned = [p for p, _ in patterns]
    longest = 0.0
    with ThreadPoolExecutor(_AHEAD.value) as pool:
        # Compilation runs in threads, a few cells ahead of the device.
        waiting: list[Future[Program]] = []
        for i, cell in enumerate(todo):
            ahead = todo[len(waiting) : i + _AHEAD.value]
            waiting += [pool.submit(build, c, tasks[0], held_out, pruned) for c in ahead]
            program = waiting[i].result()
            if time.perf_counter() - began + longest > 60 * _MINUTES.value:
                print("no time for another cell; the same command goes on from here", flush=True)
                break
            found = run(cell, program, tasks, held_out)
            result["cells"] |= found
            longest = max(longest, found[cell.key]["seconds"])
            store(name, result, _FOLDER.value)
        for future in waiting:
            future.cancel()


if __name__ == "__main__":
    app.run(main)
