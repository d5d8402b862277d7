"""Times of products with weights that do not stay in a cache.

Every call has its own weights and its own input, the weights weigh more than 100 MB together, many
calls are one program, and several programs are under way before the clock is read. What the kernels
of a call take on the device, and what a call takes with all that is around it, are two numbers.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROTATED_BYTES = 110e6
LEAST_CALLS = 16
REPEATS = 5


class Times(NamedTuple):
    """Microseconds of one call: the best of medians, and the spread of all.

    Attributes:
      us: with starting it.
      low: the least of those.
      high: the greatest.
      device_us: of the kernels alone, as CUPTI has it; None where it cannot be had.
    """

    us: float
    low: float
    high: float
    device_us: float | None = None

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {n: round(v, 2) for n, v in self._asdict().items() if v is not None}


def copies_of(nbytes: int) -> int:
    """How many weights take turns: as many as calls, or XLA would merge calls that share them."""
    return max(LEAST_CALLS, int(-(-ROTATED_BYTES // nbytes)))


def summary(per_call: Sequence[Sequence[float]]) -> Times:
    """Of seconds, by repeat."""
    medians = [statistics.median(r) for r in per_call]
    every = [s for r in per_call for s in r]
    return Times(min(medians) * 1e6, min(every) * 1e6, max(every) * 1e6)


def time_calls(fn: Callable[..., jax.Array], xs: Sequence[Any], weights: Sequence[Any]) -> Times:
    """Times `fn(x, *weight)` over all weights.

    Args:
      fn: the product.
      xs: inputs, one for each call.
      weights: tuples of the other arguments, likewise.
    """
    # Traced and lowered once, however often it is called.
    inner = jax.jit(fn)

    @jax.jit
    def program(xs: Sequence[Any], weights: Sequence[Any]) -> list[jax.Array]:
        return [inner(x, *w) for x, w in zip(xs, weights, strict=True)]

    for _ in range(2):
        jax.block_until_ready(program(xs, weights))
    seconds = []
    for _ in range(REPEATS):
        once = []
        for _ in range(5):
            began = time.perf_counter()
            outs = [program(xs, weights) for _ in range(4)]
            jax.block_until_ready(outs)
            once.append((time.perf_counter() - began) / (4 * len(xs)))
        seconds.append(once)
    return summary(seconds)._replace(device_us=on_device(program, xs, weights))


def on_device(
    program: Callable[..., Any], xs: Sequence[Any], weights: Sequence[Any]
) -> float | None:
    """Microseconds of a call's kernels; None without a GPU."""
    if jax.devices()[0].platform == "cpu":
        return None
    profiler = importlib.import_module("jax.experimental.mosaic.gpu.profiler")
    measured = profiler.Cupti(finalize=False).measure(program, iterations=REPEATS)
    _, milliseconds = measured(xs, weights)
    return statistics.median(milliseconds) * 1e3 / len(xs)


def inputs(rows: int, k: int, calls: int) -> list[jax.Array]:
    """Normal bfloat16 inputs, no two alike."""
    keys = jax.random.split(jax.random.key(rows), calls)
    return [jax.random.normal(key, (rows, k), jnp.bfloat16) for key in keys]


def copy_bandwidth() -> float:
    """Bytes a second of a copy of 1 GB on the device, read and written."""
    x = jnp.ones((2**29,), jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(add(x)))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        y = x
        for _ in range(8):
            y = add(y)
        jax.block_until_ready(y)
        seconds.append((time.perf_counter() - began) / 8)
    return 2 * x.nbytes / statistics.median(seconds)


def worst(y: jax.Array, expected: jax.Array) -> float:
    """The largest difference, as a part of the largest number expected."""
    y64, e64 = np.asarray(y, np.float64), np.asarray(expected, np.float64)
    difference = np.max(np.abs(y64 - e64))
    return float(difference / np.max(np.abs(e64))) if np.isfinite(difference) else float("inf")
