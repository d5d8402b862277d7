"""Tokens per second of greedy decoding: a decoder of random parameters, dense and compressed.

    python benchmarks/decoding.py                # a GPU: width 4096, 8 layers, bfloat16
    CUDA_VISIBLE_DEVICES=1 python benchmarks/decoding.py --shard=1/2   # one of 2 processes
    python benchmarks/decoding.py --size=small   # 2 CPU cores: width 512, 4 layers, float32

Every method is called by `jaxlab.models.generation.generate`, as `python -m jaxlab.generate` does,
and dense is measured again in every round beside it. On a GPU there is a bound: all parameters but
the table of words are read once a step, at the bandwidth of a copy; a CPU may hold them in caches.
Factors of low rank and of Monarch are drawn: to decompose random kernels would take minutes, and
speed does not depend on numbers. What is stored is not run again. Packed methods multiply by the
kernels where `kernels.py` measured them to win at these sizes and `--write_configs` stored it.
"""

import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from kernel_timing import copy_bandwidth, locked
from records import load, store

import jaxlab
from jaxlab.models.generation import generate
from jaxlab.tasks.base import Network

NAME = "decoding"
_SIZE = flags.DEFINE_enum("size", "large", ["large", "small"], "Of the model.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_SECONDS = flags.DEFINE_float("seconds", 500, "No cell is begun after these.")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: methods of process i of n, counted from 0.")
_SHARED = flags.DEFINE_bool("shared", False, "Whether others use the machine: said on the page.")


class Size(NamedTuple):
    """A decoder, and how much of it is measured."""

    section: dict[str, Any]
    dtype: str
    length: int
    rounds: int


_LAYOUT = {"name": "decoder", "seq_len": 256, "tie_embeddings": False}
SIZES = {
    "large": Size(
        {**_LAYOUT, "vocab_size": 32000, "d_model": 4096, "depth": 8, "heads": 32, "d_mlp": 11264},
        "bfloat16",
        length=64,
        rounds=5,
    ),
    "small": Size(
        {**_LAYOUT, "vocab_size": 4096, "d_model": 512, "depth": 4, "heads": 8, "d_mlp": 1536},
        "float32",
        length=32,
        rounds=5,
    ),
}
PROMPT = 16
BATCHES = (1, 16)
_KERNELS = r".*/(attn|mlp)/.*/kernel"


class Method(NamedTuple):
    """How the kernels of a layer are compressed, or whether their form is filled with numbers."""

    name: str
    hyper: dict[str, Any]
    drawn: bool = False


METHODS = {
    "int4": Method("quantized", {"quant": "int4", "group": 128}),
    "2:4": Method("nm_planes", {"n": 2, "m": 4, "scores": "magnitude"}),
    "2:4 of int4": Method("nm_planes", {"n": 2, "m": 4, "quant": "int4", "group": 128}),
    "1:8": Method("nm_planes", {"n": 1, "m": 8, "scores": "magnitude"}),
    "1-bit": Method("signs", {"quant": "binary"}),
    "low rank, half of the numbers": Method("low_rank", {"ratio": 0.5}, drawn=True),
    "int8": Method("quantized", {"quant": "int8", "group": None}),
    "Monarch, 4 blocks": Method("monarch", {"nblocks": 4}, drawn=True),
}


def parameters(size: Size, method: Method | None) -> tuple[Network, Any]:
    """The model, and its parameters by a method, or dense; one layer is compressed, and copied."""
    network = Network({**size.section, "dtype": size.dtype})
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    shapes = {**shapes, "layers": {0: shapes["layers"][0]}}
    dtype = jnp.dtype(size.dtype)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    if method is None:
        params = _filled(shapes)
    elif method.drawn:
        params = _filled(jax.eval_shape(functools.partial(_compressed, method), shapes))
    else:
        params = _compressed(method, _filled(shapes))
    layers = {i: jax.tree.map(jnp.copy, params["layers"][0]) for i in range(size.section["depth"])}
    return network, {**params, "layers": layers}


def _compressed(method: Method, params: Any) -> Any:
    rules = [(_KERNELS, method.name, method.hyper)]
    return jaxlab.finalize(jaxlab.compress(params, rules, key=jax.random.key(1)))


def _filled(shapes: Any) -> Any:
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten(
        [_draw(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)]
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    scale = 1 / shape[0] ** 0.5 if len(shape) > 1 else 1.0
    return (scale * jax.random.normal(key, shape)).astype(dtype)


def rate(network: Network, params: Any, size: Size, batch: int) -> float:
    """Tokens per second of one call."""
    prompt = jnp.ones((batch, PROMPT), jnp.int32)
    began = time.perf_counter()
    jax.block_until_ready(generate(network.graph, params, prompt, length=size.length))
    return batch * size.length / (time.perf_counter() - began)


def cell(
    size: Size, method: str, batch: int, made: tuple[Network, Any], dense: Any, speed: float | None
) -> dict[str, Any]:
    """Rates of a method's model and of dense, in turns."""
    network, params = made
    nbytes = jaxlab.nbytes(params)
    # The table of words is only looked up.
    read = nbytes - params["embed"]["embedding"].nbytes
    pairs = [
        (rate(network, params, size, batch), rate(network, dense, size, batch))
        for _ in range(size.rounds + 1)
    ]
    mine, theirs = zip(*pairs[1:], strict=True)  # the first round compiles
    ratios = [a / b for a, b in pairs[1:]]
    return {
        "method": method,
        "batch": batch,
        "nbytes": nbytes,
        "tokens_per_second": [round(x, 2) for x in mine],
        "dense": [round(x, 2) for x in theirs],
        "ratio": [round(x, 4) for x in ratios],
        "most": None if speed is None else round(batch * speed / read, 1),
    }


def main(argv: list[str]) -> None:
    """Measures what is not stored yet, until the time is up."""
    del argv
    began, size = time.monotonic(), SIZES[_SIZE.value]
    name = f"{NAME}-{_SIZE.value}"
    mine, of = map(int, _SHARD.value.split("/"))
    about = {
        "settings": [f"dtype {size.dtype}", *(["machine shared"] if _SHARED.value else [])],
        "section": size.section,
        "bandwidth": None if jax.default_backend() == "cpu" else copy_bandwidth(),
    }
    _, dense = parameters(size, None)
    for method in list(METHODS)[mine::of]:
        stored = (load(name, _FOLDER.value) or {"cells": {}})["cells"]
        missing = [batch for batch in BATCHES if f"{method} b{batch}" not in stored]
        if not missing:
            continue
        made = parameters(size, METHODS[method])
        for batch in missing:
            key = f"{method} b{batch}"
            if time.monotonic() - began > _SECONDS.value:
                print(f"time is up before {key}; run again to go on")
                return
            found = cell(size, method, batch, made, dense, about["bandwidth"])
            with locked(name):  # another process may have stored since
                result = load(name, _FOLDER.value) or {"cells": {}}
                cells = {**result["cells"], key: found}
                store(name, {**result, **about, "cells": cells}, _FOLDER.value)
            ratios = sorted(found["ratio"])
            print(
                f"[{time.monotonic() - began:.0f} s] {key}: "
                f"{statistics.median(found['tokens_per_second']):.1f} tokens/s, dense "
                f"{statistics.median(found['dense']):.1f}, ratio {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}), at most {found['most']}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
