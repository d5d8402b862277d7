"""The Matern covariance function for any smoothness, and its logarithm.

Source: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006,
equation 4.14.

With s = sqrt(2 nu) r / ell it is `2^(1-nu) / Gamma(nu) s^nu K_nu(s)`. For large nu each factor is
beyond any floating-point number, and so are the logarithms large that must cancel: there the
uniform expansion of K is divided by its own limit at s = 0 first.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import digamma, gammaln

from jaxlab.special.bessel import kv_ratio, log_kv_dv, log_kve
from jaxlab.special.bessel.debye import debye_polynomials, debye_sum
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


def _log_matern(owner: str, r: Any, nu: Any, ell: Any) -> tuple[jax.Array, Any]:
    check_above(owner, 0, strict=True, nu=nu, ell=ell)
    known = None if isinstance(nu, jax.Array) else np.asarray(nu)
    (r, nu, ell), dtype = promoted(owner, r=r, nu=nu, ell=ell)
    sides = (False, True)
    if known is not None:
        large = known.astype(nu.dtype).ravel() > _LARGE[jnp.finfo(nu.dtype).bits]
        sides = tuple(side for side in sides if side in large)
    return _at_any_distance(sides, r, nu, ell), dtype


@partial(jax.jit, static_argnums=0)
def _at_any_distance(
    sides: tuple[bool, ...], r: jax.Array, nu: jax.Array, ell: jax.Array
) -> jax.Array:
    """All of one dtype; `sides`: whether some orders may not be large, or may be."""
    r, nu, ell = jnp.broadcast_arrays(r / ell, nu, jnp.ones_like(ell))
    large = nu > _LARGE[jnp.finfo(nu.dtype).bits]
    smooth = nu == jnp.inf
    away = r == jnp.inf
    legal = (r >= 0) & (nu > 0) & (ell > 0)
    r = jnp.where(away, jnp.ones_like(r), r)
    found = -r * r / 2
    if True in sides:
        above = jnp.where(large & ~smooth, nu, jnp.full_like(nu, 50))
        found = jnp.where(smooth, found, _expanded(above, r))
    if False in sides:
        below = jnp.where(large, jnp.ones_like(nu), nu)
        found = jnp.where(large, found, _direct(below, jnp.sqrt(2 * below) * r))
    found = jnp.where(away, jnp.full_like(r, -jnp.inf), found)
    return jnp.where(legal, found, jnp.full_like(r, jnp.nan))


def _expanded(nu: jax.Array, r: jax.Array) -> jax.Array:
    """For large nu, as a function of r / ell."""
    # hypot(nu, s) is nu h, and h - 1 is over.
    slant = jnp.sqrt(2 / nu) * r
    h = jnp.hypot(jnp.ones_like(nu), slant)
    over = slant * (slant / (1 + h))
    lead = nu * (jnp.log1p(over / 2) - over) - jnp.log1p(over) / 2
    polynomials = debye_polynomials(_TERMS[jnp.finfo(nu.dtype).bits])
    at_distance = debye_sum(1 / (h * h), -1 / (nu * h), polynomials)
    at_zero = debye_sum(jnp.ones_like(nu), -1 / nu, polynomials)
    return lead + jnp.log1p(at_distance) - jnp.log1p(at_zero)


@jax.custom_jvp
def _direct(nu: jax.Array, s: jax.Array) -> jax.Array:
    """For moderate nu, by log K."""
    inside, safe = _positive(s)
    two = np.log(2).astype(nu.dtype)
    # All but s itself is small.
    far = (1 - nu) * two - gammaln(nu) + nu * jnp.log(safe) + log_kve(nu, safe) - safe
    # Above 0 by rounding only.
    far = jnp.minimum(far, jnp.zeros_like(far))
    return jnp.where(inside, far, jnp.zeros_like(s))


def _direct_jvp(primals, tangents):
    nu, s = primals
    dnu, ds = tangents
    change = jnp.zeros_like(s)
    if not isinstance(ds, SymbolicZero):
        change = change - _slope(nu, s) * ds
    if not isinstance(dnu, SymbolicZero):
        inside, safe = _positive(s)
        of_order = jnp.log(safe / 2) - digamma(nu) + log_kv_dv(nu, safe)
        change = change + jnp.where(inside, of_order, jnp.zeros_like(s)) * dnu
    return _direct(nu, s), change


_direct.defjvp(_direct_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _slope(nu: jax.Array, s: jax.Array) -> jax.Array:
    """Minus the derivative in s: `K_{nu-1}(s) / K_nu(s)`, and given as 0 at s = 0."""
    inside, safe = _positive(s)
    curved, limit = _limit(nu)
    # The ratio of K is found by dividing by s, which may overflow.
    found = jnp.where(curved & _least(s), safe * limit, kv_ratio(-nu, safe))
    return jnp.where(inside, found, jnp.zeros_like(s))


@_slope.defjvp
def _slope_jvp(primals, tangents):
    nu, s = primals
    dnu, ds = tangents
    found, near = _slope(nu, s), _near(s)
    # That of kv_ratio divides by s^2; here, by the recurrence, only by s.
    safe = jnp.where(near, jnp.ones_like(s), s)
    away = lambda nu, s: kv_ratio(-nu, s)  # noqa: E731
    _, of_order = jax.jvp(away, (nu, safe), (jnp.where(near, jnp.zeros_like(dnu), dnu), ds))
    curved, limit = _limit(nu)
    inside, positive = _positive(s)
    by_recurrence = found * found + ((2 * nu - 1) * (found / positive) - 1)
    along = jnp.where(inside & ~(curved & _least(s)), by_recurrence, limit)
    return found, jnp.where(near, along * ds, of_order)


def _limit(nu: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the slope over s has a finite limit at s = 0, nu > 1, and the limit, or 0."""
    curved = nu > 1
    over = 1 / (2 * jnp.where(curved, nu - 1, jnp.ones_like(nu)))
    return curved, jnp.where(curved, over, jnp.zeros_like(nu))


def _near(s: jax.Array) -> jax.Array:
    """Where the square of s, or of s over the order, may underflow."""
    return s < 64 * float(jnp.finfo(s.dtype).tiny) ** 0.5


def _least(s: jax.Array) -> jax.Array:
    """Where the order over s may overflow."""
    return s < 1024 * float(jnp.finfo(s.dtype).tiny)


def _positive(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    # What is subnormal is 0 to a CPU, and to `kv_ratio`.
    inside = s >= float(jnp.finfo(s.dtype).tiny)
    return inside, jnp.where(inside, s, jnp.ones_like(s))
