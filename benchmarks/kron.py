"""Kronecker products on grids: time against the floor of dense products, missing cells, a peer.

    python benchmarks/kron.py --minutes=5              # a GPU, or --small on 2 CPU cores
    python benchmarks/kron.py --minutes=5 --folder=F   # stores into F; the same again goes on

The floor of an operation is the larger of its floating point operations at the rate of a dense
product in the same dtype, and the bytes it must move at the rate of a copy, both measured in the
same run. Where gpytorch is installed its times are measured too. What is stored is not run again.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from kron_cells import Size, masked, masked_logdet, rates, speed
from records import load, store

_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_MINUTES = flags.DEFINE_float("minutes", 5.0, "No cell is begun after these.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of everything.")
_SMALL = flags.DEFINE_bool("small", False, "Sizes for a CPU.")
_SHARED = flags.DEFINE_bool("shared", False, "Whether others use the machine: said on the page.")
_PEER = flags.DEFINE_bool("peer", True, "Whether gpytorch is measured, if there is one.")

_LARGE_SHAPES = (
    *((n, n) for n in (250, 500, 1000, 2000)),
    (100, 100, 100),
    (32, 32, 32, 32),
)
_SMALL_SHAPES = (*((n, n) for n in (125, 250, 500, 1000)), (64, 64, 64), (23, 23, 23, 23))


def cells() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """By key, how each cell is made from what is stored; in the order in which they are run."""
    shapes = dict.fromkeys(_SMALL_SHAPES if _SMALL.value else _LARGE_SHAPES)
    gemm = 1024 if _SMALL.value else 4096
    rounds = _ROUNDS.value
    made: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
    for dtype in ("float64", "float32"):
        made[f"rates {dtype}"] = lambda _, dtype=dtype: rates(dtype, gemm, rounds)
    half = [(200, 200)] if _SMALL.value else [(1000, 1000)]
    for shape in half:
        for dtype in ("float64", "float32"):
            size = Size(shape, dtype)
            made[f"masked spectral {size}"] = lambda _, s=size: masked(s, "spectral", rounds)
        wide = Size(shape, "float64")
        made[f"masked logdet {wide}"] = lambda _, s=wide: masked_logdet(s, rounds)
    for shape in shapes:
        for dtype in ("float64", "float32"):
            size = Size(shape, dtype)
            made[f"speed {size}"] = lambda known, s=size: speed(
                s, known[f"rates {s.dtype}"], rounds
            )
    if _PEER.value and importlib.util.find_spec("gpytorch"):
        from kron_peer import peer_speed

        for shape in (s for s in shapes if len(s) == 2):
            for dtype in ("float64", "float32"):
                size = Size(shape, dtype)
                made[f"gpytorch {size}"] = lambda _, s=size: peer_speed(s, rounds)
    for shape in half:
        for precond in ("eigh", "none"):
            size = Size(shape, "float64")
            made[f"masked {precond} {size}"] = lambda _, s=size, p=precond: masked(s, p, 1)
    return made


def main(argv: list[str]) -> None:
    """Runs what is missing, and stores after each cell."""
    del argv
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    name = f"kron-{'small' if _SMALL.value else 'large'}"
    result = load(name, _FOLDER.value) or {"cells": {}}
    result["settings"] = ["machine shared"] if _SHARED.value else []
    wanted = cells()
    missing = [key for key in wanted if key not in result["cells"]]
    for done, key in enumerate(missing):
        minutes = (time.perf_counter() - began) / 60
        if minutes > _MINUTES.value:
            print(f"stopped after {minutes:.1f} minutes; {len(missing) - done} cells are missing")
            return
        result["cells"][key] = wanted[key](result["cells"])
        print(f"[{done + 1}/{len(missing)}, {minutes:.1f} min] {key}: {result['cells'][key]}")
        store(name, result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
