"""One step of M-FAC against two passes over its window at the bandwidth of a copy.

    python benchmarks/mfac_step.py                          # one GPU of 80 GB
    python benchmarks/mfac_step.py --size=small --rounds=3  # CPU: that it runs, and no more

A step writes a gradient into the window, multiplies every row with it, solves a system of m, and
combines the rows. The sum between the two products forbids a single pass: two passes are the floor.
The copy is measured in the same run, over an array of a quarter of the window, reads and writes
counted. The parameters are those of a small BERT, 11.1 million in 60 arrays.
"""

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from records import store

from jaxlab.optim.mfac import precondition_row, window_init, window_push

_SIZE = flags.DEFINE_enum("size", "bert_mini", ["bert_mini", "small"], "Of the model.")
_WINDOWS = flags.DEFINE_list(
    "windows",
    ["512:bfloat16", "512:float32", "1024:bfloat16", "1024:float32"],
    "Gradients : dtype of the rows; by size, as peak memory is that of the process.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Measurements of each program.")
_DAMP = flags.DEFINE_float("damp", 1e-5, "Of the Fisher matrix.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
# Vocabulary, positions, width, layers.
SIZES = {"bert_mini": (30522, 512, 256, 4), "small": (256, 16, 32, 1)}


def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    """Shapes of an encoder's parameters by name."""
    vocabulary, positions, d, layers = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {"tokens": (vocabulary, d), "positions": (positions, d)}
    for layer in range(layers):
        shapes |= {f"{layer}/{name}": (d, d) for name in ("q", "k", "v", "out")}
        shapes |= {f"{layer}/up": (d, 4 * d), f"{layer}/down": (4 * d, d)}
        shapes |= {f"{layer}/{name}_bias": (d,) for name in ("q", "k", "v", "out", "down")}
        shapes |= {f"{layer}/up_bias": (4 * d,)}
        shapes |= {f"{layer}/norm{i}": (d,) for i in range(4)}
    return shapes


def step(win: Any, g: Any) -> tuple[Any, Any]:
    """What an update does with the window."""
    place = win.head
    win = window_push(win, g)
    return win, precondition_row(win, place, _DAMP.value)


def milliseconds(run: Any) -> list[float]:
    """Of every round; the first one warms up."""
    times = []
    for number in range(-1, _ROUNDS.value):
        began = time.perf_counter()
        jax.block_until_ready(run())
        if number >= 0:
            times.append(1e3 * (time.perf_counter() - began))
    return times


def bandwidth(nbytes: int) -> float:
    """Bytes in a millisecond that a copy of that many reads and writes."""
    x = jnp.ones(max(nbytes // 4, 1), jnp.float32)
    # An addition, because a plain copy may be left out.
    copy = jax.jit(lambda x: x + 1)
    times = milliseconds(lambda: copy(x))
    return 2 * x.nbytes / statistics.median(times)


def measured(m: int, dtype: str) -> dict[str, Any]:
    """Times and memory of one window."""
    shapes = shapes_of(_SIZE.value)
    d = sum(map(math.prod, shapes.values()))
    nbytes = m * d * jnp.dtype(dtype).itemsize
    copied = bandwidth(nbytes // 4)
    like = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    make = jax.jit(lambda: window_init(m, like, dtype))
    # Compiled before the window is there: XLA tunes its reductions on arrays of the leaves' size.
    program = jax.jit(step, donate_argnums=0).lower(jax.eval_shape(make), like).compile()
    memory = program.memory_analysis()
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    grads = {name: jax.random.normal(keys[name], shapes[name]) / d**0.5 for name in shapes}
    holder = [make()]

    def run():
        holder[0], update = program(holder[0], grads)
        return update

    times = milliseconds(run)
    floor = 2 * nbytes / copied
    stats = jax.devices()[0].memory_stats() or {}
    return {
        "m": m,
        "dtype": dtype,
        "parameters": d,
        "window_bytes": nbytes,
        "temporary_share": memory.temp_size_in_bytes / nbytes if memory else None,
        "peak_share": stats["peak_bytes_in_use"] / nbytes if stats else None,
        "copy_gigabytes_per_second": copied / 1e6,
        "floor_milliseconds": floor,
        "milliseconds": statistics.median(times),
        "spread": [min(times), max(times)],
        "ratio": statistics.median(times) / floor,
    }


def main(argv: list[str]) -> None:
    """Measures every window and stores the rows."""
    del argv
    rows = []
    for window in _WINDOWS.value:
        m, dtype = window.split(":")
        rows.append(measured(int(m), dtype))
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}
        print(", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)
    result = {"size": _SIZE.value, "damp": _DAMP.value, "rounds": _ROUNDS.value, "rows": rows}
    store("mfac_step", result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
