"""Tokens per second of greedy decoding: a decoder of random parameters, dense and compressed.

    python benchmarks/decoding.py                # a GPU: width 4096, 8 layers, bfloat16
    python benchmarks/decoding.py --size=small   # 2 CPU cores: width 512, 4 layers, float32

Every method is called by `jaxlab.models.generation.generate`, as `python -m jaxlab.generate` does,
and dense is measured again in every round beside it. On a GPU there is a bound: all parameters but
the table of words are read once a step, at the bandwidth of a copy; a CPU may hold them in caches.
What is stored is not run again.
"""

import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from kernel_timing import copy_bandwidth
from records import load, store

import jaxlab
from jaxlab.models.generation import generate
from jaxlab.tasks.base import Network

NAME = "decoding"
_SIZE = flags.DEFINE_enum("size", "large", ["large", "small"], "Of the model.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_SECONDS = flags.DEFINE_float("seconds", 500, "No cell is begun after these.")
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
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("quantized", {"quant": "int8", "group": None}),
    "int4": ("quantized", {"quant": "int4", "group": 128}),
    "2:4": ("nm_packed", {"n": 2, "m": 4, "scores": "magnitude"}),
    "1:8": ("nm_packed", {"n": 1, "m": 8, "scores": "magnitude"}),
    "low rank, half of the numbers": ("low_rank", {"ratio": 0.5, "decomposition": "svd"}),
    "Monarch, 4 blocks": ("monarch", {"nblocks": 4}),
}


def parameters(size: Size, rule: tuple[str, dict[str, Any]] | None) -> tuple[Network, Any]:
    """The model, and its parameters by a method, or dense; one layer is compressed, and copied."""
    network = Network({**size.section, "dtype": size.dtype})
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    one = {**shapes, "layers": {0: shapes["layers"][0]}}
    leaves, tree = jax.tree.flatten(one)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    dtype = jnp.dtype(size.dtype)
    drawn = [_draw(key, x.shape, dtype) for key, x in zip(keys, leaves, strict=True)]
    params = tree.unflatten(drawn)
    if rule is not None:
        name, hyper = rule
        params = jaxlab.compress(params, [(_KERNELS, name, hyper)], key=jax.random.key(1))
        params = jaxlab.finalize(params)
    layers = {i: jax.tree.map(jnp.copy, params["layers"][0]) for i in range(size.section["depth"])}
    return network, {**params, "layers": layers}


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


def cell(size: Size, method: str, batch: int, dense: Any, speed: float | None) -> dict[str, Any]:
    """Rates of a method and of dense, in turns."""
    network, params = parameters(size, METHODS[method])
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
    result = load(name, _FOLDER.value) or {"cells": {}, "settings": []}
    result["settings"] = [f"dtype {size.dtype}", *(["machine shared"] if _SHARED.value else [])]
    result["section"] = size.section
    result["bandwidth"] = None if jax.default_backend() == "cpu" else copy_bandwidth()
    _, dense = parameters(size, None)
    for method in METHODS:
        for batch in BATCHES:
            key = f"{method} b{batch}"
            if key in result["cells"]:
                continue
            if time.monotonic() - began > _SECONDS.value:
                print(f"time is up before {key}; run again to go on")
                return
            result["cells"][key] = cell(size, method, batch, dense, result["bandwidth"])
            store(name, result, _FOLDER.value)
            found = result["cells"][key]
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
