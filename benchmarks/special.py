"""log Bessel functions: accuracy and time beside the published scheme, SciPy and logbesselk.

    python benchmarks/special.py                 # a GPU: 1e6, 1e7 and 1e8 elements
    python benchmarks/special.py --small         # a CPU: 1e5
    python benchmarks/special.py --minutes=3     # begin no cell after them; the same again goes on
    python benchmarks/special.py --match="copy|order 1023"  # cells whose keys have it
    python benchmarks/special.py --threads=8     # compiles all cells before anything is measured

The floor is reading both arguments and writing the value at the bandwidth of a copy of as many
float64 numbers (`--match=copy`), or where that is not stored of 2^27 (on a CPU 2^22). SciPy runs on
one core of the host. SciPy and logbesselk (`pip install logbesselk`) are compared where they are
installed; on a CPU logbesselk takes a millisecond an element, and gets few. The orders of "array of
large orders" are an array, 30 to 300; of "large orders by least" too, and ours is told so by
`least=30`.
"""

import functools
import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from publish_special import (
    DERIVATIVES,
    NAME,
    VALUES,
    copy_key,
    small_orders_key,
    tables,
)
from records import load, store

from jaxlab.special import bessel
from jaxlab.special.bessel.reference import extended

_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "No cell is compiled after these.")
_MATCH = flags.DEFINE_string("match", "", "Only cells whose key has this regular expression.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of everything.")
_THREADS = flags.DEFINE_integer("threads", 0, "That compile all first; 0: each when wanted.")
_SMALL = flags.DEFINE_bool("small", False, "Sizes for a CPU.")
# Of orders and arguments, values.
Program = Callable[[Any, Any], Any]
# What has been compiled, and takes the time.
Measurement = Callable[[], dict[str, Any]]
_POINTS = 20_000
# Of a peer that is slow on a CPU.
_FEW = 2_000
_LEAST = 30.0
_MOST_OF_PEERS = 10_000_000
_ROUND_SECONDS = 0.02
_MOST_CALLS = 64


class Kind(NamedTuple):
    """Of orders and arguments.

    Attributes:
      draw: makes n of both.
      order: of all, where ours is told so.
      least: of the orders, where ours is told so.
      published: whether the published scheme is timed.
    """

    draw: Callable[[np.random.Generator, int], Any]
    order: float | None = None
    least: float | None = None
    published: bool = True


def _powers(low: float, high: float, rng: np.random.Generator, n: int) -> Any:
    return 10 ** rng.uniform(low, high, (2, n))


def _one_order(order: float, rng: np.random.Generator, n: int) -> Any:
    return np.full(n, order), 10 ** rng.uniform(0, 6, n)


def _large_orders(rng: np.random.Generator, n: int) -> Any:
    return rng.uniform(_LEAST, 300, n), rng.uniform(100, 600, n)


KINDS = {
    "mixed": Kind(functools.partial(_powers, -2, 4)),
    "order 1023": Kind(functools.partial(_one_order, 1023.0), order=1023.0),
    "small": Kind(functools.partial(_powers, -3, 1)),
    "array of large orders": Kind(_large_orders, published=False),
    "large orders by least": Kind(_large_orders, least=_LEAST, published=False),
}


@functools.lru_cache(2)
def arguments(kind: str, n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Orders and arguments."""
    v, x = KINDS[kind].draw(np.random.default_rng(5), n)
    return v.astype(dtype), x.astype(dtype)


def seconds(run: Callable[[], Any]) -> dict[str, Any]:
    """The median of one call's time over all rounds, and the least and the greatest.

    So many calls are under way before the clock is read that a round takes some 20 ms: what it
    costs to start one and to wait for it is not what is measured.
    """
    jax.block_until_ready(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - began
    calls = max(1, min(_MOST_CALLS, int(_ROUND_SECONDS / once)))
    times = [] if once < 1 else [once]
    for _ in range(_ROUNDS.value if once < 1 else 1):
        began = time.perf_counter()
        jax.block_until_ready([run() for _ in range(calls)])
        times.append((time.perf_counter() - began) / calls)
    return {
        "seconds": statistics.median(times),
        "spread": [min(times), max(times)],
        "calls": calls,
    }


def compiled(name: str, dtype: str, n: int, method: str, kind: str = "mixed") -> Program:
    """A function of n orders and arguments, as a program."""
    if method == "scipy":
        return functools.partial(_scipy, name)
    shape = jax.ShapeDtypeStruct((n,), dtype)
    if method == "logbesselk":
        from logbesselk.jax import log_bessel_k  # pyright: ignore

        return jax.jit(jax.vmap(log_bessel_k)).lower(shape, shape).compile()
    settings: dict[str, Any] = {"method": method} if name in VALUES else {}
    order, least = KINDS[kind].order, KINDS[kind].least
    if least is not None:
        settings["least"] = least
    fn = functools.partial(getattr(bessel, name), **settings)
    if order is None:
        return jax.jit(fn).lower(shape, shape).compile()
    program = jax.jit(lambda x: fn(order, x)).lower(shape).compile()
    return lambda v, x: program(x)


def _scipy(name: str, v: Any, x: Any) -> np.ndarray:
    from scipy import special

    scaled, sign = (special.ive, 1) if name == "log_iv" else (special.kve, -1)
    with np.errstate(all="ignore"):
        return np.log(scaled(v, x)) + sign * x


def timed(name: str, kind: str, dtype: str, n: int, method: str) -> Measurement:
    """The time of one implementation."""
    program = compiled(name, dtype, n, method, kind)

    def measure() -> dict[str, Any]:
        v, x = arguments(kind, n, dtype)
        if method != "scipy":
            v, x = jnp.asarray(v), jnp.asarray(x)
        return seconds(lambda: program(v, x))

    return measure


@functools.lru_cache(2)
def exact(points: int, dtype: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Mixed orders and arguments, with all values and derivatives in extended precision."""
    rng = np.random.default_rng(6)
    v, x = ((10 ** rng.uniform(-6, 6, points)).astype(dtype) for _ in range(2))
    return v, x, extended(v, x)


def accuracy(name: str, dtype: str, method: str) -> Measurement:
    """Errors over mixed arguments, relative to how far the last digits of those move the value."""
    points = _FEW if method == "logbesselk" and _SMALL.value else _POINTS
    program = compiled(name, dtype, points, method)

    def measure() -> dict[str, Any]:
        v, x, truth = exact(points, dtype)
        kind, value = name[:6], np.asarray(program(v, x))
        scale = np.maximum(1, np.abs(truth[name]))
        if name in VALUES:
            scale = scale + np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
        with np.errstate(all="ignore"):
            error = (np.abs(value - truth[name]) / scale).astype(float)
        error[~np.isfinite(value)] = np.nan
        return {**_worst(error, v, x), "not_finite": int(np.sum(~np.isfinite(value)))}

    return measure


def near_small_orders(method: str) -> Measurement:
    """Errors of log K in float64 where the published scheme has most, over max(1, |value|)."""
    v, x = np.meshgrid(np.r_[0.0, np.geomspace(1e-6, 1, 60)], np.geomspace(0.1, 2, 300))
    v, x = v.ravel(), x.ravel()
    program = compiled("log_kv", "float64", v.size, method)

    def measure() -> dict[str, Any]:
        truth = extended(v, x)["log_kv"]
        difference = np.abs(np.asarray(program(v, x)) - truth)
        error = (difference / np.maximum(1, np.abs(truth))).astype(float)
        return _worst(np.nan_to_num(error, nan=np.inf), v, x)

    return measure


def _worst(error: np.ndarray, v: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    worst = int(np.nanargmax(error))
    return {"error": error[worst], "at": [float(v[worst]), float(x[worst])], "points": v.size}


def copied(n: int) -> Measurement:
    """The time of reading n numbers and writing as many."""
    shape = jax.ShapeDtypeStruct((n,), jnp.float64)
    program = jax.jit(lambda x: x + 1).lower(shape).compile()

    def measure() -> dict[str, Any]:
        x = jnp.ones(n, jnp.float64)
        return seconds(lambda: program(x))

    return measure


def cells() -> dict[str, Callable[[], Measurement]]:
    """By key what compiles each, in the order in which they are run."""
    sizes = (100_000,) if _SMALL.value else (1_000_000, 10_000_000, 100_000_000)
    made: dict[str, Callable[[], Measurement]] = {}
    for dtype in ("float64", "float32"):
        for method in ("auto", "paper"):
            for name in (*VALUES, *(DERIVATIVES if method == "auto" else ())):
                made[f"accuracy {name} {dtype} {method}"] = lambda a=(name, dtype, method): (
                    accuracy(*a)
                )
    peers = [p for p in ("scipy", "logbesselk") if importlib.util.find_spec(p)]
    for dtype in ("float64", "float32"):
        for peer in peers:
            for name in VALUES if peer == "scipy" else VALUES[1:]:
                made[f"accuracy {name} {dtype} {peer}"] = lambda a=(name, dtype, peer): accuracy(*a)
    for method in ("paper", "auto"):
        made[small_orders_key(method)] = lambda method=method: near_small_orders(method)
    for n in sizes:
        made[copy_key(n)] = lambda n=n: copied(n)
        for dtype in ("float64", "float32"):
            for kind in KINDS:
                largest = n > _MOST_OF_PEERS
                wanted = [(name, "auto") for name in (*VALUES, *DERIVATIVES)]
                if not largest and KINDS[kind].published:
                    wanted += [(name, "paper") for name in VALUES]
                if not largest and "scipy" in peers:
                    wanted += [(name, "scipy") for name in VALUES]
                found = [(name, n, peer) for name, peer in wanted]
                if not largest and "logbesselk" in peers:
                    few = _FEW if _SMALL.value else n
                    found += [("log_kv", few, peer) for peer in ("auto", "logbesselk")]
                for name, count, peer in found:
                    made[f"time {name} {kind} {dtype} {count} {peer}"] = (
                        lambda a=(name, kind, dtype, count, peer): timed(*a)
                    )
    return made


def _compiled_by(
    threads: int, cells: dict[str, Callable[[], Measurement]], is_time_up: Callable[[], bool]
) -> Iterator[tuple[str, Measurement]]:
    """Cells and their measurements; threads are done before, as they would disturb those."""

    def make(key: str) -> Measurement | None:
        if is_time_up():
            return None
        with jax.enable_x64(True):  # of this thread
            return cells[key]()

    if threads:
        with ThreadPoolExecutor(threads) as pool:
            made = iter(list(pool.map(make, cells)))
    else:
        made = map(make, cells)
    for key, measure in zip(cells, made, strict=True):
        if measure is None:
            return
        yield key, measure


def main(argv: list[str]) -> None:
    """Runs what is missing, and stores after every cell."""
    del argv
    began = time.perf_counter()
    name = f"{NAME}-small" if _SMALL.value else NAME
    with jax.enable_x64(True):
        result = load(name, _FOLDER.value) or {"cells": {}}
        if "bandwidth" not in result:
            n = 2**22 if _SMALL.value else 2**27
            result["bandwidth"] = 2 * 8 * n / copied(n)()["seconds"]
        wanted = {k: make for k, make in cells().items() if re.search(_MATCH.value, k)}
        if not wanted:
            raise app.UsageError(f"--match={_MATCH.value} is in no key of: {', '.join(cells())}")
        missing = {k: make for k, make in wanted.items() if k not in result["cells"]}
        minutes = lambda: (time.perf_counter() - began) / 60  # noqa: E731
        ready = _compiled_by(_THREADS.value, missing, lambda: minutes() > _MINUTES.value)
        number = 0
        for number, (key, measure) in enumerate(ready, 1):
            result["cells"][key] = measure()
            store(name, result, _FOLDER.value)
            print(f"[{number}/{len(missing)}, {minutes():.1f} min] {key}", flush=True)
        if number < len(missing):
            print(f"stopped; {len(missing) - number} cells are missing")
        print("\n\n".join(tables(result)))


if __name__ == "__main__":
    app.run(main)
