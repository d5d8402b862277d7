"""Times of products with weights that do not stay in a cache.

Copies of the weights of more than 100 MB take turns, every call has its own input, many calls are
one program, and several programs are under way before the clock is read.
"""

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
    """Microseconds of one call: the best of medians, and the spread of all."""

    us: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 2) for name, value in self._asdict().items()}


def copies_of(nbytes: int) -> int:
    """How many weights take turns."""
    return max(4, int(-(-ROTATED_BYTES // nbytes)))


def summary(per_call: Sequence[Sequence[float]]) -> Times:
    """Of seconds, by repeat."""
    medians = [statistics.median(r) for r in per_call]
    every = [s for r in per_call for s in r]
    return Times(min(medians) * 1e6, min(every) * 1e6, max(every) * 1e6)


def time_calls(fn: Callable[..., jax.Array], xs: Sequence[Any], weights: Sequence[Any]) -> Times:
    """Times `fn(x, *weight)` over all weights in turn.

    Args:
      fn: the product.
      xs: inputs, one for each call.
      weights: tuples of the other arguments.
    """
    # Traced and lowered once, however often it is called.
    inner = jax.jit(fn)

    @jax.jit
    def program(xs: Sequence[Any], weights: Sequence[Any]) -> list[jax.Array]:
        return [inner(x, *weights[i % len(weights)]) for i, x in enumerate(xs)]

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
    return summary(seconds)


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
