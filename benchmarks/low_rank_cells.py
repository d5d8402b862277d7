"""What is measured of the trained decoder of benchmarks/low_rank_language_model.py.

Decompositions are nested: those of the smaller fractions are cut from that of the largest, which is
what a cell's seconds are of.
"""

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from low_rank_decoder import ALIGN, PATHS, RATIOS, Decoder, rules, timed

from jaxlab.core.calibration import compress_calibrated
from jaxlab.core.collect import kernels
from jaxlab.core.compress import Rule, compress
from jaxlab.core.match import path_str
from jaxlab.core.matrix import is_matrix
from jaxlab.interop.artefact import save
from jaxlab.interop.pretrained import unstack_layers
from jaxlab.methods.low_rank import allocate_ranks, lord_spectrum, rank_from_ratio
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

TIGHT = 0.6
METHODS = {"LoRD": "lord", "SVD": "svd", "ASVD": "asvd"}
_LAUNCHES = 10


class OutOfTime(Exception):
    """A cell was given up."""


def compressed(decoder: Decoder, decomposition: str, ratio: float) -> Any:
    """All layers at once, by the statistics of the dense model."""

    def cut(w: Any) -> Any:
        if not is_matrix(w):
            return w
        d_in, d_out = w.shape[-2:]
        rank = rank_from_ratio(d_in, d_out, ratio, ALIGN)
        return replace(w, u=w.u[..., :rank], v=w.v[..., :rank, :])

    return jax.tree.map(cut, decoder.largest(decomposition)[0], is_leaf=is_matrix)


def one_shot(decoder: Decoder, *, decomposition: str, ratio: float) -> dict[str, Any]:
    """One method at one kept fraction."""
    found = decoder.measured(compressed(decoder, decomposition, ratio))
    return found | {"seconds": round(decoder.largest(decomposition)[1], 2)}


def allocated(decoder: Decoder, *, allocation: str, ratio: float) -> dict[str, Any]:
    """LoRD, with a rank for each layer from the spectra of the layers' outputs."""
    spectra, shapes, grams = {}, {}, {}
    with jax.default_matmul_precision("highest"):
        for path in PATHS:
            w = jnp.swapaxes(kernels(decoder.params)[path], -1, -2)
            values = np.asarray(lord_spectrum(w, decoder.grams[path], center=False)[0])
            for i in range(len(w)):
                own = path.replace("layers/", f"layers/{i}/")
                spectra[own], shapes[own] = values[i], w.shape[1:]
                grams[own] = jax.tree.map(lambda x, i=i: x[i], decoder.grams[path])
    # What equal ranks use, once they are aligned, so that no allocation has more to share out.
    budget = sum((o + i) * rank_from_ratio(o, i, ratio, ALIGN) for o, i in shapes.values())
    ranks = allocate_ranks(spectra, shapes, budget, method=allocation, align=ALIGN)
    chosen: list[Rule] = [
        (re.escape(path), "low_rank", {"rank": rank, "decomposition": "lord"})
        for path, rank in ranks.items()
        if rank is not None
    ]
    params = unstack_layers(decoder.params)
    offered = lambda path: {"gram": grams[path]}  # noqa: E731
    made, _ = timed(lambda: compress(params, chosen, offered=offered))
    return decoder.measured(made) | {"ranks": ranks}


def one_by_one(
    decoder: Decoder, *, decomposition: str, ratio: float, progress: Any
) -> dict[str, Any]:
    """Each kernel on the inputs behind those that are done.

    Whitening is uncentred LoRD by another way, but for the target: LoRD makes up for what the
    kernels before have changed, and whitening goes by the changed inputs alone.
    """
    params = unstack_layers(decoder.params)
    how: dict[str, Any] = {"sequential": True, "progress": progress}
    chosen = rules(decomposition, ratio)
    make = lambda: compress_calibrated(  # noqa: E731
        decoder.unrolled, params, chosen, decoder.batches, **how
    )
    made, seconds = timed(make)
    return decoder.measured(made) | {"seconds": round(seconds, 2)}


def recovered(decoder: Decoder, *, decomposition: str, ratio: float, name: str) -> dict[str, Any]:
    """A few steps of training after compression, with factors of equal scale and other windows."""
    made = jax.tree.map(_balanced, compressed(decoder, decomposition, ratio), is_leaf=is_matrix)
    folder = decoder.folder / f"recovered {name} {ratio}"
    file = decoder.folder / f"{name} {ratio}.safetensors"
    save(file, made)
    config = {**decoder.config, "init": str(file), "workdir": str(folder)}
    config |= {"steps": decoder.recovery, "seed": decoder.config["seed"] + 1}
    config["eval"] = {"every": 0}
    config["optim"] = {**config["optim"], "lr": config["optim"]["lr"] / 3}
    run = Run(Experiment(config))
    summary = run.train()
    final = Experiment({**config, "init": str(folder)}).initial_params()
    found = decoder.measured(final)
    rate = {"lr": config["optim"]["lr"], "steps_per_second": summary["steps_per_second"]}
    return found | {"steps": decoder.recovery} | rate


def _balanced(w: Any) -> Any:
    """Factors whose rank-one parts have equal norms on both sides."""
    if not is_matrix(w):
        return w
    left = jnp.linalg.norm(w.u, axis=-2, keepdims=True)
    right = jnp.swapaxes(jnp.linalg.norm(w.v, axis=-1, keepdims=True), -1, -2)
    scale = jnp.sqrt(right / jnp.maximum(left, jnp.finfo(left.dtype).tiny))
    return replace(w, u=w.u * scale, v=w.v / jnp.swapaxes(scale, -1, -2))


def speeds(decoder: Decoder) -> dict[str, Any]:
    """Tokens per second of the forward pass, and bits per byte of the factors as they are."""
    forms = {"dense": decoder.params}
    forms |= {f"LoRD {ratio}": compressed(decoder, "lord", ratio) for ratio in RATIOS}
    factored = {key: decoder.quality(params)["bits_per_byte"] for key, params in forms.items()}
    dtype = jnp.dtype(decoder.config["model"].get("dtype", "float32"))
    forms = {key: _in_dtype(params, dtype) for key, params in forms.items()}
    tokens = jnp.asarray(decoder.batches[0]["tokens"])[:, :-1]
    forward = jax.jit(decoder.experiment.task.network.apply)
    for params in forms.values():
        jax.block_until_ready(forward(params, tokens))
    rounds = [
        {key: _seconds(forward, params, tokens) for key, params in forms.items()}
        for _ in range(decoder.size["rounds"])
    ]
    found = {}
    for key in forms:
        ratios = [r["dense"] / r[key] for r in rounds]
        found[key] = {
            "tokens_per_second": round(tokens.size / statistics.median(r[key] for r in rounds)),
            "ratio": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "factored_bits_per_byte": factored[key],
        }
    return {"forward": found, "tokens": list(tokens.shape), "dtype": dtype.name}


def _in_dtype(params: Any, dtype: Any) -> Any:
    """Kernels stored as they are multiplied; casting them is no part of what is timed."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(dtype) if "kernel" in path_str(path).split("/") else x, params
    )


def _seconds(forward: Callable[..., jax.Array], params: Any, tokens: jax.Array) -> float:
    """Of one launch among many."""
    began = time.perf_counter()
    for _ in range(_LAUNCHES):
        logits = forward(params, tokens)
    jax.block_until_ready(logits)
    return (time.perf_counter() - began) / _LAUNCHES


def cells(deadline: float) -> dict[str, Callable[[Decoder], dict[str, Any]]]:
    """By key, who measures a cell: the ones that most depends on first, the dearest last."""

    def watched(batches, label):
        del label
        if time.perf_counter() > deadline:
            raise OutOfTime
        return batches

    found: dict[str, Callable[[Decoder], dict[str, Any]]] = {"dense": Decoder.dense}
    for ratio in RATIOS:
        for name, decomposition in METHODS.items():
            found[f"{name} {ratio}"] = partial(one_shot, decomposition=decomposition, ratio=ratio)
    found["speed"] = speeds
    for allocation in ("uniform", "greedy"):
        found[f"{allocation} {TIGHT}"] = partial(allocated, allocation=allocation, ratio=TIGHT)
    for name in ("LoRD", "SVD"):
        found[f"{name} {TIGHT}, recovered"] = partial(
            recovered, decomposition=METHODS[name], ratio=TIGHT, name=name
        )
    found[f"sequential whitening {TIGHT}"] = partial(
        one_by_one, decomposition="whiten", ratio=TIGHT, progress=watched
    )
    # Last: it compiles a step for every kernel.
    found[f"sequential LoRD {TIGHT}"] = partial(
        one_by_one, decomposition="lord", ratio=TIGHT, progress=watched
    )
    return found
