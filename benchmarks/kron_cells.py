"""What benchmarks/kron.py measures: programs on Kronecker products, and their floors."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.kron.operator import (
    kron_add_scalar_logdet,
    kron_add_scalar_solve,
    kron_cholesky,
    kron_eigh,
    kron_logdet,
    kron_masked_logdet,
    kron_masked_solve,
    kron_matvec,
    kron_solve,
    kron_sqrt_matvec,
)

NOISE, LENGTH = 0.01, 0.1
# What the residual of missing cells is asked to be: of float32, what its rounding leaves.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3}
# A measurement lasts at least this long.
_SECONDS = 0.05


class Size(NamedTuple):
    """A grid.

    Attributes:
      shape: (n_1, ..., n_D).
      dtype: "float32" or "float64".
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))} {self.dtype}"


def covariance(n: int, dtype: str, noise: float = 1e-3) -> jax.Array:
    """A Matern 3/2 kernel on [0, 1], with enough on its diagonal for a Cholesky factor."""
    x = np.linspace(0, 1, n)
    s = 3**0.5 * np.abs(x[:, None] - x[None, :]) / LENGTH
    return jnp.asarray((1 + s) * np.exp(-s) + noise * np.eye(n), dtype)


def seconds(fn: Callable[[], Any], rounds: int) -> tuple[float, list[float]]:
    """Median and extremes of the time of one call, over rounds of as many as last long enough."""
    jax.block_until_ready(fn())
    began = time.perf_counter()
    jax.block_until_ready(fn())
    count = max(1, round(_SECONDS / max(time.perf_counter() - began, 1e-7)))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            result = fn()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / count)
    return statistics.median(times), [min(times), max(times)]


def rates(dtype: str, n: int, rounds: int) -> dict[str, float]:
    """FLOPs per second of a dense n x n product with all digits, bytes per second of a copy."""
    a = jax.random.normal(jax.random.key(0), (n, n), jnp.dtype(dtype))
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    long = jnp.zeros(16 * n * n, jnp.dtype(dtype))
    copy = jax.jit(lambda x: x + 1)
    return {
        "flops_per_second": 2 * n**3 / seconds(lambda: multiply(a), rounds)[0],
        "bytes_per_second": 2 * long.nbytes / seconds(lambda: copy(long), rounds)[0],
    }


def operations(size: Size) -> dict[str, tuple[Callable[[], Any], float, float]]:
    """By name: a compiled call, its floating point operations, and the bytes it must move."""
    factors = tuple(covariance(n, size.dtype) for n in size.shape)
    total = int(np.prod(size.shape))
    x = jax.random.normal(jax.random.key(1), size.shape, factors[0].dtype)
    chols = kron_cholesky(factors).chols
    pass_ = 2 * total * x.dtype.itemsize * len(size.shape)
    products = 2.0 * total * sum(size.shape)
    cubes = float(sum(n**3 for n in size.shape))
    matvec, solve = jax.jit(kron_matvec), jax.jit(kron_solve)
    logdet = jax.jit(lambda f: kron_logdet(kron_cholesky(f)))

    @jax.jit
    def shifted(factors, x):
        eigh = kron_eigh(factors)
        dual = kron_add_scalar_solve(factors, NOISE, x, eigh=eigh)
        return dual, kron_add_scalar_logdet(factors, NOISE, eigh=eigh)

    stored = sum(f.nbytes for f in factors)
    return {
        "matvec": (lambda: matvec(factors, x), products, pass_ + stored),
        # Two triangular solves are half a product each.
        "solve": (lambda: solve(chols, x), products, 2 * pass_ + stored),
        "cholesky and logdet": (lambda: logdet(factors), cubes / 3, 2 * stored),
        # 4/3 n^3 to tridiagonal form and 2 n^3 back are the least that eigenvectors take.
        "eigh, solve and logdet": (
            lambda: shifted(factors, x),
            10 / 3 * cubes + 2 * products,
            2 * pass_ + stored,
        ),
    }


def speed(size: Size, rate: dict[str, float], rounds: int) -> dict[str, Any]:
    """Times of all operations on a grid, with their floors."""
    cell: dict[str, Any] = {}
    for name, (call, flops, nbytes) in operations(size).items():
        median, spread = seconds(call, rounds)
        floor = max(flops / rate["flops_per_second"], nbytes / rate["bytes_per_second"])
        cell[name] = {"seconds": median, "spread": spread, "floor": floor, "ratio": median / floor}
    return cell


def masked(size: Size, precond: str, rounds: int) -> dict[str, Any]:
    """Half of the cells of a smooth function with noise: the solve, and what it predicts."""
    factors = tuple(covariance(n, size.dtype, 0.0) for n in size.shape)
    dtype = factors[0].dtype
    keys = jax.random.split(jax.random.key(0), 3)
    chols = kron_cholesky(factors, 1e-6 if size.dtype == "float64" else 1e-5)
    truth = kron_sqrt_matvec(chols, jax.random.normal(keys[0], size.shape, dtype))
    seen = jax.random.permutation(keys[1], truth.size).reshape(size.shape) < truth.size // 2
    y = truth + NOISE**0.5 * jax.random.normal(keys[2], size.shape, dtype)

    @jax.jit
    def solve(factors, y):
        tol = TOLERANCE[size.dtype]
        solved = kron_masked_solve(factors, seen, NOISE, y, tol, precond=precond)
        return solved, kron_matvec(factors, solved.x)

    median, spread = seconds(lambda: solve(factors, y), rounds)
    solved, mean = solve(factors, y)
    error = jnp.where(seen, 0, jnp.square(mean - truth))
    return {
        "observed": int(jnp.sum(seen)),
        "cells": truth.size,
        "noise": NOISE,
        "tol": TOLERANCE[size.dtype],
        "seconds": median,
        "spread": spread,
        "iterations": int(solved.iterations),
        "residual": float(solved.residual),
        "ok": bool(solved.ok),
        "rmse_missing": float(jnp.sqrt(jnp.sum(error) / jnp.sum(~seen))),
        "deviation": float(jnp.std(truth)),
    }


def masked_logdet(size: Size, rounds: int) -> dict[str, Any]:
    """The log-determinant of half of the cells, estimated, and its time."""
    factors = tuple(covariance(n, size.dtype, 0.0) for n in size.shape)
    count = int(np.prod(size.shape))
    seen = jax.random.permutation(jax.random.key(1), count).reshape(size.shape) < count // 2

    @jax.jit
    def estimate(factors):
        return kron_masked_logdet(factors, seen, NOISE, jax.random.key(2), probes=8)

    median, spread = seconds(lambda: estimate(factors), rounds)
    found = estimate(factors)
    return {
        "seconds": median,
        "spread": spread,
        "value": float(found.value),
        "error": float(found.error),
        "probes": 8,
    }
