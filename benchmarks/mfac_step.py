"""One step of M-FAC against two passes over its window at the bandwidth of a copy.

    python benchmarks/mfac_step.py                          # one GPU of 80 GB
    python benchmarks/mfac_step.py --formulations --windows=512:bfloat16,512:float32
    python benchmarks/mfac_step.py --size=small --rounds=3  # CPU: that it runs, and no more

A step writes a gradient into the window, multiplies every row with it, solves a system of m, and
combines the rows. The sum between the two products forbids a single pass: two passes are the floor.
The copy is measured in the same run, over an array of a quarter of the window, reads and writes
counted. The parameters are those of a small BERT, 11.1 million in 60 arrays.

`--formulations` times every form that jaxlab/optim/mfac/products.py has of both products, over all
parameters and over the largest alone, the kernels of jaxlab.kernels.gemv over all, the system of m,
and steps with the forms that are in use, with the fastest, and with the kernel. What is stored
already is not run again; the stored results also have forms that were slower and are no longer
there.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags
from records import load, store

from jaxlab.kernels.dispatch import EVERYWHERE
from jaxlab.optim.mfac import precondition_row, products, window_init, window_push
from jaxlab.optim.mfac.window import inverse_column, window_combination, window_products

_SIZE = flags.DEFINE_enum("size", "bert_mini", ["bert_mini", "small"], "Of the model.")
_WINDOWS = flags.DEFINE_list(
    "windows",
    ["512:bfloat16", "512:float32", "1024:bfloat16", "1024:float32"],
    "Gradients : dtype of the rows; by size, as peak memory is that of the process.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Measurements of each program.")
_FORMULATIONS = flags.DEFINE_bool("formulations", False, "Compare the forms of both products.")
_CALLS = flags.DEFINE_integer("calls", 4, "Of a program in each measurement, one behind another.")
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
    """Of a call in every round; the first round warms up.

    The calls of a round are waited for together, as those of a training loop: what the host does
    for a call of a hundred arrays goes on beside the one before.
    """
    times = []
    for number in range(-1, _ROUNDS.value):
        began, last = time.perf_counter(), None
        for _ in range(_CALLS.value):
            last = run()
        jax.block_until_ready(last)
        if number >= 0:
            times.append(1e3 * (time.perf_counter() - began) / _CALLS.value)
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


def formulations(m: int, dtype: str, found: dict[str, Any], keep: Callable[[], Any]) -> None:
    """Milliseconds of each form of the products in one window; `found` holds those known.

    Args:
      m: gradients in the window.
      dtype: of its rows.
      found: milliseconds by what was measured, or why there are none; what is missing is added.
      keep: called after each measurement.
    """
    like = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes_of(_SIZE.value).items()}
    largest = max(like, key=lambda name: math.prod(like[name].shape))
    make = jax.jit(lambda: window_init(m, like, dtype))
    win, weights = jax.eval_shape(make), jax.ShapeDtypeStruct((m,), jnp.float32)
    # A gradient as `window_push` has it, and rounded in the same program.
    through = lambda win, g: window_products(win, jax.tree.map(lambda x: x.astype(dtype), g))  # noqa: E731
    back = lambda win, a: window_combination(a, win.rows)  # noqa: E731
    one = lambda tree: {largest: tree[largest]}  # noqa: E731
    cases: dict[str, Any] = {
        "products gemv": (None, through, win, like),
        "combination gemv": (None, back, win, weights),
    }
    for name in products.PRODUCTS:
        forms = products.Forms(products=name)
        cases[f"products {name}"] = (forms, through, win, like)
        alone = lambda win, g: through(win._replace(rows=one(win.rows)), one(g))  # noqa: E731
        cases[f"products {name}, largest"] = (forms, alone, win, like)
    for name in products.COMBINATIONS:
        forms = products.Forms(combination=name)
        cases[f"combination {name}"] = (forms, back, win, weights)
        alone = lambda win, a: back(win._replace(rows=one(win.rows)), a)  # noqa: E731
        cases[f"combination {name}, largest"] = (forms, alone, win, weights)
    shift = m * jnp.float32(_DAMP.value)
    system = lambda win, a: a * inverse_column(win.gram, shift, win.head)  # noqa: E731
    cases["system"] = (products.Forms(), system, win, weights)
    cases = {name: case for name, case in cases.items() if isinstance(found.get(name, ""), str)}
    made = compiled(cases, dtype)
    full, grads = make(), {k: jnp.ones(v.shape) for k, v in like.items()}
    for name, program in made.items():
        second = grads if cases[name][3] is like else jnp.ones(m) / m
        if not isinstance(program, str):
            program = statistics.median(milliseconds(lambda p=program, x=second: p(full, x)))
        found[name] = program
        print(f"{m} of {dtype}, {name}: {program}", flush=True)
        keep()
    used = products.ON_GPU.get(dtype, products.Forms())
    best = products.Forms(
        _fastest(found, "products", products.PRODUCTS, used.products),
        _fastest(found, "combination", products.COMBINATIONS, used.combination),
    )
    steps: dict[str, Any] = {
        f"step {'/'.join(forms)}": (forms, step, win, like) for forms in (used, best)
    }
    steps["step gemv"] = (None, step, win, like)
    steps = {name: case for name, case in steps.items() if isinstance(found.get(name, ""), str)}
    for name, program in compiled(steps, dtype, donate_argnums=0).items():
        if not isinstance(program, str):
            holder = [full]

            def run(program=program, holder=holder):
                holder[0], update = program(holder[0], grads)
                return update

            program, full = statistics.median(milliseconds(run)), holder[0]
        found[name] = program
        print(f"{m} of {dtype}, {name}: {program}", flush=True)
        keep()


def compiled(cases: dict[str, Any], dtype: str, **how: Any) -> dict[str, Any]:
    """The program of each case, or why there is none: a compiler may refuse a form.

    The forms of a case are those of products by XLA; None takes the kernel wherever it fits.
    """

    def one(lowered: Any) -> Any:
        try:
            return lowered if isinstance(lowered, str) else lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return str(error).splitlines()[0][:200]

    lowered = {}
    for name, (forms, function, *shapes) in cases.items():
        used = {} if forms is None else {dtype: forms}
        # Not by a patch of the whole environment: it would undo what jax sets for its kernels.
        os.environ[EVERYWHERE] = "mosaic_gpu" if forms is None else "xla"
        with mock.patch.dict(products.ON_GPU, used):
            # A function of its own: what was traced for another form is not this one's.
            program = jax.jit(lambda *args, f=function: f(*args), **how)
            try:
                lowered[name] = program.lower(*shapes)
            except NotImplementedError as error:
                lowered[name] = str(error)
    del os.environ[EVERYWHERE]
    # XLA tries its kernels on arrays of the largest parameter's rows: more at once do not fit.
    with ThreadPoolExecutor(3) as pool:
        return dict(zip(lowered, pool.map(one, lowered.values()), strict=True))


def _fastest(found: dict[str, Any], kind: str, names: Iterable[str], otherwise: str) -> str:
    # What is stored may be of forms that are no more, and a form that failed has no time.
    times = {name: found[f"{kind} {name}"] for name in names}
    times = {name: time for name, time in times.items() if not isinstance(time, str)}
    return min(times, key=lambda name: times[name]) if times else otherwise


def compare() -> None:
    """Compares the forms in every window and stores what they took."""
    result = load("mfac_formulations", _FOLDER.value) or {"size": _SIZE.value, "windows": {}}
    for window in _WINDOWS.value:
        m, dtype = window.split(":")
        found = result["windows"].setdefault(window, {})
        nbytes = sum(map(math.prod, shapes_of(_SIZE.value).values())) * int(m)
        nbytes *= jnp.dtype(dtype).itemsize
        if "pass" not in found:
            # What reading the window once takes at the bandwidth of a copy.
            found["pass"] = nbytes / bandwidth(nbytes // 4)
        print(f"{m} of {dtype}, a pass at the bandwidth of a copy: {found['pass']}", flush=True)
        keep = lambda: store("mfac_formulations", result, _FOLDER.value)  # noqa: E731
        formulations(int(m), dtype, found, keep)


def main(argv: list[str]) -> None:
    """Measures every window and stores the rows."""
    del argv
    if _FORMULATIONS.value:
        compare()
        return
    rows = []
    for window in _WINDOWS.value:
        m, dtype = window.split(":")
        rows.append(measured(int(m), dtype))
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}
        print(", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)
    result = {"size": _SIZE.value, "damp": _DAMP.value, "rounds": _ROUNDS.value, "rows": rows}
    result["calls"] = _CALLS.value
    store("mfac_step", result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
