"""The inverse of a damped empirical Fisher matrix that was built from m gradients, never formed.

F = damp I + G^T G / m for G: (m, d) has the inverse (I - z^T z) / damp with z: (m, d), so that
products, the diagonal and single entries cost no more than a pass over z.

Source: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
Second-Order Information", NeurIPS 2021, the static algorithm. Gradients are those of the mean loss
of a mini-batch; the divisor is m, the number of rows, from the first step of the recursion on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.optim.mfac.checks import check_damp

_HIGHEST = jax.lax.Precision.HIGHEST


class FisherFactor(NamedTuple):
    """F^-1 = (I - z^T z) / damp.

    Attributes:
      z: (m, d), float32 or float64.
      damp: scalar.
    """

    z: jax.Array
    damp: jax.Array

    @property
    def m(self) -> int:
        """The number of gradients."""
        return self.z.shape[0]


def static_factor(
    grads: jax.Array, damp: jax.Array | float, *, method: str = "cholesky"
) -> FisherFactor:
    """Factors the inverse of damp I + G^T G / m.

    Args:
      grads: (m, d), floating; computed with in float32, or float64 for float64.
      damp: positive.
      method: "cholesky" of the (m, m) matrix damp m I + G G^T, or "recursion" (Sherman and
        Morrison, row after row; the paper's form). Both give the same z.

    Raises:
      ValueError: `grads` is no floating (m, d) with m >= 1, `damp` is not positive, or `method` is
        unknown.

    >>> f = static_factor(jnp.array([[1.0, 0.0], [1.0, 1.0]]), 1.0)
    >>> [round(float(x), 4) for x in static_diag(f)]
    [0.5455, 0.7273]
    """
    check_gradients("static_factor", grads, damp)
    if method not in _METHODS:
        raise ValueError(f"static_factor: method={method!r}; {suggest(method, _METHODS)}")
    g = grads.astype(accumulator(grads.dtype))
    damp = jnp.asarray(damp, g.dtype)
    return FisherFactor(_METHODS[method](g, damp), damp)


def static_ihvp(f: FisherFactor, x: jax.Array) -> jax.Array:
    """F^-1 x for x: (d,).

    Raises:
      ValueError: x is not as long as the gradients.
    """
    if x.shape != f.z.shape[1:]:
        raise ValueError(f"static_ihvp: x of {x.shape} must be of {f.z.shape[1:]}")
    x = x.astype(f.z.dtype)
    inside = jnp.matmul(jnp.matmul(f.z, x, precision=_HIGHEST), f.z, precision=_HIGHEST)
    return (x - inside) / f.damp


def static_diag(f: FisherFactor) -> jax.Array:
    """The diagonal of F^-1, (d,), clamped away from 0: see `positive`."""
    return positive((1 - jnp.sum(jnp.square(f.z), axis=0)) / f.damp, f.damp)


def static_element(f: FisherFactor, k: jax.Array | int, l: jax.Array | int) -> jax.Array:  # noqa: E741
    """The entry (k, l) of F^-1."""
    same = jnp.asarray(jnp.asarray(k) == jnp.asarray(l), f.z.dtype)
    return (same - jnp.sum(f.z[:, k] * f.z[:, l])) / f.damp


def static_block(f: FisherFactor, idx: jax.Array) -> jax.Array:
    """The entries of F^-1 between some coordinates, idx: (c,) integers without repetition.

    Returns:
      (c, c).
    """
    z = f.z[:, idx]
    inside = jnp.matmul(z.T, z, precision=_HIGHEST)
    return (jnp.eye(z.shape[1], dtype=z.dtype) - inside) / f.damp


def positive(diag: jax.Array, damp: jax.Array) -> jax.Array:
    """A diagonal of F^-1 with what rounding made 0 or negative put at eps / damp.

    1 - z^2 cancels where the gradients say much more than the damping does. A negative entry would
    become a negative saliency, and the weight that matters most would be the first to go.
    """
    return jnp.maximum(diag, jnp.finfo(diag.dtype).eps / damp)


def check_gradients(owner: str, grads: jax.Array, damp: jax.Array | float) -> None:
    """Raises a ValueError unless there are gradients and a finite damping above 0."""
    if grads.ndim != 2 or not jnp.issubdtype(grads.dtype, jnp.floating):
        raise ValueError(
            f"{owner}: grads must be floating, (m, d), not {grads.dtype} of {grads.shape}"
        )
    if grads.shape[0] < 1:
        raise ValueError(f"{owner}: m={grads.shape[0]} gradients; nearest: 1")
    check_damp(owner, damp)


def _by_cholesky(g: jax.Array, damp: jax.Array) -> jax.Array:
    m = g.shape[0]
    # damp m I + G G^T and not I + G G^T / (damp m): no factor of 1e5 enters the factorisation.
    gram = jnp.matmul(g, g.T, precision=_HIGHEST) + damp * m * jnp.eye(m, dtype=g.dtype)
    return jax.lax.linalg.triangular_solve(jnp.linalg.cholesky(gram), g, left_side=True, lower=True)


def _by_recursion(g: jax.Array, damp: jax.Array) -> jax.Array:
    m = g.shape[0]

    def row(z: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        # Rows that are still 0 take part in the product and change nothing.
        inside = jnp.matmul(jnp.matmul(z, g[i], precision=_HIGHEST), z, precision=_HIGHEST)
        v = (g[i] - inside) / damp
        q = m + jnp.sum(g[i] * v)
        return z.at[i].set(v * jnp.sqrt(damp / q)), None

    return jax.lax.scan(row, jnp.zeros_like(g), jnp.arange(m))[0]


_METHODS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cholesky": _by_cholesky,
    "recursion": _by_recursion,
}
