"""Spectral mixture kernels of one variable and their derivatives, in closed form and signed.

k(z) = sum_q w_q G(z; l_q) cos(2 pi f_q z), z = x - x', with an envelope G: Matern (whose spectrum
is a Student t, so that k has a mixture of them as its spectrum) or Gaussian. Without frequencies
k is a sum of envelopes.

Source: S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe, "Solving High Frequency and
Multi-Scale PDEs with Gaussian Processes", ICLR 2024, eqs. 6 and 7. Differs from it: no derivative
passes through |z|, whose derivative at 0 is a matter of convention and decides the diagonal of k''.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.registry import suggest

# By component: log_w (Q,), log_ls (Q,), and freq (Q,) unless the kernel has no cosine.
Components = Mapping[str, Any]
# (signed z, inverse length or its square) -> derivative of the envelope
_Derivative = Callable[[jax.Array, jax.Array], jax.Array]


class Envelope(NamedTuple):
    """A stationary function of z.

    Attributes:
      inverse_length: factor of exp(log_ls) that the derivatives take.
      power: of the inverse length that exp(log_ls) is.
      derivatives: by order, as far as they are continuous at 0.
    """

    inverse_length: float
    power: int
    derivatives: tuple[_Derivative, ...]


def _decay(z: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.exp(-a * jnp.abs(z))


ENVELOPES = {
    "matern12": Envelope(1.0, 1, (_decay,)),
    "matern32": Envelope(
        math.sqrt(3.0),
        1,
        (
            lambda z, a: (1 + a * jnp.abs(z)) * _decay(z, a),
            lambda z, a: -(a**2) * z * _decay(z, a),
            lambda z, a: -(a**2) * (1 - a * jnp.abs(z)) * _decay(z, a),
        ),
    ),
    "matern52": Envelope(
        math.sqrt(5.0),
        1,
        (
            lambda z, a: (1 + a * jnp.abs(z) + a**2 * z**2 / 3) * _decay(z, a),
            lambda z, a: -(a**2 / 3) * z * (1 + a * jnp.abs(z)) * _decay(z, a),
            lambda z, a: -(a**2 / 3) * (1 + a * jnp.abs(z) - a**2 * z**2) * _decay(z, a),
            lambda z, a: (a**4 / 3) * z * (3 - a * jnp.abs(z)) * _decay(z, a),
        ),
    ),
    "gaussian": Envelope(
        1.0,
        2,
        (
            lambda z, b: jnp.exp(-b * z**2),
            lambda z, b: -2 * b * z * jnp.exp(-b * z**2),
            lambda z, b: (4 * b**2 * z**2 - 2 * b) * jnp.exp(-b * z**2),
            lambda z, b: (12 * b**2 * z - 8 * b**3 * z**3) * jnp.exp(-b * z**2),
        ),
    ),
}

# cos(m z) differentiated 0 to 3 times.
_WAVES: tuple[_Derivative, ...] = (
    lambda z, m: jnp.cos(m * z),
    lambda z, m: -m * jnp.sin(m * z),
    lambda z, m: -(m**2) * jnp.cos(m * z),
    lambda z, m: m**3 * jnp.sin(m * z),
)


def check_order(envelope: str, order: int) -> None:
    """Refuses an unknown envelope, and a derivative that it does not have everywhere.

    Raises:
      ValueError: one of the two.
    """
    if envelope not in ENVELOPES:
        raise ValueError(f"envelope={envelope!r} is unknown; {suggest(envelope, ENVELOPES)}")
    most = len(ENVELOPES[envelope].derivatives) - 1
    if not 0 <= order <= most:
        smooth = [n for n, e in ENVELOPES.items() if len(e.derivatives) > order >= 0]
        raise ValueError(
            f"order={order}: {envelope!r} has derivatives of orders 0 to {most} that are "
            f"continuous; of this order have them: {', '.join(smooth) or 'none'}"
        )


def spectral_kernel(
    components: Components, z: jax.Array, order: int = 0, *, envelope: str = "matern52"
) -> jax.Array:
    """The kernel, or a derivative of it with respect to its first argument.

    Args:
      components: log_w (Q,), the logarithms of the weights; log_ls (Q,), of inverse lengths (of
        inverse squared lengths for "gaussian"); freq (Q,), in cycles per unit, if there is one.
      z: signed differences x - x' of any shape, float32 or float64.
      order: 0 to 3, and no more than the envelope has.
      envelope: "matern12", "matern32", "matern52" or "gaussian".

    Returns:
      An array of the shape of `z`: symmetric in z for even orders, antisymmetric for odd ones.

    Raises:
      ValueError: the envelope is unknown or not smooth enough.

    >>> one = {"log_w": jnp.zeros(1), "log_ls": jnp.zeros(1), "freq": jnp.ones(1)}
    >>> [round(float(spectral_kernel(one, jnp.zeros(()), order)), 2) for order in range(3)]
    [1.0, 0.0, -41.15]
    """
    check_order(envelope, order)
    shape = (-1,) + (1,) * z.ndim
    length, _, derivatives = ENVELOPES[envelope]
    scale = (length * jnp.exp(components["log_ls"])).reshape(shape)
    weight = jnp.exp(components["log_w"]).reshape(shape)
    z = z[None]
    if "freq" in components:
        m = (2 * math.pi * components["freq"]).reshape(shape)
        found = jnp.zeros_like(z)
        for j in range(order + 1):
            terms = derivatives[j](z, scale) * _WAVES[order - j](z, m)
            found = found + math.comb(order, j) * terms
    else:
        found = derivatives[order](z, scale)
    return jnp.sum(weight * found, axis=0)


def is_uniform(x: np.ndarray) -> bool:
    """Whether the points of an axis have equal distances, to rounding."""
    steps = np.diff(x)
    return bool(np.all(np.abs(steps - steps.mean()) <= 1e-9 * abs(x[-1] - x[0])))


def kernel_matrix(
    components: Components, x: np.ndarray, order: int = 0, *, envelope: str = "matern52"
) -> jax.Array:
    """The derivative of some order of k(x_i - x_j), between all points of an axis.

    Between points of equal distances it is a Toeplitz matrix, for which n Q terms are evaluated
    instead of n^2 Q.

    Args:
      components: as for `spectral_kernel`; the result has their dtype.
      x: (n,), a NumPy array: whether it is uniform decides what is compiled.
      order: of the derivative, with respect to x_i.
      envelope: as for `spectral_kernel`.

    Returns:
      (n, n): symmetric for even orders, antisymmetric for odd ones.
    """
    if not is_uniform(x):
        return cross_matrix(components, x, x, order, envelope=envelope)
    step = (x[-1] - x[0]) / (len(x) - 1)
    lags = jnp.asarray(step * np.arange(len(x)), components["log_w"].dtype)
    return toeplitz(spectral_kernel(components, lags, order, envelope=envelope), (-1) ** order)


def cross_matrix(
    components: Components,
    x: np.ndarray,
    y: np.ndarray,
    order: int = 0,
    *,
    envelope: str = "matern52",
) -> jax.Array:
    """As `kernel_matrix`, between the points `x` (m,) and `y` (n,) of any distances: (m, n)."""
    z = jnp.asarray(x[:, None] - y[None, :], components["log_w"].dtype)
    return spectral_kernel(components, z, order, envelope=envelope)


def toeplitz(column: jax.Array, sign: int = 1) -> jax.Array:
    """The matrix t_ij = c_(i-j) for i >= j, and sign c_(j-i) above the diagonal.

    Made by copies and reshapes only, so that its transpose, which backpropagation uses, is a sum
    of a dense array and no scatter.

    Args:
      column: c, (n,).
      sign: 1 for a symmetric matrix, -1 for an antisymmetric one.

    >>> toeplitz(jnp.array([0.0, 1.0, 2.0]), -1)
    Array([[ 0., -1., -2.],
           [ 1.,  0., -1.],
           [ 2.,  1.,  0.]], dtype=float32)
    """
    n = len(column)
    # One period of 2 n entries: read with rows of 2 n - 1, each row begins one entry earlier.
    period = jnp.concatenate([column[:0:-1], column[:1], sign * column[1:], column[:1]])
    rows = jnp.broadcast_to(period[None], (n, 2 * n)).reshape(-1)
    return rows[: n * (2 * n - 1)].reshape(n, 2 * n - 1)[:, n - 1 :]
