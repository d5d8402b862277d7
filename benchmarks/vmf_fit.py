"""Von Mises-Fisher fits in thousands of dimensions: ours, with scipy's functions, Banerjee's.

    python benchmarks/vmf_fit.py            # run what is missing, and store after every cell
    python benchmarks/vmf_fit.py --only=mixture --mixture=2048,100,100000

The numbers of `--mixture` are dimensions, components and points. Points drawn in p dimensions at a
known concentration are fitted: by `vmf_fit`, by Newton's method on ratios of `scipy.special.ive`,
and by Banerjee's approximation. On a grid of concentrations it is counted where scipy's ratio is
finite. Digits in random dimensions are classified by `configs/vmf_digits.py`, one distribution a
class and then four, and modules by their docstrings by `configs/vmf_docstrings.py`, where the
encoder's files are there. All but these is in float64.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from records import load, store

from configs import vmf_digits, vmf_docstrings
from jaxlab.config import Config
from jaxlab.interop.bert import minilm_folder
from jaxlab.special.vmf import (
    vmf_fit,
    vmf_kappa_from_r,
    vmf_log_normalizer,
    vmf_mean_resultant,
    vmf_mixture_init,
    vmf_mixture_step,
    vmf_sample,
)
from jaxlab.training.experiment import build_task

NAME = "vmf_fit"
DIMS = (2048, 8192, 32768)
KAPPAS = (1e2, 1e3, 1e4, 1e5)
POINTS = 500
SEEDS = 3
GRID = np.geomspace(1e-2, 1e6, 801)
STEPS = 4


def banerjee(p: int, r: float) -> float:
    """The closed approximation, where every Newton iteration starts."""
    return r * (p - r * r) / (1 - r * r)


def by_scipy(p: int, r: float) -> float:
    """The same Newton steps as in the literature, with scipy's scaled Bessel functions."""
    kappa = np.float64(banerjee(p, r))
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            a = scipy_ratio(p, kappa)
            kappa = kappa - (a - r) / (1 - a * a - (p - 1) * a / kappa)
    return float(kappa)


def scipy_ratio(p: int, kappa: Any) -> Any:
    """A_p(kappa) as a quotient of scaled Bessel functions."""
    with np.errstate(all="ignore"):
        return scipy.special.ive(p / 2, kappa) / scipy.special.ive(p / 2 - 1, kappa)


def fit_cell(p: int, kappa: float, seed: int) -> dict[str, Any]:
    """One sample and its fits; what is not finite is None."""
    mu = jnp.zeros(p).at[seed].set(1.0)
    y = vmf_sample(jax.random.key(seed), mu, kappa, (POINTS,))
    found_mu, ours = vmf_fit(y)
    r = float(jnp.linalg.norm(jnp.mean(y, axis=0)))
    simple, other = banerjee(p, r), by_scipy(p, r)
    known = vmf_kappa_from_r(p, jnp.mean(y @ mu))
    _, slope = jax.jvp(lambda k: vmf_mean_resultant(p, k), (kappa,), (1.0,))
    return {
        "r": r,
        "ours": float(ours),
        "scipy": other if np.isfinite(other) else None,
        "banerjee": simple,
        "known_mean": float(known),
        "log_likelihood": float(vmf_log_normalizer(p, ours) + ours * r),
        "gain": likelihood_gain(p, r, simple, float(ours)),
        "cosine": float(found_mu @ mu),
        "standard_error": float(1 / np.sqrt(POINTS * float(slope))),
    }


def likelihood_gain(p: int, r: float, start: float, end: float) -> float:
    """Mean log-likelihood at `end` minus that at `start`: the integral of r - A_p between them.

    As a difference of two values of ten thousand it would be rounding.
    """
    nodes, weights = np.polynomial.legendre.leggauss(5)
    kappa = (start + end) / 2 + (end - start) / 2 * nodes
    slopes = r - np.asarray(vmf_mean_resultant(p, kappa))
    return float((end - start) / 2 * np.sum(weights * slopes))


def digits_cell(dim: int, components: int, seed: int) -> dict[str, Any]:
    """A run of configs/vmf_digits.py."""
    return config_cell(vmf_digits.get_config(f"dim={dim},components={components},seed={seed}"))


def docstrings_cell(modules: int, components: int, seed: int) -> dict[str, Any]:
    """A run of configs/vmf_docstrings.py."""
    arg = f"modules={modules},components={components},seed={seed}"
    return config_cell(vmf_docstrings.get_config(arg))


def config_cell(made: Config) -> dict[str, Any]:
    """A config's run, in float32: its held-out metrics."""
    config, seed = made.to_dict(), made.seed
    task = build_task(config)
    params = jax.jit(task.init)(jax.random.key(seed))
    step = jax.jit(
        lambda p, b: jax.tree.map(jnp.subtract, p, jax.grad(task.loss, 0, True)(p, b, None)[0])
    )
    began = time.perf_counter()
    for i in range(config["steps"]):
        params = step(params, task.batch(i))
    sums: dict[str, float] = {}
    for batch in task.eval_batches():
        for name, value in jax.jit(task.eval_sums)(params, batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {**task.eval_metrics(sums), "seconds": time.perf_counter() - began}


def mixture_cell(p: int, components: int, points: int, steps: int = 20) -> dict[str, Any]:
    """EM on points of as many clusters of unlike concentrations, in float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    axes = vmf_sample(keys[0], jnp.eye(1, p, dtype=jnp.float32)[0], 0.0, (components,))
    kappa = jnp.geomspace(p / 4, 8 * p, components, dtype=jnp.float32)
    y = vmf_sample(keys[1], axes, kappa, (points // components,)).reshape(-1, p)
    mixture = vmf_mixture_init(keys[2], y, components)
    step = jax.jit(vmf_mixture_step).lower(y, mixture).compile()
    trace, finite = [], True
    jax.block_until_ready(mixture)
    began = time.perf_counter()
    for _ in range(steps):
        mixture, likelihood = step(y, mixture)
        trace.append(float(likelihood))
        finite &= bool(jnp.all(jnp.isfinite(mixture.kappa)))
    seconds = time.perf_counter() - began
    found = jnp.max(mixture.mu @ axes.T, axis=0)
    return {
        "trace": trace,
        "finite": finite and bool(np.all(np.isfinite(trace))),
        "clusters_found": int(jnp.sum(found > 0.9)),
        "clusters": components,
        "seconds": seconds,
    }


def ratio_cell(p: int) -> dict[str, Any]:
    """Where on the grid either ratio is finite."""
    ours = np.asarray(vmf_mean_resultant(p, GRID))
    return {
        "scipy": float(np.mean(np.isfinite(scipy_ratio(p, GRID)))),
        "ours": float(np.mean(np.isfinite(ours))),
    }


def cells(mixture: tuple[int, ...]) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...], bool]]:
    """Every cell by name: the function, its arguments, whether it is in float64."""
    found: dict[str, Any] = {
        f"fit {p} {kappa:g} {seed}": (fit_cell, (p, kappa, seed), True)
        for p in DIMS
        for kappa in KAPPAS
        for seed in range(SEEDS)
    }
    found |= {f"ratio {p}": (ratio_cell, (p,), True) for p in (*DIMS, 131072)}
    found["mixture " + " ".join(map(str, mixture))] = (mixture_cell, mixture, False)
    for components, dims in ((1, DIMS), (4, DIMS[:1])):
        for dim in dims:
            for seed in range(SEEDS):
                name = f"digits {dim} {components} {seed}"
                found[name] = (digits_cell, (dim, components, seed), False)
    try:
        minilm_folder()
    except FileNotFoundError as reason:
        print(f"without embeddings of docstrings: {reason}")
        return found
    # The parts are drawn by the texts' hashes: one distribution a class depends on no seed.
    for components, seeds in ((1, 1), (2, SEEDS)):
        for seed in range(seeds):
            name = f"docstrings 10 {components} {seed}"
            found[name] = (docstrings_cell, (10, components, seed), False)
    return found


def main() -> None:
    """Runs the cells that are not stored yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mixture", default="2048,20,2000", help="dimensions,components,points")
    parser.add_argument("--only", default="", help="cells whose names begin so")
    parser.add_argument("--folder", default="", help="where to store; empty is benchmarks/results")
    args = parser.parse_args()
    result = load(NAME, args.folder) or {"points": POINTS, "cells": {}}
    todo = cells(tuple(int(part) for part in args.mixture.split(",")))
    todo = {name: cell for name, cell in todo.items() if name.startswith(args.only)}
    for i, (name, (function, arguments, wide)) in enumerate(todo.items()):
        if name not in result["cells"]:
            with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
                result["cells"][name] = function(*arguments)
            store(NAME, result, args.folder)
        print(f"{i + 1}/{len(todo)} {name}: {result['cells'][name]}", flush=True)


if __name__ == "__main__":
    main()
