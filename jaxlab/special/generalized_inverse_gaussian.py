"""The generalized inverse Gaussian distribution: density and moments.

Source: B. Jorgensen, "Statistical Properties of the Generalized Inverse Gaussian Distribution",
1982. Its density is proportional to `x^(p-1) exp(-(a x + b / x) / 2)` for x > 0.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.special.bessel import kv_ratio, log_kve
from jaxlab.special.promotion import check_above, promoted


def gig_log_prob(x: Any, p: Any, a: Any, b: Any) -> jax.Array:
    """Logarithm of the density at x.

    With omega = sqrt(a b), eta = sqrt(b / a) and z = x / eta it is
    `-log(2 eta) - log K_p(omega) - omega + (p - 1) log z - omega (z - 1)^2 / (2 z)`: nothing that
    grows with omega is subtracted.

    Args:
      x: where; -inf for x <= 0.
      p: order, any real number.
      a: above 0.
      b: above 0; all four are broadcast.

    Raises:
      ValueError: a or b is known not to be above 0.

    >>> f"{gig_log_prob(1.0, -0.5, 1.0, 1.0):.4f}"  # inverse Gaussian: -log(2 pi) / 2
    '-0.9189'
    """
    (x, p, a, b), dtype = _arguments("gig_log_prob", x=x, p=p, a=a, b=b)
    return _log_density(x, p, a, b).astype(dtype)


@jax.jit
def _log_density(x: jax.Array, p: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    omega, eta = _omega_eta(a, b)
    inside, nan = (x > 0) & (x < jnp.inf), jnp.isnan(x)
    x, one = jnp.where(inside, x, jnp.ones_like(x)), jnp.ones_like(x)
    z = x / eta
    # The quotient may be 0 or infinite where its logarithm is not.
    held = (z > 0) & (z < jnp.inf)
    z = jnp.where(held, z, one)
    log_z = jnp.where(held, jnp.log(z), jnp.log(x) - jnp.log(eta))
    away = jnp.where(held, (z - 1) / z * (z - 1), one * jnp.inf)
    constant = jnp.log(2 * eta) + log_kve(p, omega)
    density = (p - 1) * log_z - omega * away / 2 - constant
    outside = jnp.where(nan, one * jnp.nan, -jnp.inf * one)
    return jnp.where(inside, density, outside)


def gig_mean(p: Any, a: Any, b: Any) -> jax.Array:
    """The mean: `sqrt(b / a) K_{p+1}(sqrt(a b)) / K_p(sqrt(a b))`.

    Args:
      p: order, any real number.
      a: above 0.
      b: above 0.

    Raises:
      ValueError: a or b is known not to be above 0.

    >>> f"{gig_mean(-0.5, 4.0, 1.0):.4f}"  # inverse Gaussian: sqrt(b / a)
    '0.5000'
    """
    (p, a, b), dtype = _arguments("gig_mean", p=p, a=a, b=b)
    omega, eta = _omega_eta(a, b)
    return (eta * kv_ratio(p, omega)).astype(dtype)


def gig_variance(p: Any, a: Any, b: Any) -> jax.Array:
    """The variance, from the ratios of neighbouring orders; arguments as those of `gig_mean`.

    Its relative error is eps mean^2 / variance: it is a difference.

    >>> f"{gig_variance(-0.5, 1.0, 1.0):.4f}"  # inverse Gaussian of mean 1 and shape 1
    '1.0000'
    """
    (p, a, b), dtype = _arguments("gig_variance", p=p, a=a, b=b)
    omega, eta = _omega_eta(a, b)
    up = kv_ratio(p, omega)
    return (eta * up * (eta * (kv_ratio(p + 1, omega) - up))).astype(dtype)


def _omega_eta(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sqrt(a b) and sqrt(b / a), which may exist where a b and b / a do not."""
    return jnp.sqrt(a) * jnp.sqrt(b), jnp.sqrt(b) / jnp.sqrt(a)


def _arguments(owner: str, **given: Any) -> tuple[list[jax.Array], Any]:
    check_above(owner, 0, strict=True, a=given["a"], b=given["b"])
    arrays, dtype = promoted(owner, **given)
    return jnp.broadcast_arrays(*arrays), dtype
