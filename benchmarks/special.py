"""log Bessel functions: accuracy and time beside the published scheme, SciPy and logbesselk.

    python benchmarks/special.py                 # a GPU: 1e6, 1e7 and 1e8 elements
    python benchmarks/special.py --small         # a CPU: 1e5
    python benchmarks/special.py --minutes=3     # begin no cell after them; the same again goes on
    python benchmarks/special.py --only="copy,time log_iv order 1023"  # cells whose keys begin so

The floor is reading both arguments and writing the value at the bandwidth of a copy of as many
float64 numbers (`--only=copy`), or where that is not stored of 2^27 (on a CPU 2^22). SciPy runs on
one core of the host. SciPy and logbesselk (`pip install logbesselk`) are compared where they are
installed; on a CPU logbesselk takes a millisecond an element, and gets few. The orders of "array of
large orders" are an array, 30 to 300; of "large orders by least" too, and ours is told so by
`least=30`.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from publish_special import (
    ARGUMENTS,
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
_MINUTES = flags.DEFINE_float("minutes", 30.0, "No cell is begun after these.")
_ONLY = flags.DEFINE_list("only", [""], "Cells whose keys begin with one of these.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of everything.")
_SMALL = flags.DEFINE_bool("small", False, "Sizes for a CPU.")
_POINTS = 20_000
# Of a peer that is slow on a CPU.
_FEW = 2_000
_LEAST = 30.0
_MOST_OF_PEERS = 10_000_000
_ROUND_SECONDS = 0.02
_MOST_CALLS = 64


@functools.lru_cache(2)
def arguments(kind: str, n: int, dtype: str) -> tuple[Any, np.ndarray]:
    """Orders, or the one order, and arguments."""
    rng = np.random.default_rng(5)
    if kind == ARGUMENTS[1]:
        return 1023.0, (10 ** rng.uniform(0, 6, n)).astype(dtype)
    if kind in ARGUMENTS[3:]:
        return rng.uniform(_LEAST, 300, n).astype(dtype), rng.uniform(100, 600, n).astype(dtype)
    low, high = (-3, 1) if kind == ARGUMENTS[2] else (-2, 4)
    v, x = (10 ** rng.uniform(low, high, (2, n))).astype(dtype)
    return v, x


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
    times = []
    for _ in range(_ROUNDS.value if once < 1 else 2):
        began = time.perf_counter()
        jax.block_until_ready([run() for _ in range(calls)])
        times.append((time.perf_counter() - began) / calls)
    return {
        "seconds": statistics.median(times),
        "spread": [min(times), max(times)],
        "calls": calls,
    }


def compiled(name: str, kind: str, v: Any, x: np.ndarray, method: str) -> Callable[[], Any]:
    """A call of a function, on the device."""
    fn = getattr(bessel, name)
    settings: dict[str, Any] = {"method": method} if name in VALUES else {}
    if kind == ARGUMENTS[4]:
        settings["least"] = _LEAST
    placed = jnp.asarray(x)
    if kind == ARGUMENTS[1]:
        one = jax.jit(lambda x: fn(v, x, **settings))
        return lambda: one(placed)
    both, orders = jax.jit(lambda v, x: fn(v, x, **settings)), jnp.asarray(v)
    return lambda: both(orders, placed)


def timed(name: str, kind: str, dtype: str, n: int, peer: str) -> dict[str, Any]:
    """The time of one implementation."""
    v, x = arguments(kind, n, dtype)
    if peer in ("auto", "paper"):
        return seconds(compiled(name, kind, v, x, peer))
    return seconds(_PEERS[peer](name, v, x))


def _scipy(name: str, v: Any, x: np.ndarray) -> Callable[[], Any]:
    from scipy import special

    scaled, sign = (special.ive, 1) if name == "log_iv" else (special.kve, -1)

    def run() -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.log(scaled(v, x)) + sign * x

    return run


def _logbesselk(name: str, v: Any, x: np.ndarray) -> Callable[[], Any]:
    from logbesselk.jax import log_bessel_k  # pyright: ignore

    fn = jax.jit(jax.vmap(log_bessel_k))
    orders, placed = jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape), jnp.asarray(x)
    return lambda: fn(orders, placed)


_PEERS = {"scipy": _scipy, "logbesselk": _logbesselk}


def accuracy(name: str, dtype: str, method: str) -> dict[str, Any]:
    """Errors over mixed arguments, relative to how far the last digits of those move the value."""
    rng = np.random.default_rng(6)
    points = _FEW if method == "logbesselk" and _SMALL.value else _POINTS
    v, x = ((10 ** rng.uniform(-6, 6, points)).astype(dtype) for _ in range(2))
    truth, kind = extended(v, x), name[:6]
    with np.errstate(all="ignore"):
        run = _PEERS[method](name, v, x) if method in _PEERS else compiled(name, "", v, x, method)
        value = np.asarray(run())
    exact = truth[name]
    scale = np.maximum(1, np.abs(exact))
    if name in VALUES:
        scale = scale + np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
    with np.errstate(all="ignore"):
        error = (np.abs(value - exact) / scale).astype(float)
    error[~np.isfinite(value)] = np.nan
    worst = int(np.nanargmax(error))
    return {
        "error": error[worst],
        "at": [float(v[worst]), float(x[worst])],
        "not_finite": int(np.sum(~np.isfinite(value))),
        "points": points,
    }


def near_small_orders(method: str) -> dict[str, Any]:
    """Errors of log K in float64 where the published scheme has most, over max(1, |value|)."""
    v, x = np.meshgrid(np.r_[0.0, np.geomspace(1e-6, 1, 60)], np.geomspace(0.1, 2, 300))
    v, x = v.ravel(), x.ravel()
    exact = extended(v, x)["log_kv"]
    value = np.asarray(compiled("log_kv", "", v, x, method)())
    error = (np.abs(value - exact) / np.maximum(1, np.abs(exact))).astype(float)
    worst = int(np.argmax(error))
    return {"error": error[worst], "at": [float(v[worst]), float(x[worst])], "points": v.size}


def copied(n: int) -> dict[str, Any]:
    """The time of reading n numbers and writing as many."""
    x = jnp.ones(n, jnp.float64)
    copy = jax.jit(lambda x: x + 1)
    return seconds(lambda: copy(x))


def cells() -> dict[str, Callable[[], dict[str, Any]]]:
    """By key, in the order in which they are run."""
    sizes = (100_000,) if _SMALL.value else (1_000_000, 10_000_000, 100_000_000)
    made: dict[str, Callable[[], dict[str, Any]]] = {}
    for dtype in ("float64", "float32"):
        for method in ("auto", "paper"):
            for name in (*VALUES, *(DERIVATIVES if method == "auto" else ())):
                made[f"accuracy {name} {dtype} {method}"] = lambda a=(name, dtype, method): (
                    accuracy(*a)
                )
    peers = [p for p in _PEERS if importlib.util.find_spec(p)]
    for dtype in ("float64", "float32"):
        for peer in peers:
            for name in VALUES if peer == "scipy" else VALUES[1:]:
                made[f"accuracy {name} {dtype} {peer}"] = lambda a=(name, dtype, peer): accuracy(*a)
    for method in ("paper", "auto"):
        made[small_orders_key(method)] = lambda method=method: near_small_orders(method)
    for n in sizes:
        made[copy_key(n)] = lambda n=n: copied(n)
        for dtype in ("float64", "float32"):
            for kind in ARGUMENTS:
                largest = n > _MOST_OF_PEERS
                wanted = [(name, "auto") for name in (*VALUES, *DERIVATIVES)]
                if not largest and kind in ARGUMENTS[:3]:
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


def main(argv: list[str]) -> None:
    """Runs what is missing, and stores after every cell."""
    del argv
    began = time.perf_counter()
    name = f"{NAME}-small" if _SMALL.value else NAME
    with jax.enable_x64(True):
        result = load(name, _FOLDER.value) or {"cells": {}}
        if "bandwidth" not in result:
            n = 2**22 if _SMALL.value else 2**27
            result["bandwidth"] = 2 * 8 * n / copied(n)["seconds"]
        wanted = {
            k: make for k, make in cells().items() if k.startswith(tuple(_ONLY.value or [""]))
        }
        missing = {k: make for k, make in wanted.items() if k not in result["cells"]}
        for number, (key, make) in enumerate(missing.items(), 1):
            minutes = (time.perf_counter() - began) / 60
            if minutes > _MINUTES.value:
                print(f"stopped; {len(missing) - number + 1} cells are missing")
                break
            result["cells"][key] = make()
            store(name, result, _FOLDER.value)
            print(f"[{number}/{len(missing)}, {minutes:.1f} min] {key}", flush=True)
        print("\n\n".join(tables(result)))


if __name__ == "__main__":
    app.run(main)
