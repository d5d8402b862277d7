"""The power series of log I, for small hypot(v, x): all terms are positive, so nothing cancels.

Source: NIST Digital Library of Mathematical Functions, 10.25.2.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.bessel.zeta import digamma_1p, log_gamma_1p


def log_series(v: jax.Array, x: jax.Array, terms: int) -> jax.Array:
    """Log I_v(x), `x` positive and so small that e^x does not overflow."""
    return v * _log_half(x) - log_gamma_1p(v) + jnp.log1p(_sums(v, x, terms)[0])


def series_dx(v: jax.Array, x: jax.Array, terms: int) -> jax.Array:
    """Its derivative with respect to x: `v / x + I_{v+1}(x) / I_v(x)`."""
    return v / x + x * _ratio_over_x(v, x, terms)


def series_dxx(v: jax.Array, x: jax.Array, terms: int) -> jax.Array:
    """The second derivative, by the differential equation without v^2 / x^2, which cancels."""
    ratio = _ratio_over_x(v, x, terms)
    # Not v / x / x, which is compiled as v over a square that may be 0.
    inverse = 1 / x
    return 1 - (2 * v + 1) * ratio - (x * ratio) ** 2 - v * inverse * inverse


def _ratio_over_x(v: jax.Array, x: jax.Array, terms: int) -> jax.Array:
    """`I_{v+1}(x) / (x I_v(x))`."""
    here, above = _sums(v, x, terms)[0], _sums(v + 1, x, terms)[0]
    return 0.5 / (v + 1) * ((1 + above) / (1 + here))


def series_dv(v: jax.Array, x: jax.Array, terms: int) -> jax.Array:
    """Its derivative with respect to v."""
    total, weighted = _sums(v, x, terms)
    return _log_half(x) - digamma_1p(v) - weighted / (1 + total)


def _log_half(x: jax.Array) -> jax.Array:
    # x / 2 is 0 where it would be subnormal.
    return jnp.log(x) - np.log(2).astype(x.dtype)


def _sums(v: jax.Array, x: jax.Array, terms: int) -> tuple[jax.Array, jax.Array]:
    """The terms t_k behind the first, and those times H_k = 1 / (v + 1) + ... + 1 / (v + k)."""
    quarter = x * x / 4
    term, harmonic = jnp.ones_like(x), jnp.zeros_like(x)
    total, weighted = jnp.zeros_like(x), jnp.zeros_like(x)
    for k in range(1, terms):
        inverse = 1 / (v + k)
        term = term * (quarter / k) * inverse
        harmonic = harmonic + inverse
        total = total + term
        weighted = weighted + term * harmonic
    return total, weighted
