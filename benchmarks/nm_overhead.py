"""What N:M adds to a training step: SR-STE and mask decay against the dense step, in one process.

    python benchmarks/nm_overhead.py                      # one GPU
    python benchmarks/nm_overhead.py --depth=1 --launch=1 --dtype=float32 # 2 CPU cores

A batch is 16 x 256 = 4096 tokens, the model a decoder of width 512. Every round runs all programs
once, so that a machine that slows down slows all of them; the ratio is that of the same round.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import app, flags
from experiments import config_of
from records import store

from jaxlab.training.experiment import Experiment
from jaxlab.training.loop import stream

_DEPTH = flags.DEFINE_integer("depth", 6, "Layers.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each program.")
_LAUNCH = flags.DEFINE_integer("launch", 20, "Steps in one launch.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Of the activations.")
_ATTENTION = flags.DEFINE_enum("attention", "xla", ["xla", "cudnn"], "The decoder's attention.")
# The dearest ratio that is accepted, by pattern.
FLOORS = {"2:4": 1.05, "1:8": 1.05, "1:32": 1.10}
PROGRAMS = [("dense", "")] + [(r, p) for p in FLOORS for r in ("srste", "mdgf_exp")]


def compiled(recipe: str, pattern: str) -> tuple[Any, Any]:
    """A launch of several steps, and the state that it begins with."""
    n, m = (pattern or "2:4").split(":")
    chosen = config_of("nm_python_source", f"size=large,recipe={recipe},n={n},m={m}")
    config = chosen.to_dict() | {"matmul_precision": "default"}
    model = {**config["model"], "depth": _DEPTH.value, "attention": _ATTENTION.value}
    model["dtype"] = _DTYPE.value
    rules = config["compress"] if pattern else {}
    experiment = Experiment({**config, "model": model, "compress": rules, "steps": 1000})

    def init(key):
        state = experiment.init_state(experiment.task.init(key))
        for phase in experiment.phases:
            state = experiment.phase_fn(phase)(state, key)
        return state

    def launch(state, tokens):
        body = lambda state, row: experiment.train_step(state, {"tokens": row})  # noqa: E731
        return jax.lax.scan(body, state, tokens)[0]

    with jax.default_matmul_precision(config["matmul_precision"]):
        state = jax.jit(init)(stream(0, "init"))
        tokens = np.stack([experiment.task.batch(i)["tokens"] for i in range(_LAUNCH.value)])
        run = jax.jit(launch, donate_argnums=0).lower(state, tokens).compile()
    return lambda state: run(state, tokens), state


def main(argv: list[str]) -> None:
    """Measures and stores the ratios."""
    del argv
    with ThreadPoolExecutor(len(PROGRAMS)) as pool:
        made = list(pool.map(lambda p: compiled(*p), PROGRAMS))
    states = [state for _, state in made]
    seconds: list[list[float]] = [[] for _ in PROGRAMS]
    for number in range(-1, _ROUNDS.value):
        for i, (run, _) in enumerate(made):
            began = time.perf_counter()
            states[i] = jax.block_until_ready(run(states[i]))
            if number >= 0:  # the first round warms up
                seconds[i].append((time.perf_counter() - began) / _LAUNCH.value)
        print(f"round {number + 1} of {_ROUNDS.value}", flush=True)
    rows = []
    for (recipe, pattern), times in zip(PROGRAMS[1:], seconds[1:], strict=True):
        ratios = [t / dense for t, dense in zip(times, seconds[0], strict=True)]
        row = {"recipe": recipe, "pattern": pattern, "floor": FLOORS[pattern]}
        row |= {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        rows.append({**row, "milliseconds": 1e3 * statistics.median(times)})
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))
    dense = 1e3 * statistics.median(seconds[0])
    settings = {"depth": _DEPTH.value, "attention": _ATTENTION.value, "rounds": _ROUNDS.value}
    settings |= {"dtype": _DTYPE.value, "launch": _LAUNCH.value}
    store(
        "nm_overhead", {**settings, "dense_milliseconds": dense, "rows": rows}, flags.FLAGS.folder
    )


if __name__ == "__main__":
    app.run(main)
