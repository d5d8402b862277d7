"""Density, normaliser and divergences of the von Mises-Fisher distribution.

On the unit sphere of p dimensions its density at y is C_p(kappa) exp(kappa mu.y), with
`C_p(kappa) = kappa^(p/2-1) / ((2 pi)^(p/2) I_{p/2-1}(kappa))`.

Source: K. V. Mardia and P. E. Jupp, "Directional Statistics", 2000, sections 9.3 and 9.6.

Everything is computed from `log C_p(kappa) + kappa` and from 1 - A_p(kappa), which stay small where
kappa is large: no digits are lost to kappa itself.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import digamma, gammaln

from jaxlab.special.bessel import iv_ratio, log_iv_dv, log_ive
from jaxlab.special.promotion import check_above, check_unit, promoted

# The dimension where it is a number outside of tracing: large orders then cost less.
Known = float | None


def vmf_log_normalizer(p: Any, kappa: Any) -> jax.Array:
    """`log C_p(kappa)`, the logarithm of the density's constant.

    Args:
      p: dimension of the space, 2 or more: a number or an array of numbers, real ones too.
      kappa: concentration, 0 or more; broadcast with p.

    Returns:
      Of the broadcast shape, in kappa's dtype; -inf at kappa = inf. The derivative with respect to
      kappa is -A_p(kappa).

    Raises:
      ValueError: p is known to be below 2.

    >>> f"{vmf_log_normalizer(3, 0.0):.4f}, {-np.log(4 * np.pi):.4f}"  # uniform on the sphere
    '-2.5310, -2.5310'
    """
    known, p, kappa, dtype = of_dimension("vmf_log_normalizer", p, kappa)
    return log_constant(known, False, p, kappa).astype(dtype)


def vmf_mean_resultant(p: Any, kappa: Any) -> jax.Array:
    """`A_p(kappa) = I_{p/2}(kappa) / I_{p/2-1}(kappa)`, the length of the mean of the distribution.

    Args:
      p: dimension, 2 or more; as in `vmf_log_normalizer`.
      kappa: concentration, 0 or more.

    Returns:
      In [0, 1]; 0 at kappa = 0 and 1 at inf.

    >>> f"{vmf_mean_resultant(3, 2.0):.5f}, {1 / np.tanh(2.0) - 1 / 2.0:.5f}"
    '0.53731, 0.53731'
    """
    known, p, kappa, dtype = of_dimension("vmf_mean_resultant", p, kappa)
    return mean_resultant(known, p, kappa).astype(dtype)


def vmf_log_prob(y: Any, mu: Any, kappa: Any) -> jax.Array:
    """Logarithm of the density at y.

    Computed as `log C_p(kappa) + kappa - kappa |y - mu|^2 / 2`: where kappa is large, mu.y is too
    close to 1 to be subtracted from it.

    Args:
      y: points, unit vectors (..., p).
      mu: mean directions, unit vectors (..., p).
      kappa: concentrations (...), 0 or more; all three are broadcast.

    Returns:
      (...). At kappa = inf it is inf where y is mu, and -inf elsewhere.

    Raises:
      ValueError: y or mu is known to have rows that are not of length 1.

    >>> north = np.array([0.0, 0.0, 1.0])
    >>> f"{vmf_log_prob(north, north, 1e6):.4f}, {np.log(1e6 / (2 * np.pi)):.4f}"
    '11.9776, 11.9776'
    """
    check_unit("vmf_log_prob", y=y, mu=mu)
    (y, mu, kappa), dtype = promoted("vmf_log_prob", y=y, mu=mu, kappa=kappa)
    if y.shape[-1:] != mu.shape[-1:]:
        raise ValueError(
            f"vmf_log_prob: mu of {mu.shape} must have the {y.shape[-1:]} coordinates of y"
        )
    _check_dimension("vmf_log_prob", np.broadcast_shapes(y.shape, mu.shape)[-1])
    return _log_prob(y, mu, kappa).astype(dtype)


@jax.jit
def _log_prob(y: jax.Array, mu: jax.Array, kappa: jax.Array) -> jax.Array:
    y, mu = jnp.broadcast_arrays(y, mu)
    half_square = jnp.sum((y - mu) ** 2, axis=-1) / 2
    half_square, kappa = jnp.broadcast_arrays(half_square, kappa)
    p = y.shape[-1]
    scaled = log_constant(float(p), True, jnp.full_like(kappa, p), kappa)
    finite = kappa < jnp.inf
    spread = jnp.where(finite, kappa, jnp.ones_like(kappa)) * half_square
    at_end = jnp.where(half_square > 0, jnp.full_like(kappa, -jnp.inf), scaled)
    return jnp.where(finite, scaled - spread, at_end)


def vmf_entropy(p: Any, kappa: Any) -> jax.Array:
    """Differential entropy in nats: `-log C_p(kappa) - kappa A_p(kappa)`.

    Args:
      p: dimension, 2 or more.
      kappa: concentration, 0 or more.

    >>> f"{vmf_entropy(3, 0.0):.4f}"  # the logarithm of the sphere's area
    '2.5310'
    """
    known, p, kappa, dtype = of_dimension("vmf_entropy", p, kappa)
    return _entropy(known, p, kappa).astype(dtype)


@partial(jax.jit, static_argnums=0)
def _entropy(known: Known, p: jax.Array, kappa: jax.Array) -> jax.Array:
    finite = jnp.where(kappa < jnp.inf, kappa, jnp.ones_like(kappa))
    spread = finite * resultant_gap(known, p, finite)
    return spread - log_constant(known, True, p, kappa)


def vmf_kl_divergence(mu: Any, kappa: Any, other_mu: Any, other_kappa: Any) -> jax.Array:
    """Kullback-Leibler divergence from one distribution to another, in nats.

    Args:
      mu: mean directions of the first, unit vectors (..., p).
      kappa: its finite concentrations (...).
      other_mu: mean directions of the second (..., p).
      other_kappa: its finite concentrations (...).

    Returns:
      The mean of log f - log g under f, (...).

    Raises:
      ValueError: a mean direction is known not to be of length 1.

    >>> north = np.array([0.0, 0.0, 1.0])
    >>> float(vmf_kl_divergence(north, 3.0, north, 3.0))
    0.0
    """
    owner = "vmf_kl_divergence"
    check_unit(owner, mu=mu, other_mu=other_mu)
    (mu, k, other_mu, other_k), dtype = promoted(
        owner, mu=mu, kappa=kappa, other_mu=other_mu, other_kappa=other_kappa
    )
    _check_dimension(owner, np.broadcast_shapes(mu.shape, other_mu.shape)[-1])
    return _divergence(mu, k, other_mu, other_k).astype(dtype)


@jax.jit
def _divergence(mu: jax.Array, k: jax.Array, other_mu: jax.Array, other_k: jax.Array) -> jax.Array:
    mu, other_mu = jnp.broadcast_arrays(mu, other_mu)
    half_square = jnp.sum((mu - other_mu) ** 2, axis=-1) / 2
    half_square, k, other_k = jnp.broadcast_arrays(half_square, k, other_k)
    p = mu.shape[-1]
    known, dims = float(p), jnp.full_like(k, p)
    constants = log_constant(known, True, dims, k) - log_constant(known, True, dims, other_k)
    gap = resultant_gap(known, dims, k)
    turned = other_k * mean_resultant(known, dims, k) * half_square
    return constants - (k - other_k) * gap + turned


def of_dimension(owner: str, p: Any, x: Any) -> tuple[Known, jax.Array, jax.Array, Any]:
    """A dimension and another argument: p if it is a known number, both broadcast, the dtype."""
    _check_dimension(owner, p)
    known = float(p) if isinstance(p, int | float | np.number) else None
    (p, x), dtype = promoted(owner, p=p, x=x)
    p, x = jnp.broadcast_arrays(p, x)
    return known, p, x, dtype


def _check_dimension(owner: str, p: Any) -> None:
    if not isinstance(p, Tracer):
        check_above(owner, 2, p=p)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def log_constant(known: Known, scaled: bool, p: jax.Array, kappa: jax.Array) -> jax.Array:
    """`log C_p(kappa)`, with kappa added if `scaled`; p and kappa of one shape and dtype."""
    order = _order(known, p)
    inside, safe = _positive(kappa)
    far = order * jnp.log(safe) - p / 2 * np.log(2 * np.pi).astype(p.dtype) - log_ive(order, safe)
    at_zero = gammaln(p / 2) - np.log(2).astype(p.dtype) - p / 2 * np.log(np.pi).astype(p.dtype)
    at_end = jnp.full_like(p, jnp.inf if scaled else -jnp.inf)
    edge = jnp.where(kappa == 0, at_zero, jnp.where(kappa > 0, at_end, jnp.nan * at_end))
    return jnp.where(inside, far if scaled else far - safe, edge)


@partial(log_constant.defjvp, symbolic_zeros=True)
def _log_constant_jvp(known, scaled, primals, tangents):
    p, kappa = primals
    dp, dkappa = tangents
    change = jnp.zeros_like(kappa)
    if not isinstance(dkappa, SymbolicZero):
        along = resultant_gap(known, p, kappa) if scaled else -mean_resultant(known, p, kappa)
        change = change + along * dkappa
    if not isinstance(dp, SymbolicZero):
        inside, safe = _positive(kappa)
        order = _order(known, p)
        far = jnp.log(safe) - np.log(2 * np.pi).astype(p.dtype) - log_iv_dv(order, safe)
        at_zero = digamma(p / 2) - np.log(np.pi).astype(p.dtype)
        change = change + jnp.where(inside, far, at_zero) / 2 * dp
    return log_constant(known, scaled, p, kappa), change


@partial(jax.jit, static_argnums=0)
def mean_resultant(known: Known, p: jax.Array, kappa: jax.Array) -> jax.Array:
    """A_p(kappa), for p and kappa of one shape and dtype."""
    return iv_ratio(_order(known, p), kappa)


@partial(jax.jit, static_argnums=0)
def resultant_gap(known: Known, p: jax.Array, kappa: jax.Array) -> jax.Array:
    """`1 - A_p(kappa)`, to full relative accuracy where A is close to 1."""
    # Below, 1 - A is no difference of close numbers.
    near = (kappa >= 0) & (kappa < 0.25)
    inside = (kappa >= 0.25) & (kappa < jnp.inf)
    safe = jnp.where(inside, kappa, jnp.ones_like(kappa))
    above = _order(known, p) + 1
    # 1 / A = D + above / kappa, where D is the logarithmic derivative of I_above.
    _, less = jax.jvp(lambda x: log_ive(above, x), (safe,), (jnp.ones_like(safe),))
    far = iv_ratio(_order(known, p), safe) * (less + above / safe)
    at_end = jnp.where(kappa == jnp.inf, jnp.zeros_like(kappa), jnp.nan * p)
    close = 1 - mean_resultant(known, p, jnp.where(near, kappa, jnp.zeros_like(kappa)))
    return jnp.where(inside, far, jnp.where(near, close, at_end))


def _order(known: Known, p: jax.Array) -> Any:
    return p / 2 - 1 if known is None else known / 2 - 1


def _positive(kappa: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where kappa is neither 0 nor infinite, and kappa with 1 elsewhere."""
    inside = (kappa > 0) & (kappa < jnp.inf)
    return inside, jnp.where(inside, kappa, jnp.ones_like(kappa))
