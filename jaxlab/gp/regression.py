"""Gaussian process regression on grids: cells may be missing, kernels are products over axes.

y = mean + f + noise, f of the covariance scale * k_1(x_1 - x_1') ... k_D(x_D - x_D'). Everything
is fitted by the marginal likelihood, whose log-determinant is estimated where cells are missing.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxlab.gp.covariance import AxisKernel, axis_covariance, axis_kernel
from jaxlab.gp.pde_problem import check_axis, check_points
from jaxlab.kron.operator import (
    Posterior,
    kron_add_scalar_logdet,
    kron_add_scalar_quad,
    kron_eigh,
    kron_masked_logdet,
    kron_masked_solve,
    kron_matvec,
    kron_posterior,
    kron_posterior_samples,
)

Params: TypeAlias = dict[str, Any]
Kernels: TypeAlias = str | AxisKernel | Sequence[str | AxisKernel]

# Noise that is never fitted away, as a share of the scale: the condition number that each dtype
# can bear on a large grid.
_FLOOR = {"float64": 1e-8, "float32": 1e-4}
# Residual of the solves behind a step of fitting.
_FIT_TOL = 1e-3


class GridFit(NamedTuple):
    """A fitted Gaussian process.

    Attributes:
      params: see `gp_grid_init`.
      losses: (steps,), the negative log likelihood before every step.
      ok: whether all of them and the parameters are finite; if a solve did not converge, one is
        not.
    """

    params: Params
    losses: jax.Array
    ok: jax.Array


def gp_grid_init(
    kernel: Kernels, axes: Sequence[Any], y: jax.Array, mask: jax.Array | None = None
) -> Params:
    """Parameters to begin with: lengths of a tenth of the axes, noise of a tenth of y's variance.

    Args:
      kernel: one of `jaxlab.gp.covariance` for all axes, or one for each.
      axes: D increasing arrays (n_d,).
      y: (n_1, ..., n_D), float32 or float64.
      mask: booleans of the same shape, the cells that were seen; None is all.

    Returns:
      `kernels`, a tuple of the axes' parameters; `log_scale`, `log_noise` and `mean`, scalars; all
      of y's dtype.

    Raises:
      TypeError: y is not float32 or float64.
      ValueError: an axis does not increase or has one point only, shapes do not fit, or there is
        no such kernel.

    >>> params = gp_grid_init("matern32", (np.arange(4.0),), jnp.arange(4.0))
    >>> sorted(params), params["mean"].item()
    (['kernels', 'log_noise', 'log_scale', 'mean'], 1.5)
    """
    kernels, axes, y, mask = _checked(kernel, axes, y, mask)
    where = jnp.ones(y.shape, bool) if mask is None else mask
    if mask is not None and not isinstance(mask, Tracer):
        # What a jitted function closes over is known, too.
        with jax.ensure_compile_time_eval():
            seen = bool(jnp.any(mask))
        if not seen:
            raise ValueError("gp_grid_init: mask has no True: no cell was seen; nearest: None")
    mean, variance = jnp.mean(y, where=where), jnp.var(y, where=where)
    # Numbers that are all the same have no scale of their own: theirs is 1, or of their size.
    none = variance <= jnp.finfo(y.dtype).eps ** 2 * mean**2
    variance = jnp.where(none, jnp.where(mean == 0, 1, mean**2), variance)
    pairs = zip(kernels, axes, strict=True)
    return {
        "kernels": tuple(axis_kernel(k).init(x, y.dtype) for k, x in pairs),
        "log_scale": jnp.log(variance),
        "log_noise": jnp.log(variance) - jnp.log(10.0).astype(y.dtype),
        "mean": mean,
    }


def gp_grid_nll(
    params: Params,
    kernel: Kernels,
    axes: Sequence[Any],
    y: jax.Array,
    mask: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
    probes: int = 8,
    tol: float | None = None,
) -> jax.Array:
    """-log p(y): exact if all cells were seen, otherwise with an estimated log-determinant.

    Args:
      params: as `gp_grid_init` makes them.
      kernel: one for all axes, or one for each.
      axes: D increasing arrays (n_d,), known outside jit.
      y: (n_1, ..., n_D).
      mask: booleans of the same shape, or None.
      key: of the estimate's probes; the same ones each time if None.
      probes: how many.
      tol: of the iterative solve; see `kron_masked_solve`.

    Returns:
      A scalar; NaN if a solve did not converge.

    Raises:
      TypeError: y is not float32 or float64.
      ValueError: as `gp_grid_init`.

    >>> x, y = (np.arange(3.0),), jnp.array([0.0, 1.0, 2.0])
    >>> round(gp_grid_nll(gp_grid_init("white", x, y), "white", x, y).item(), 3)  # iid
    3.655
    """
    kernels, axes, y, mask = _checked(kernel, axes, y, mask)
    factors, sigma2 = _covariance(params, kernels, axes, y.dtype)
    centred = y - params["mean"]
    eigh = kron_eigh(jax.lax.stop_gradient(factors))
    if mask is None:
        quad = kron_add_scalar_quad(factors, sigma2, centred, eigh=eigh)
        logdet, count = kron_add_scalar_logdet(factors, sigma2, eigh=eigh), y.size
    else:
        solved = kron_masked_solve(factors, mask, sigma2, centred, tol, eigh=eigh)
        quad = jnp.sum(jnp.where(mask, centred, jnp.zeros_like(y)) * solved.x)
        quad = jnp.where(solved.ok, quad, jnp.full_like(quad, jnp.nan))
        key = jax.random.key(0) if key is None else key
        estimate = kron_masked_logdet(factors, mask, sigma2, key, probes=probes, eigh=eigh)
        logdet, count = estimate.value, jnp.sum(mask).astype(y.dtype)
    return (quad + logdet + count * math.log(2 * math.pi)) / 2


def gp_grid_fit(
    kernel: Kernels,
    axes: Sequence[Any],
    y: jax.Array,
    mask: jax.Array | None = None,
    *,
    steps: int = 100,
    learning_rate: float = 0.1,
    params: Params | None = None,
    key: jax.Array | None = None,
    probes: int = 8,
) -> GridFit:
    """Fits all parameters by Adam on the marginal likelihood, in one compiled loop.

    Args:
      kernel: one for all axes, or one for each.
      axes: D increasing arrays (n_d,).
      y: (n_1, ..., n_D).
      mask: booleans of the same shape, or None.
      steps: of Adam.
      learning_rate: of Adam.
      params: to begin with; those of `gp_grid_init` if None.
      key: of the probes, new ones at each step.
      probes: of the log-determinant where cells are missing.

    Raises:
      TypeError: y is not float32 or float64.
      ValueError: as `gp_grid_init`, or `steps` is less than 1.

    >>> x = np.linspace(0.0, 1.0, 20)
    >>> fit = gp_grid_fit("matern32", (x,), jnp.sin(6 * jnp.asarray(x)), steps=20)
    >>> bool(fit.ok), bool(fit.losses[-1] < fit.losses[0])
    (True, True)
    """
    if steps < 1:
        raise ValueError(f"gp_grid_fit: steps={steps} must be 1 or more; nearest: 1")
    kernels, axes, y, mask = _checked(kernel, axes, y, mask)
    params = gp_grid_init(kernels, axes, y, mask) if params is None else params
    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)
    tx = optax.adam(learning_rate)

    @jax.jit
    def run(params: Params, y: jax.Array, mask: jax.Array | None):
        def loss(params: Params, key: jax.Array) -> jax.Array:
            return gp_grid_nll(params, kernels, axes, y, mask, key=key, probes=probes, tol=_FIT_TOL)

        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            value, slopes = jax.value_and_grad(loss)(params, key)
            updates, state = tx.update(slopes, state)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        return params, losses

    fitted, losses = run(params, y, mask)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((fitted, losses))]
    return GridFit(fitted, losses, jnp.all(jnp.stack(finite)))


def gp_grid_predict(
    params: Params,
    kernel: Kernels,
    axes: Sequence[Any],
    y: jax.Array,
    axes_test: Sequence[Any] | None = None,
    mask: jax.Array | None = None,
    *,
    samples: int | None = 32,
    key: jax.Array | None = None,
) -> Posterior:
    """Mean and variance of the function, without noise, on another grid.

    Args:
      params: as fitted.
      kernel: as fitted.
      axes: of y.
      y: (n_1, ..., n_D).
      axes_test: D arrays (s_d,), in any order; the axes of y if None.
      mask: booleans like y, or None.
      samples: where cells are missing, the draws that the variance is estimated from; None for
        exact ones, which take a solve for every test cell; 0 for NaN instead. All seen: exact.
      key: of the draws.

    Returns:
      Two arrays (s_1, ..., s_D); NaN if a solve did not converge.

    Raises:
      TypeError: y is not float32 or float64.
      ValueError: as `gp_grid_init`.

    >>> x, y = (np.arange(3.0),), jnp.array([0.0, 1.0, 2.0])
    >>> params = gp_grid_init("white", x, y) | {"log_noise": jnp.full((), -30.0)}
    >>> jnp.round(gp_grid_predict(params, "white", x, y).mean, 2).tolist()
    [0.0, 1.0, 2.0]
    """
    kernels, axes, y, mask = _checked(kernel, axes, y, mask)
    tests = axes if axes_test is None else [check_points(a, i) for i, a in enumerate(axes_test)]
    if len(tests) != len(axes):
        raise ValueError(f"gp_grid_predict: {len(tests)} axes_test must be {len(axes)}, as axes")
    factors, sigma2 = _covariance(params, kernels, axes, y.dtype)
    covariance = functools.partial(_cross, params, kernels, dtype=y.dtype)
    crosses, inside = covariance(tests, axes), covariance(tests, tests)
    centred = y - params["mean"]
    if mask is None or samples is None:
        diagonals = [jnp.diagonal(t) for t in inside]
        mean, var = kron_posterior(factors, crosses, diagonals, centred, sigma2, mask)
        return Posterior(mean + params["mean"], var)
    solved = kron_masked_solve(factors, mask, sigma2, centred)
    mean = params["mean"] + kron_matvec(crosses, solved.x)
    mean = jnp.where(solved.ok, mean, jnp.full_like(mean, jnp.nan))
    if not samples:
        return Posterior(mean, jnp.full_like(mean, jnp.nan))
    key = jax.random.key(0) if key is None else key
    drawn = kron_posterior_samples(
        key, factors, crosses, inside, centred, sigma2, mask, count=samples
    )
    var = jnp.mean(jnp.square(drawn.deviations), axis=0)
    return Posterior(mean, jnp.where(jnp.all(drawn.ok), var, jnp.full_like(var, jnp.nan)))


def _covariance(
    params: Params, kernels: Sequence[AxisKernel], axes: Sequence[np.ndarray], dtype: Any
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The factors, the first one with the scale, and the variance of the noise."""
    triples = zip(kernels, params["kernels"], axes, strict=True)
    first, *rest = (axis_covariance(k, p, x, dtype=dtype) for k, p, x in triples)
    scale = jnp.exp(params["log_scale"])
    return (scale * first, *rest), jnp.exp(params["log_noise"]) + _FLOOR[dtype.name] * scale


def _cross(
    params: Params,
    kernels: Sequence[AxisKernel],
    x: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    dtype: Any,
) -> list[jax.Array]:
    quads = zip(kernels, params["kernels"], x, other, strict=True)
    first, *rest = (axis_covariance(k, p, a, b, dtype=dtype) for k, p, a, b in quads)
    return [jnp.exp(params["log_scale"]) * first, *rest]


def _axes(axes: Sequence[Any]) -> tuple[np.ndarray, ...]:
    return tuple(check_axis(axis, number) for number, axis in enumerate(axes))


def _checked(kernel: Kernels, axes: Sequence[Any], y: jax.Array, mask: jax.Array | None):
    axes, y = _axes(axes), jnp.asarray(y)
    if y.dtype.name not in _FLOOR:
        raise TypeError(f"y is {y.dtype}; nearest: float32")
    shape = tuple(len(x) for x in axes)
    if y.shape != shape:
        raise ValueError(f"y of {y.shape} does not fit axes of {shape} points; nearest: {shape}")
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != shape or mask.dtype != bool:
            raise ValueError(f"mask of {mask.shape}, {mask.dtype}, must be of {shape}, bool")
    one = isinstance(kernel, str | AxisKernel)
    kernels = [kernel] * len(axes) if one else list(kernel)
    if len(kernels) != len(axes):
        raise ValueError(f"kernel has {len(kernels)} entries and must have {len(axes)}, as axes")
    return tuple(axis_kernel(k) for k in kernels), axes, y, mask
