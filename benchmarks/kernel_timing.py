"""Times of products with weights that do not stay in a cache.

Every call has its own weights and its own input, the weights weigh more than 100 MB together, many
calls are one program, and several short programs are under way before the clock is read. What the
kernels of a call take on the device, and what a call takes with all that is around it, are two
numbers.
"""

import contextlib
import fcntl
import functools
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROTATED_BYTES = 110e6
LEAST_CALLS = 16
REPEATS = 5

# The arguments of calls that one program makes.
Calls = Sequence[tuple[Any, ...]]


class Times(NamedTuple):
    """Microseconds of one call: the best of medians, and the spread of all.

    Attributes:
      us: with starting it.
      low: the least of those.
      high: the greatest.
      runs: the medians, in the order of the repeats.
      device_us: of the kernels alone, as CUPTI has it, their median; None where it cannot be had.
      device_runs: those of the repeats.
    """

    us: float
    low: float
    high: float
    runs: tuple[float, ...]
    device_us: float | None = None
    device_runs: tuple[float, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        named = self._asdict().items()
        return {n: np.round(v, 2).tolist() for n, v in named if v is not None}


def copies_of(nbytes: int) -> int:
    """How many weights take turns: as many as calls, or XLA would merge calls that share them."""
    return max(LEAST_CALLS, int(-(-ROTATED_BYTES // nbytes)))


def summary(per_call: Sequence[Sequence[float]]) -> Times:
    """Of seconds, by repeat."""
    medians = [statistics.median(r) * 1e6 for r in per_call]
    every = [s * 1e6 for r in per_call for s in r]
    return Times(min(medians), min(every), max(every), tuple(medians))


def alone() -> contextlib.AbstractContextManager[None]:
    """Keeps other processes of these benchmarks off the GPU: some compile while one measures."""
    return locked(f"gpu-{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time, of those of this machine that ask for the same name."""
    path = Path(tempfile.gettempdir()) / f"jaxlab-benchmarks-{name}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lowered(fn: Callable[..., Any], calls: Calls) -> jax.stages.Lowered:
    """The program that makes all calls of a function, whose arguments take turns."""
    # Traced and lowered once, however often it is called.
    inner = jax.jit(fn)
    return jax.jit(lambda calls: [inner(*call) for call in calls]).lower(calls)


def time_calls(program: Callable[..., Any], calls: Calls) -> Times:
    """Times a compiled program of all calls."""
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(program(calls))
    # A long one hides its start by itself.
    queued = 4 if time.perf_counter() - began < 5e-3 else 1
    seconds = []
    for _ in range(REPEATS):
        once = []
        for _ in range(5):
            began = time.perf_counter()
            outs = [program(calls) for _ in range(queued)]
            jax.block_until_ready(outs)
            once.append((time.perf_counter() - began) / (queued * len(calls)))
        seconds.append(once)
    runs = on_device(program, calls)
    if not runs:
        return summary(seconds)
    return summary(seconds)._replace(device_us=statistics.median(runs), device_runs=runs)


def on_device(program: Callable[..., Any], calls: Calls) -> tuple[float, ...]:
    """Microseconds of a call's kernels, by repeat; none without a GPU, or where CUPTI loses some.

    Kernels that overlap count in full, each.
    """
    if jax.devices()[0].platform == "cpu":
        return ()
    profiler = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
    measured = profiler.Cupti(finalize=False).measure(program, iterations=REPEATS)
    try:
        _, milliseconds = measured(calls)
    except RuntimeError as error:
        print(f"    no times of kernels: {error}")
        return ()
    return tuple(ms * 1e3 / len(calls) for ms in milliseconds or ())


def inputs(rows: int, k: int, calls: int) -> list[jax.Array]:
    """Normal bfloat16 inputs, no two alike."""
    keys = jax.random.split(jax.random.key(rows), calls)
    return [jax.random.normal(key, (rows, k), jnp.bfloat16) for key in keys]


def copy_bandwidth() -> float:
    """Bytes a second of the fastest copy of 2 GB on the device, read and written."""
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        x = jnp.ones((2**31 // jnp.dtype(dtype).itemsize,), dtype)
        for step in (jax.jit(lambda x: x + 1), jax.jit(jnp.negative), jnp.copy):
            found.append(2 * x.nbytes / _seconds(step, x))
    return max(found)


def peaks(n: int = 8192) -> dict[str, float]:
    """Operations a second of a dense product of n x n numbers, by dtype.

    That of int8 is twice that of bfloat16, as tensor cores have it: how XLA reaches it differs
    between versions.
    """
    found = {}
    for name in ("bfloat16", "float32"):
        x = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(name)) / n**0.5
        product = jax.jit(functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST))
        found[name] = 2 * n**3 / _seconds(functools.partial(product, x), x)
    bf16 = found["bfloat16"]
    return {"bf16": bf16, "int8": 2 * bf16, "float32": found["float32"]}


def _seconds(step: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    jax.block_until_ready(step(step(x)))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        y = x
        for _ in range(8):
            y = step(y)
        jax.block_until_ready(y)
        seconds.append((time.perf_counter() - began) / 8)
    return statistics.median(seconds)


@jax.jit
def _worst(y: jax.Array, expected: jax.Array) -> jax.Array:
    wide, right = y.astype(jnp.float32), expected.astype(jnp.float32)
    return jnp.max(jnp.abs(wide - right)) / jnp.maximum(jnp.max(jnp.abs(right)), 1e-30)


def worst(y: Any, expected: Any) -> float:
    """The largest difference, as a part of the largest number expected; infinite for NaN.

    Of several arrays the worst: computed where they are, as some have millions of numbers.
    """
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True)
    found = [float(_worst(a, b)) for a, b in pairs]
    return max(x if np.isfinite(x) else float("inf") for x in found)
