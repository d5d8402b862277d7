"""One Monarch layer against the dense layer of the same shape, forward and in training.

    python benchmarks/monarch_product.py                                   # one GPU
    python benchmarks/monarch_product.py --tokens=512 --sizes=512x512 --dtype=float32   # CPU

The floor is the time of the dense product, measured in the same run, times the share of its
floating point operations that Monarch needs: what a product as efficient as the dense one would
take. Every round runs all programs once; the median is over the rounds.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from records import store

from jaxlab.methods.monarch import init_monarch, monarch_apply, monarch_param_count, monarch_shapes

_TOKENS = flags.DEFINE_integer("tokens", 8192, "Rows of the operand.")
_SIZES = flags.DEFINE_list("sizes", ["768x2048", "1024x4096", "4096x4096"], "Inputs x outputs.")
_BLOCKS = flags.DEFINE_list("blocks", ["4", "16"], "Numbers of blocks.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of everything.")
_LAUNCHES = flags.DEFINE_integer("launches", 20, "Products in one measurement.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each program.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")


def programs(n_in: int, n_out: int, nblocks: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiled functions and their arguments, by name, and what they store and compute."""
    dtype = jnp.dtype(_DTYPE.value)
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (_TOKENS.value, n_in), dtype)
    g = jax.random.normal(keys[1], (_TOKENS.value, n_out), dtype)
    dense = jax.random.normal(keys[2], (n_in, n_out), dtype) / n_in**0.5
    shape = monarch_shapes(n_in, n_out, nblocks=nblocks)
    factors = init_monarch(keys[3], shape, dtype=dtype)
    products: dict[str, tuple[Any, Callable[..., jax.Array]]] = {
        "dense": (dense, lambda w, x: x @ w),
        "monarch": (factors, lambda w, x: monarch_apply(w, x, shape)),
        "middle kept": (factors, lambda w, x: monarch_apply(w, x, shape, save_h=True)),
        "blocked": (factors, lambda w, x: monarch_apply(w, x, shape, blocked=True)),
    }
    made: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    for name, (w, product) in products.items():

        def trained(w, x, g, product=product):
            _, vjp = jax.vjp(product, w, x)
            return vjp(g)

        made[f"{name}, forward"] = jax.jit(product), (w, x)
        made[f"{name}, training"] = jax.jit(trained), (w, x, g)
    return made, {"share": monarch_param_count(shape) / (n_in * n_out)}


def timed(program, arguments) -> float:
    """Microseconds of one launch among many."""
    began = time.perf_counter()
    for _ in range(_LAUNCHES.value):
        result = program(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / _LAUNCHES.value * 1e6


def main(argv: list[str]) -> None:
    """Every size with every number of blocks."""
    del argv
    result = {"tokens": _TOKENS.value, "dtype": _DTYPE.value, "cells": {}}
    for size in _SIZES.value:
        for nblocks in map(int, _BLOCKS.value):
            n_in, n_out = map(int, size.split("x"))
            made, cell = programs(n_in, n_out, nblocks)
            for program, arguments in made.values():
                jax.block_until_ready(program(*arguments))
            rounds = [{n: timed(*p) for n, p in made.items()} for _ in range(_ROUNDS.value)]
            for name in made:
                times = [r[name] for r in rounds]
                kind = name.rsplit(", ", 1)[1]
                ratios = [r[name] / r[f"dense, {kind}"] for r in rounds]
                cell[name] = {
                    "microseconds": statistics.median(times),
                    "ratio": statistics.median(ratios),
                    "spread": [min(ratios), max(ratios)],
                }
            result["cells"][f"{size}, {nblocks} blocks"] = cell
            shown = ", ".join(f"{n} {cell[n]['microseconds']:.0f}" for n in made)
            print(f"{size}, {nblocks} blocks, share {cell['share']:.3f}: {shown} us", flush=True)
    store("monarch_product", result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
