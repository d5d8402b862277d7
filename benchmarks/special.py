"""log Bessel functions: accuracy and time beside the published scheme, SciPy and logbesselk.

    python benchmarks/special.py                 # a GPU: 1e6 and 1e7 elements
    python benchmarks/special.py --small         # a CPU: 1e5
    python benchmarks/special.py --minutes=3     # begin no cell after them; the same again goes on

The floor is reading both arguments and writing the value at the bandwidth of a copy, measured in
the same run; SciPy runs on one core, and only where it is installed.
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
from publish_special import ARGUMENTS, DERIVATIVES, NAME, VALUES
from records import load, store

from jaxlab.special import bessel
from jaxlab.special.bessel.reference import extended

_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "No cell is begun after these.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of everything.")
_SMALL = flags.DEFINE_bool("small", False, "Sizes for a CPU.")
_POINTS = 20_000
_ROUND_SECONDS = 0.02
_MOST_CALLS = 64


@functools.lru_cache(2)
def arguments(kind: str, n: int, dtype: str) -> tuple[Any, np.ndarray]:
    """Orders, or the one order, and arguments."""
    rng = np.random.default_rng(5)
    if kind == ARGUMENTS[1]:
        return 1023.0, (10 ** rng.uniform(0, 6, n)).astype(dtype)
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
    settings = {"method": method} if name in VALUES else {}
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
    with np.errstate(all="ignore"):
        return lambda: np.log(scaled(v, x)) + sign * x


def _logbesselk(name: str, v: Any, x: np.ndarray) -> Callable[[], Any]:
    from logbesselk.jax import log_bessel_k  # pyright: ignore

    fn = jax.jit(jax.vmap(log_bessel_k))
    orders, placed = jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape), jnp.asarray(x)
    return lambda: fn(orders, placed)


_PEERS = {"scipy": _scipy, "logbesselk": _logbesselk}


def accuracy(name: str, dtype: str, method: str) -> dict[str, Any]:
    """Errors over mixed arguments, relative to how far the last digits of those move the value."""
    rng = np.random.default_rng(6)
    v, x = ((10 ** rng.uniform(-6, 6, _POINTS)).astype(dtype) for _ in range(2))
    truth = extended(v, x)
    kind, settings = name[:6], {"method": method} if name in VALUES else {}
    value = np.asarray(jax.jit(lambda v, x: getattr(bessel, name)(v, x, **settings))(v, x))
    exact = truth[name]
    scale = np.maximum(1, np.abs(exact))
    if name in VALUES:
        scale = scale + np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
    error = (np.abs(value - exact) / scale).astype(float)
    worst = int(np.nanargmax(error))
    return {
        "error": error[worst],
        "at": [float(v[worst]), float(x[worst])],
        "not_finite": int(np.sum(~np.isfinite(value))),
        "points": _POINTS,
    }


def bandwidth(n: int) -> float:
    """Bytes a second of a copy, read and written."""
    x = jnp.ones(n, jnp.float64)
    copy = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds(lambda: copy(x))["seconds"]


def cells() -> dict[str, Callable[[], dict[str, Any]]]:
    """By key, in the order in which they are run."""
    cpu = jax.devices()[0].platform == "cpu"
    sizes = (100_000,) if _SMALL.value else (1_000_000, 10_000_000)
    made: dict[str, Callable[[], dict[str, Any]]] = {}
    for dtype in ("float64", "float32"):
        for method in ("auto", "paper"):
            for name in (*VALUES, *(DERIVATIVES if method == "auto" else ())):
                made[f"accuracy {name} {dtype} {method}"] = lambda a=(name, dtype, method): (
                    accuracy(*a)
                )
    peers = [p for p, there in (("scipy", cpu), ("logbesselk", True)) if there]
    peers = [p for p in peers if importlib.util.find_spec(p)]
    for n in sizes:
        for dtype in ("float64", "float32"):
            for kind in ARGUMENTS:
                wanted = [(name, "auto") for name in (*VALUES, *DERIVATIVES)]
                # The others take up to seconds; the first size shows them.
                small = n == sizes[0]
                wanted += [(name, "paper") for name in VALUES if small]
                wanted += [(name, "scipy") for name in VALUES if "scipy" in peers]
                wanted += [("log_kv", "logbesselk")] if small and "logbesselk" in peers else []
                for name, peer in wanted:
                    made[f"time {name} {kind} {dtype} {n} {peer}"] = (
                        lambda a=(name, kind, dtype, n, peer): timed(*a)
                    )
    return made


def main(argv: list[str]) -> None:
    """Runs what is missing, and stores after every cell."""
    del argv
    began = time.perf_counter()
    name = f"{NAME}-small" if _SMALL.value else NAME
    with jax.enable_x64(True):
        result = load(name, _FOLDER.value) or {"cells": {}}
        result.setdefault("bandwidth", bandwidth(2**22 if _SMALL.value else 2**27))
        missing = {k: make for k, make in cells().items() if k not in result["cells"]}
        for number, (key, make) in enumerate(missing.items(), 1):
            minutes = (time.perf_counter() - began) / 60
            if minutes > _MINUTES.value:
                print(f"stopped; {len(missing) - number + 1} cells are missing")
                return
            result["cells"][key] = make()
            store(name, result, _FOLDER.value)
            print(f"[{number}/{len(missing)}, {minutes:.1f} min] {key}", flush=True)


if __name__ == "__main__":
    app.run(main)
