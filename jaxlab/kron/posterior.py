"""Gaussian processes on grids, given their covariances: posterior mean, variance and samples.

Sources: Y. Saatci, "Scalable Inference for Structured Gaussian Process Models", PhD thesis,
Cambridge, 2011; J. Wilson et al., "Pathwise Conditioning of Gaussian Processes", JMLR 2021, for
samples by Matheron's rule.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kron.iterative import kron_masked_solve
from jaxlab.kron.product import (
    adjoint,
    apply_factors,
    as_common,
    as_given,
    as_grid,
    check_square,
    columns,
    kron_matvec,
    kron_outer,
    over_stack,
)
from jaxlab.kron.shifted import decomposed, explained, kron_add_scalar_solve

# Cells whose variances are solved for at once, where some are missing.
_AT_ONCE = 16


class Posterior(NamedTuple):
    """Of the function without noise, on the test grid.

    Attributes:
      mean: (..., s_1, ..., s_D), or (..., S) if y was (..., N).
      var: of the same shape.
    """

    mean: jax.Array
    var: jax.Array


class Samples(NamedTuple):
    """Draws of the posterior.

    Attributes:
      values: (count, s_1, ..., s_D).
      deviations: `values` less the posterior mean, which the draws do not need to know: the mean of
        their squares estimates the variance.
      residual: (count,), largest relative residual of the solves.
      ok: (count,), whether the solves converged.
    """

    values: jax.Array
    deviations: jax.Array
    residual: jax.Array
    ok: jax.Array


def kron_posterior(
    factors_xx: Sequence[jax.Array],
    factors_sx: Sequence[jax.Array],
    factors_ss_diag: Sequence[jax.Array],
    y: jax.Array,
    sigma2: jax.typing.ArrayLike,
    mask: jax.Array | None = None,
) -> Posterior:
    """Mean and variance of a Gaussian process on a grid, given noisy values on another.

    Without a mask both take O(N sum n_d). With one, the mean takes one iterative solve and the
    variances one each: for many cells estimate them from `kron_posterior_samples`.

    Args:
      factors_xx: D arrays (..., n_d, n_d), the covariance of the training grid.
      factors_sx: D arrays (..., s_d, n_d), of the test grid with it.
      factors_ss_diag: D arrays (..., s_d), variances of the test grid.
      y: (..., n_1, ..., n_D) or (..., N), of mean 0.
      sigma2: (...,), variance of the noise.
      mask: booleans like y, the cells that were seen; None is all.

    Returns:
      Mean and variance; NaN where an iterative solve did not converge.

    Raises:
      ValueError: shapes do not fit.

    >>> k = jnp.eye(2), jnp.eye(1)
    >>> mean, var = kron_posterior(k, k, (jnp.ones(2), jnp.ones(1)), jnp.array([2.0, 4.0]), 1.0)
    >>> mean.tolist(), var.tolist()
    ([1.0, 2.0], [0.5, 0.5])
    """
    name = "kron_posterior"
    factors, (*crosses, y) = as_common(name, factors_xx, *factors_sx, y)
    check_square(name, factors)
    d, n = len(factors), columns(factors)
    if columns(crosses) != n or tuple(v.shape[-1] for v in factors_ss_diag) != tuple(
        c.shape[-2] for c in crosses
    ):
        raise ValueError(
            f"{name}: factors_sx of {[c.shape for c in crosses]} and factors_ss_diag of "
            f"{[v.shape for v in factors_ss_diag]} must be of (s_d, n_d) and (s_d,) with n_d = {n}"
        )
    grid, flat = as_grid(name, y, n)
    real = jnp.finfo(y.dtype).dtype
    sigma2 = jnp.asarray(sigma2, real)
    prior = kron_outer([jnp.asarray(v, real) for v in factors_ss_diag])
    eig = decomposed(factors, None)
    if mask is None:
        dual = kron_add_scalar_solve(factors, sigma2, grid, eigh=eig)
        arrays = (factors, eig, tuple(crosses), sigma2)
        less = over_stack(explained, arrays, ((2,) * d, ((1,) * d, (2,) * d), (2,) * d, 0))
    else:
        mask = as_grid(f"{name}: mask", jnp.asarray(mask, bool), n)[0]
        solved = kron_masked_solve(factors, mask, sigma2, grid, eigh=eig)
        failed = ~solved.ok[(..., *[None] * d)]
        dual = jnp.where(failed, jnp.full_like(solved.x, jnp.nan), solved.x)
        arrays = (factors, eig, tuple(crosses), mask, sigma2)
        core = (2,) * d, ((1,) * d, (2,) * d), (2,) * d, d, 0
        less = over_stack(_explained_seen, arrays, core)
    mean = kron_matvec(crosses, dual)
    mean, prior, less = jnp.broadcast_arrays(mean, *_aligned(mean.ndim, prior, less))
    var = jnp.maximum(prior - less, jnp.zeros_like(prior))
    return Posterior(as_given(mean, d, flat), as_given(var, d, flat))


def _aligned(ndim: int, *arrays: jax.Array) -> list[jax.Array]:
    """Arrays with leading axes of length 1 to make up the number."""
    return [a.reshape((1,) * (ndim - a.ndim) + a.shape) for a in arrays]


def _explained_seen(factors, eig, crosses, mask, sigma2) -> jax.Array:
    shape = tuple(len(c) for c in crosses)

    def of_cell(index: jax.Array) -> jax.Array:
        at = jnp.unravel_index(index, shape)
        row = kron_outer([c[i] for c, i in zip(crosses, at, strict=True)])
        solved = kron_masked_solve(factors, mask, sigma2, row, eigh=eig)
        value = jnp.sum(jnp.where(mask, row, jnp.zeros_like(row)) * solved.x)
        return jnp.where(solved.ok, value, jnp.full_like(value, jnp.nan))

    cells = jnp.arange(math.prod(shape))
    return jax.lax.map(of_cell, cells, batch_size=_AT_ONCE).reshape(shape)


def kron_posterior_samples(
    key: jax.Array,
    factors_xx: Sequence[jax.Array],
    factors_sx: Sequence[jax.Array],
    factors_ss: Sequence[jax.Array],
    y: jax.Array,
    sigma2: jax.typing.ArrayLike,
    mask: jax.Array | None = None,
    count: int = 1,
) -> Samples:
    """Draws of the posterior on the test grid: prior draws on both grids, then corrected.

    Reach stacks through `jax.vmap`. Where something is complex, draws and noise are circular: real
    and imaginary parts have half of the variance each.

    Args:
      key: of the draws.
      factors_xx: D arrays (n_d, n_d), Hermitian; real or complex.
      factors_sx: D arrays (s_d, n_d).
      factors_ss: D arrays (s_d, s_d), whole.
      y: (n_1, ..., n_D) or (N,).
      sigma2: scalar.
      mask: booleans like y, or None.
      count: how many.

    Returns:
      The draws, and how well the solves behind them went.

    Raises:
      NotImplementedError: a derivative with respect to a factor is asked for.
      TypeError: something is complex and there is a mask.
      ValueError: shapes do not fit, or `count` is less than 1.

    >>> k = jnp.eye(2), jnp.eye(1)
    >>> drawn = kron_posterior_samples(
    ...     jax.random.key(0), k, k, k, jnp.array([2.0, 4.0]), 1e-6, count=3)
    >>> drawn.values.shape, jnp.round(drawn.values[0, :, 0], 1).tolist()
    ((3, 2, 1), [2.0, 4.0])
    """
    name = "kron_posterior_samples"
    factors, (*rest, y) = as_common(name, factors_xx, *factors_sx, *factors_ss, y)
    d, n = len(factors), columns(factors)
    crosses, tests = rest[:d], rest[d:]
    if count < 1:
        raise ValueError(f"{name}: count={count} must be 1 or more; nearest: 1")
    shapes = [(c.shape[0], m) for c, m in zip(crosses, n, strict=True)]
    if [c.shape for c in crosses] != shapes or [t.shape for t in tests] != [
        (s, s) for s, _ in shapes
    ]:
        raise ValueError(
            f"{name}: factors_sx and factors_ss must be of (s_d, n_d) and (s_d, s_d), not "
            f"{[c.shape for c in crosses]} and {[t.shape for t in tests]}, with n_d = {n}"
        )
    y, _ = as_grid(name, y, n)
    sigma2 = jnp.asarray(sigma2, jnp.finfo(y.dtype).dtype)
    eig = decomposed(factors, None)
    roots = [
        _root(_constant(jnp.block([[k, adjoint(c)], [c, t]])))
        for k, c, t in zip(factors, crosses, tests, strict=True)
    ]

    def solve(values: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if mask is None:
            x = kron_add_scalar_solve(factors, sigma2, values, eigh=eig)
            return x, jnp.zeros_like(sigma2), jnp.all(jnp.isfinite(x))
        seen = as_grid(f"{name}: mask", jnp.asarray(mask, bool), n)[0]
        solved = kron_masked_solve(factors, seen, sigma2, values, eigh=eig)
        return solved.x, solved.residual, solved.ok

    at, residual_at, ok_at = solve(y)
    mean = apply_factors(crosses, at)

    def draw(key: jax.Array) -> Samples:
        of_prior, of_noise = jax.random.split(key)
        z = jax.random.normal(of_prior, tuple(len(r) for r in roots), y.dtype)
        joint = apply_factors(roots, z)
        noise = jnp.sqrt(sigma2).astype(y.dtype) * jax.random.normal(of_noise, n, y.dtype)
        x, residual, ok = solve(joint[tuple(slice(m) for m in n)] + noise)
        away = joint[tuple(slice(m, None) for m in n)] - apply_factors(crosses, x)
        return Samples(mean + away, away, jnp.maximum(residual, residual_at), ok & ok_at)

    return jax.lax.map(draw, jax.random.split(key, count))


@jax.custom_jvp
def _constant(joint: jax.Array) -> jax.Array:
    return joint


@_constant.defjvp
def _(primals, tangents):
    raise NotImplementedError(
        "kron_posterior_samples: draws have no derivatives with respect to covariances, whose root "
        "has none where points of the grids are equal; nearest: kron_posterior, or gradients in y"
    )


def _root(joint: jax.Array) -> jax.Array:
    """A square root of a covariance that may be singular: equal points on both grids make it so."""
    lam, q = jnp.linalg.eigh(joint)
    root = jnp.sqrt(jnp.maximum(lam, jnp.zeros_like(lam)))
    return q * root.astype(q.dtype)[None]
