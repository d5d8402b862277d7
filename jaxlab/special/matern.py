"""The Matern covariance function for any smoothness, and its logarithm.

Source: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006,
equation 4.14.

With s = sqrt(2 nu) r / ell it is `2^(1-nu) / Gamma(nu) s^nu K_nu(s)`. For large nu each factor is
beyond any floating-point number, and so are the logarithms large that must cancel: there the
uniform expansion of K is divided by its own limit at s = 0 first.
"""

from fractions import Fraction
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import digamma, gammaln

from jaxlab.special.bessel import kv_ratio, log_kv, log_kv_dv, log_kve
from jaxlab.special.promotion import check_above, promoted

# Of the expansion, by the bits of the dtype: its terms, and the order above which they suffice.
_TERMS = {64: 14, 32: 6}
_LARGE = {64: 29.0, 32: 15.0}


def matern(r: Any, nu: Any, ell: Any) -> jax.Array:
    """Covariance at distance r, 1 at r = 0.

    Differentiable in all three, twice in r and ell. At r = 0 the derivative in r is given as 0: it
    is one-sided for nu up to 1/2. There the second derivative is -nu / ((nu - 1) ell^2) for nu
    above 1, and given as 0 otherwise, where none exists.

    Args:
      r: distances, 0 or more; NaN for others.
      nu: smoothness, above 0; inf is the squared-exponential kernel.
      ell: length scale, above 0; all three are broadcast.

    Returns:
      In [0, 1], of the broadcast shape and the arguments' dtype.

    Raises:
      ValueError: nu or ell is known not to be above 0.

    >>> f"{matern(0.7, 0.5, 1.0):.6f}, {np.exp(-0.7):.6f}"
    '0.496585, 0.496585'
    """
    value, dtype = _log_matern("matern", r, nu, ell)
    return jnp.exp(value).astype(dtype)


def log_matern(r: Any, nu: Any, ell: Any) -> jax.Array:
    """The logarithm of `matern`, which stays finite where the covariance vanishes.

    >>> float(log_matern(1e4, 0.5, 1.0))
    -10000.0
    """
    value, dtype = _log_matern("log_matern", r, nu, ell)
    return value.astype(dtype)


def order_below(nu: jax.Array, s: jax.Array) -> jax.Array:
    """`K_{nu-1}(s) / K_nu(s)`, for positive nu and s of one shape and dtype."""
    above = nu >= 1
    one = jnp.ones_like(nu)
    ratio = 1 / kv_ratio(jnp.where(above, nu - 1, one), s)
    # K_{nu-1} is K_{1-nu}, and both logarithms are small.
    low = jnp.where(above, one / 2, nu)
    return jnp.where(above, ratio, jnp.exp(log_kve(1 - low, s) - log_kve(low, s)))


def _log_matern(owner: str, r: Any, nu: Any, ell: Any) -> tuple[jax.Array, Any]:
    check_above(owner, 0, strict=True, nu=nu, ell=ell)
    (r, nu, ell), dtype = promoted(owner, r=r, nu=nu, ell=ell)
    r, nu, ell = jnp.broadcast_arrays(r / ell, nu, jnp.ones_like(ell))
    return _at_any_distance(r, nu, ell), dtype


@jax.jit
def _at_any_distance(r: jax.Array, nu: jax.Array, ell: jax.Array) -> jax.Array:
    """Of r in length scales; all of one shape and dtype."""
    large = nu > _LARGE[jnp.finfo(nu.dtype).bits]
    smooth = nu == jnp.inf
    away = r == jnp.inf
    legal = (r >= 0) & (nu > 0) & (ell > 0)
    r = jnp.where(away, jnp.ones_like(r), r)
    fifty = jnp.full_like(nu, 50)
    above = jnp.where(large & ~smooth, nu, fifty)
    below = jnp.where(large, jnp.ones_like(nu), nu)
    found = jnp.where(large, _expanded(above, r), _direct(below, jnp.sqrt(2 * below) * r))
    found = jnp.where(smooth, -r * r / 2, found)
    found = jnp.where(away, jnp.full_like(r, -jnp.inf), found)
    return jnp.where(legal, found, jnp.full_like(r, jnp.nan))


def _expanded(nu: jax.Array, r: jax.Array) -> jax.Array:
    """For large nu, as a function of r / ell."""
    # hypot(nu, s) is nu h, and h - 1 is over.
    slant = jnp.sqrt(2 / nu) * r
    h = jnp.hypot(jnp.ones_like(nu), slant)
    over = slant * (slant / (1 + h))
    lead = nu * (jnp.log1p(over / 2) - over) - jnp.log1p(over) / 2
    return lead + _log_sum(nu * h, 1 / (h * h)) - _log_sum(nu, jnp.ones_like(nu))


def _log_sum(p: jax.Array, q: jax.Array) -> jax.Array:
    """`log sum_k W_k(q) (-1 / p)^k`, the expansion of K_v behind its leading term."""
    total = jnp.zeros_like(p)
    for polynomial in reversed(_polynomials(_TERMS[jnp.finfo(p.dtype).bits])[1:]):
        w = jnp.full_like(q, float(polynomial[-1]))
        for coefficient in reversed(polynomial[:-1]):
            w = w * q + float(coefficient)
        total = (total + w) * (-1 / p)
    return jnp.log1p(total)


@cache
def _polynomials(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """W_0 .. W_terms, where Debye's u_k(t) is t^k W_k(t^2), by their recurrence."""
    found: list[tuple[Fraction, ...]] = [(Fraction(1),)]
    for k in range(terms):
        new = [Fraction(0)] * (k + 2)
        for j, c in enumerate(found[-1]):
            power = k + 2 * j
            new[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            new[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        found.append(tuple(new))
    return tuple(found)


@jax.custom_jvp
def _direct(nu: jax.Array, s: jax.Array) -> jax.Array:
    """For moderate nu, by log K."""
    inside, safe = _positive(s)
    two = np.log(2).astype(nu.dtype)
    far = (1 - nu) * two - gammaln(nu) + nu * jnp.log(safe) + log_kv(nu, safe)
    # Above 0 by rounding only.
    far = jnp.minimum(far, jnp.zeros_like(far))
    return jnp.where(inside, far, jnp.zeros_like(s))


def _direct_jvp(primals, tangents):
    nu, s = primals
    dnu, ds = tangents
    change = jnp.zeros_like(s)
    if not isinstance(ds, SymbolicZero):
        change = change - s * _slope_over_s(nu, s) * ds
    if not isinstance(dnu, SymbolicZero):
        inside, safe = _positive(s)
        of_order = jnp.log(safe / 2) - digamma(nu) + log_kv_dv(nu, safe)
        change = change + jnp.where(inside, of_order, jnp.zeros_like(s)) * dnu
    return _direct(nu, s), change


_direct.defjvp(_direct_jvp, symbolic_zeros=True)


def _slope_over_s(nu: jax.Array, s: jax.Array) -> jax.Array:
    """The derivative in s over -s: `K_{nu-1}(s) / (s K_nu(s))`; at 0 its limit if there is one."""
    inside, safe = _positive(s)
    one = jnp.ones_like(nu)
    curved = nu > 1
    limit = jnp.where(curved, 1 / (2 * jnp.where(curved, nu - 1, one)), jnp.zeros_like(nu))
    return jnp.where(inside, order_below(nu, safe) / safe, limit)


def _positive(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    inside = s > 0
    return inside, jnp.where(inside, s, jnp.ones_like(s))
