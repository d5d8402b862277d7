"""Photographs with 30 % of the pixels missing: a Kronecker process against bilinear fill-in.

    python benchmarks/gp_images.py      # 2 CPU cores; the same again goes on

The grid is image x row x column. The kernels of all axes and the noise are learned from the pixels
that are there, by the marginal likelihood; bilinear fill-in interpolates in every image between the
pixels that are there, by Delaunay triangles, and takes the nearest one outside of them.
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from records import load, store
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from jaxlab.data.fashion_mnist import read_idx
from jaxlab.gp.regression import gp_grid_fit, gp_grid_predict

_PATH = flags.DEFINE_string("path", "/usr/share/datasets/fashion-mnist", "Of the IDX files.")
_IMAGES = flags.DEFINE_integer("images", 40, "How many, from the test part.")
_STEPS = flags.DEFINE_integer("steps", 40, "Of Adam.")
_MASKS = flags.DEFINE_integer("masks", 3, "Draws of the missing pixels.")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "No fit is begun after these.")
_SHARED = flags.DEFINE_bool("shared", False, "Whether others use the machine: said on the page.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")

SEEN = 0.7
KERNELS = {
    "white, Matern 3/2": ("white", "matern32", "matern32"),
    "Matern 1/2, Matern 3/2": ("matern12", "matern32", "matern32"),
    "Matern 1/2, spectral mixture": ("matern12", "spectral_student", "spectral_student"),
}


def images() -> np.ndarray:
    """(n, 28, 28) in [0, 1]."""
    stem = Path(_PATH.value) / "t10k-images-idx3-ubyte"
    file = next(f for f in (stem, stem.with_suffix(".gz")) if f.is_file())
    return read_idx(file, ndim=3)[: _IMAGES.value] / 255.0


def bilinear(stack: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Every image filled in from its own pixels."""
    points = np.moveaxis(np.indices(stack.shape[1:]), 0, -1).reshape(-1, 2)
    filled = np.empty_like(stack)
    for image, mask, out in zip(stack, seen, filled, strict=True):
        known, values = points[mask.reshape(-1)], image[mask]
        inside = LinearNDInterpolator(known, values)(points)
        outside = NearestNDInterpolator(known, values)(points)
        out[:] = np.where(np.isnan(inside), outside, inside).reshape(image.shape)
    return filled


def run(stack: np.ndarray, draw: int, kernel: tuple[str, ...]) -> dict[str, Any]:
    """RMSE of both on the missing pixels."""
    seen = np.random.default_rng(draw).random(stack.shape) < SEEN
    axes = [np.arange(n, dtype=float) for n in stack.shape]
    y, mask = jnp.asarray(np.where(seen, stack, np.nan)), jnp.asarray(seen)
    began = time.perf_counter()
    fit = gp_grid_fit(
        kernel, axes, y, mask, steps=_STEPS.value, learning_rate=0.2, probes=4,
        key=jax.random.key(draw),
    )  # fmt: skip
    predict = jax.jit(lambda p: gp_grid_predict(p, kernel, axes, y, mask=mask, samples=0).mean)
    mean = np.asarray(predict(fit.params))
    spent = time.perf_counter() - began

    def rmse(filled: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(filled - stack)[~seen])))

    losses = np.asarray(fit.losses) / seen.sum()
    return {
        "process": rmse(mean),
        "bilinear": rmse(bilinear(stack, seen)),
        "ok": bool(fit.ok),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
        "noise": float(np.exp(fit.params["log_noise"] / 2)),
        "seconds": spent,
    }


def main(argv: list[str]) -> None:
    """Every kernel with every mask, what is missing."""
    del argv
    jax.config.update("jax_enable_x64", True)
    began = time.perf_counter()
    stack = images()
    settings = {"images": len(stack), "steps": _STEPS.value, "seen": SEEN}
    result = load("gp_images", _FOLDER.value) or {"about": settings, "cells": {}}
    if result["about"] != settings:
        raise ValueError(f"stored results are of {result['about']}, not {settings}")
    result["settings"] = ["machine shared"] if _SHARED.value else []
    wanted = [(k, d) for k in KERNELS for d in range(_MASKS.value)]
    missing = [(k, d) for k, d in wanted if f"{k}, mask {d}" not in result["cells"]]
    for done, (name, draw) in enumerate(missing):
        if time.perf_counter() - began > 60 * _MINUTES.value:
            print(f"stopped; {len(missing) - done} fits are missing")
            return
        cell = run(stack, draw, KERNELS[name])
        result["cells"][f"{name}, mask {draw}"] = cell
        print(f"[{done + 1}/{len(missing)}] {name}, mask {draw}: {cell}", flush=True)
        store("gp_images", result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
