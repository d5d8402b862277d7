"""A Gaussian process on a tensor grid, given by its values: prior, derivatives, interpolation."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.gp.gram import Gram, factorise, logdet, solve
from jaxlab.gp.spectral import Components, cross_matrix, kernel_matrix


class Solution(NamedTuple):
    """Grid values, their derivatives by (axis, order), and the log density of their prior.

    `ok` is False where a covariance was not positive definite.
    """

    u: jax.Array
    derivatives: dict[tuple[int, int], jax.Array]
    prior: jax.Array
    ok: jax.Array


def grid_process(
    u: jax.Array,
    kernels: Sequence[Components],
    axes: Sequence[np.ndarray],
    orders: Sequence[tuple[int, int]],
    *,
    envelope: str,
    jitter: float,
    exact_mean: bool = False,
) -> Solution:
    """Prior density and derivatives of grid values under the product of one kernel an axis.

    Args:
      u: (n_1, ..., n_D).
      kernels: components of each axis; see `jaxlab.gp.spectral`.
      axes: the points of each axis.
      orders: the derivatives that are wanted, (axis, order).
      envelope: of all kernels.
      jitter: added to the diagonals.
      exact_mean: whether K_e C_e^-1 of the other axes counts; else it is taken as the identity.

    Returns:
      Derivatives of the conditional mean, and -1/2 sum_d (N / n_d) log det C_d - 1/2 u^T C^-1 u.
    """
    grams = _factorised(
        [covariance(k, x, envelope, jitter) for k, x in zip(kernels, axes, strict=True)]
    )
    weights = [along(lambda v, g=g: solve(g, v), u, axis) for axis, g in enumerate(grams)]
    half = sum(u.size // u.shape[axis] * logdet(g) for axis, g in enumerate(grams))
    # C^-1 u = C_1^-1 C_2^-1 ... u, with the first factors on one side of the product, the last on
    # the other: with two axes no solve is done for it.
    left, right = (weights[0], weights[1] if len(axes) > 1 else u)
    for axis in range(2, len(axes)):
        right = along(lambda v, g=grams[axis]: solve(g, v), right, axis)
    derivatives = {}
    for axis, order in orders:
        matrix = kernel_matrix(kernels[axis], axes[axis], order, envelope=envelope)
        value = along(lambda v, m=matrix: m @ v, weights[axis], axis)
        for other, gram in enumerate(grams):
            if exact_mean and other != axis:
                # K C^-1 v = v - jitter C^-1 v
                value = value - jitter * along(lambda v, g=gram: solve(g, v), value, other)
        derivatives[axis, order] = value
    finite = [jnp.isfinite(g.log_determinant) for g in grams]
    prior = -0.5 * half - 0.5 * jnp.sum(left * right)
    return Solution(u, derivatives, prior, reduce(jnp.logical_and, finite))


def interpolate(
    u: jax.Array,
    kernels: Sequence[Components],
    axes: Sequence[np.ndarray],
    axes_test: Sequence[np.ndarray],
    *,
    envelope: str,
    jitter: float,
) -> jax.Array:
    """The conditional mean at a grid of other points: (m_1, ..., m_D)."""
    for axis, (part, old, new) in enumerate(zip(kernels, axes, axes_test, strict=True)):
        gram = covariance(part, old, envelope, jitter)
        factor = jax.lax.linalg.cholesky(gram, symmetrize_input=False)
        cross = cross_matrix(part, new, old, envelope=envelope)
        mean = lambda v, f=factor, k=cross: k @ jax.scipy.linalg.cho_solve((f, True), v)  # noqa: E731
        u = along(mean, u, axis)
    return u


def covariance(part: Mapping[str, Any], x: np.ndarray, envelope: str, jitter: float) -> jax.Array:
    """k(X, X) + jitter I: (n, n)."""
    matrix = kernel_matrix(part, x, envelope=envelope)
    return matrix + jitter * jnp.eye(len(x), dtype=matrix.dtype)


def along(fn: Any, u: jax.Array, axis: int) -> jax.Array:
    """Applies a function of (n, m) -> (k, m) along an axis of u, of length n; it then has k."""
    moved = jnp.moveaxis(u, axis, 0)
    out = fn(moved.reshape(len(moved), -1))
    return jnp.moveaxis(out.reshape(-1, *moved.shape[1:]), 0, axis)


def _factorised(matrices: list[jax.Array]) -> list[Gram]:
    if len({len(m) for m in matrices}) > 1 or len(matrices) < 2:
        return [factorise(m) for m in matrices]
    stacked = factorise(jnp.stack(matrices))
    return [Gram(m, stacked[1][i], stacked[2][i]) for i, m in enumerate(matrices)]
