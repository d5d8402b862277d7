"""Over-parameterised matrix sensing, and the preconditioned gradient descent that solves it fast.

Sources: T. Tong, C. Ma, Y. Chi, "Accelerating Ill-Conditioned Low-Rank Matrix Estimation via Scaled
Gradient Descent", JMLR 2021; X. Xu, Y. Shen, Y. Chi, C. Ma, "The Power of Preconditioning in
Overparameterized Low-Rank Matrix Sensing", ICML 2023 (a constant damping, small start); J. Zhang,
S. Fattahi, R. Zhang, "Preconditioned Gradient Descent for Over-Parameterized Nonconvex Matrix
Factorization", NeurIPS 2021 (PrecGD: damping by the root of the loss).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest


def sensing_loss(x: jax.Array, a: jax.Array, y: jax.Array) -> jax.Array:
    """`1 / (4 m) sum_i (<a_i, x x^T> - y_i)^2`.

    Args:
      x: (n, k), floating.
      a: (m, n, n), symmetric in the sources, which the gradient does not rely on.
      y: (m,), the measurements.

    Returns:
      A scalar of x's dtype.

    >>> float(sensing_loss(jnp.array([[2.0]]), jnp.array([[[3.0]]]), jnp.array([10.0])))
    1.0
    """
    residual = jnp.einsum("mij,ik,jk->m", a, x, x) - y
    return jnp.mean(residual**2) / 4


def scaled_gd(
    learning_rate: optax.ScalarOrSchedule, lam: jax.typing.ArrayLike | str = "sqrt_loss"
) -> optax.GradientTransformationExtraArgs:
    """ScaledGD(lambda): `x - learning_rate * grad (x^T x + lam I)^-1` for every leaf.

    Near a solution of the rank that x has the rate does not depend on the conditioning of x x^T.
    With more columns than that x^T x becomes singular and `lam` must be above 0.

    Args:
      learning_rate: a number or a schedule of the step.
      lam: a number, e.g. a fraction of the smallest singular value of the solution x x^T; or
        "sqrt_loss", PrecGD: the root of the loss, which `update` takes as its argument `value`.

    Returns:
      A transformation for trees of leaves (..., n, k); the updates are to be added. Other leaves
      need another optimizer, by `optax.multi_transform` for instance.

    Raises:
      ValueError: `lam` is negative or unknown; from `update`: a leaf has fewer than two axes, or
        the parameters, or the loss that "sqrt_loss" needs, are not given.

    >>> tx = scaled_gd(0.5, lam=1.0)
    >>> x, grad = jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [6.0]])
    >>> updates, _ = tx.update(grad, tx.init(x), x)
    >>> updates[:, 0].round(4).tolist()
    [-0.25, -0.5]
    """
    damping = _damping(lam)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any):
        if params is None:
            raise ValueError("scaled_gd: params=None; nearest: update(grads, state, params)")
        damped = damping(extra.get("value"))
        return jax.tree.map(lambda g, x: _scaled(g, x, damped), updates, params), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    descend = optax.scale_by_learning_rate(learning_rate)
    return optax.with_extra_args_support(optax.chain(scaled, descend))


def _scaled(grad: jax.Array, x: jax.Array, damped: jax.Array) -> jax.Array:
    if x.ndim < 2:
        raise ValueError(
            f"scaled_gd: a leaf of shape {x.shape} has no factor's two axes (n, k); nearest: "
            "optax.multi_transform with another optimizer for it"
        )
    wide = accumulator(x.dtype)
    factor, k = x.astype(wide), x.shape[-1]
    gram = factor.mT @ factor
    # As far as rounding goes: where damping vanishes with the loss, the system must not.
    floor = jnp.trace(gram, axis1=-2, axis2=-1) * jnp.finfo(wide).eps
    diagonal = (damped.astype(wide) + floor)[..., None, None]
    eye = jnp.eye(k, dtype=wide).reshape((1,) * (x.ndim - 2) + (k, k))
    lower = jnp.linalg.cholesky(gram + diagonal * eye)
    solved = jax.scipy.linalg.cho_solve((lower, True), grad.astype(wide).mT)
    return solved.mT.astype(grad.dtype)


def _damping(lam: jax.typing.ArrayLike | str) -> Callable[[Any], jax.Array]:
    """From the loss to lambda."""
    if isinstance(lam, str):
        if lam not in _OF_THE_LOSS:
            raise ValueError(f"scaled_gd: lam={lam!r} is unknown; {suggest(lam, _OF_THE_LOSS)}")
        return _OF_THE_LOSS[lam]
    if not isinstance(lam, Tracer) and not bool(jnp.all(jnp.asarray(lam) >= 0)):
        raise ValueError(f"scaled_gd: lam={lam} must be 0 or more; nearest: 0")
    return lambda value: jnp.asarray(lam)


def _root(value: Any) -> jax.Array:
    if value is None:
        raise ValueError(
            "scaled_gd: lam='sqrt_loss' needs the loss; nearest: "
            "update(grads, state, params, value=loss)"
        )
    return jnp.sqrt(jnp.asarray(value))


_OF_THE_LOSS: dict[str, Callable[[Any], jax.Array]] = {"sqrt_loss": _root}
