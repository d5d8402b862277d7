"""log I, log K and their derivatives for arguments that are positive and finite, of one dtype.

Every piece of the scheme is evaluated everywhere, on arguments that suit it, and chosen afterwards,
so that none that is not used makes a NaN; only a CPU leaves out what no element of an array needs.
The pieces are smooth, and so are derivatives of any order within a region.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.varying import on_one_device
from jaxlab.special.bessel import integral, series
from jaxlab.special.bessel.debye import log_uniform, terms_above, uniform_dv, uniform_dx

Piece = Callable[[jax.Array, jax.Array], jax.Array]


class Scheme(NamedTuple):
    """What the accuracy of a dtype needs.

    Attributes:
      least: hypot(v, x) above which the uniform expansion holds.
      terms: of the expansion, there.
      rounding: what terms that are left out may add up to.
      series: terms of the power series.
      nodes: intervals of the trapezoidal rule.
      cut: the integrand is left out below e^-cut of its maximum.
      tiny: x below which K is its limit.
    """

    least: float
    terms: int
    rounding: float
    series: int
    nodes: int
    cut: float
    tiny: float

    def terms_above(self, least: float, scaled: bool) -> int:
        """Terms of the expansion where hypot(v, x) is above `least`; 0 where it may not hold.

        Without `scaled`, values are sums with hypot(v, x): of that, a hundredth of the rounding.
        """
        if not least > self.least:
            return 0
        return terms_above(least, self.error_above(least, scaled), self.terms)

    def error_above(self, least: float, scaled: bool) -> float:
        """What may be left out of the expansion's sum, there."""
        return self.rounding * (1 if scaled else max(1, least / 100))


SCHEMES = {
    "float64": Scheme(25.0, 14, 1e-16, 46, 96, 40.0, 1e-8),
    "float32": Scheme(15.0, 6, 1e-8, 30, 48, 17.0, 1e-4),
}


class Function(NamedTuple):
    """Which function, and what is known of its arguments.

    Attributes:
      sign: 1 for log I, -1 for log K.
      scaled: whether x is taken from log I or added to log K.
      terms: of the uniform expansion, where hypot(v, x) is known to be large enough for so many
        everywhere, so that nothing else is needed; 0 where it is not known.
    """

    sign: int
    scaled: bool
    terms: int


def value(f: Function, v: jax.Array, x: jax.Array, of_order: jax.Array | None = None) -> jax.Array:
    """The function itself; where all orders are one, with its sum's coefficients."""
    s = _scheme(v)

    def far(v: jax.Array, x: jax.Array) -> jax.Array:
        return log_uniform(v, x, f.sign, _terms(f, s), f.scaled, of_order)

    def series_of_i(v: jax.Array, x: jax.Array) -> jax.Array:
        found = series.log_series(v, x, s.series)
        return found - x if f.scaled else found

    def limit(v: jax.Array, x: jax.Array) -> jax.Array:
        found = integral.log_small(v, x)
        return found + x if f.scaled else found

    rule = partial(integral.log_integral, scaled=f.scaled)
    near: dict[int, Piece] = {
        1: series_of_i,
        -1: lambda v, x: _integral_or_limit(v, x, s, rule, limit),
    }
    return _chosen(f, v, x, far, near[f.sign])


def dx(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative with respect to x."""
    s = _scheme(v)

    def small(v: jax.Array, x: jax.Array) -> jax.Array:
        found = _small_dx(f, v, x)
        return found - f.sign if f.scaled else found

    return _chosen(f, v, x, lambda v, x: uniform_dx(v, x, f.sign, _terms(f, s), f.scaled), small)


def dv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative with respect to v."""
    s = _scheme(v)
    near: dict[int, Piece] = {
        1: lambda v, x: series.series_dv(v, x, s.series),
        -1: lambda v, x: _integral_or_limit(v, x, s, integral.integral_dv, integral.small_dv),
    }
    return _chosen(f, v, x, lambda v, x: uniform_dv(v, x, f.sign, _terms(f, s)), near[f.sign])


def dxx(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    """The second derivative with respect to x."""
    s = _scheme(v)

    def far(v: jax.Array, x: jax.Array) -> jax.Array:
        return _along(lambda x: uniform_dx(v, x, f.sign, _terms(f, s), f.scaled), x)

    def small(v: jax.Array, x: jax.Array) -> jax.Array:
        if f.sign > 0:
            return series.series_dxx(v, x, s.series)
        # From the differential equation. Where x is much larger than v its terms cancel, and the
        # expansion holds. A square over x might be infinite where their difference is not.
        t = _integral_or_limit(v, x, s, integral.integral_dlogx, integral.small_dlogx)
        inverse = 1 / x
        return 1 + ((v - t) * (v + t) - t) * inverse * inverse

    return _chosen(f, v, x, far, small)


def dxdv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    """The mixed second derivative."""
    s = _scheme(v)

    def far(v: jax.Array, x: jax.Array) -> jax.Array:
        return _along(lambda v: uniform_dx(v, x, f.sign, _terms(f, s), f.scaled), v)

    return _chosen(f, v, x, far, lambda v, x: _along(lambda v: _small_dx(f, v, x), v))


def dvv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    """The second derivative with respect to v."""
    return _along(lambda v: dv(f, v, x), v)


def _small_dx(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    s = _scheme(v)
    if f.sign > 0:
        return series.series_dx(v, x, s.series)
    return _integral_or_limit(v, x, s, integral.integral_dlogx, integral.small_dlogx) / x


def _chosen(f: Function, v: jax.Array, x: jax.Array, far: Piece, near: Piece) -> jax.Array:
    if f.terms:
        return far(v, x)
    # Of products, each of which is rounded once: a compiler may evaluate this twice, and a sum of
    # squares not alike.
    least = _scheme(v).least
    large = v * v > (least - x) * (least + x)
    # Inside of either piece, where the other is chosen.
    away, one = jnp.full_like(v, 30.0), jnp.ones_like(v)
    found = far(jnp.where(large, v, away), jnp.where(large, x, away))
    v, x = jnp.where(large, one, v), jnp.where(large, one, x)
    if not on_one_device():  # all would have to agree whether one needs it
        return jnp.where(large, found, near(v, x))
    # The host of a GPU would have to wait for the answer.
    guarded = lambda v, x: jax.lax.cond(jnp.all(large), lambda v, x: v, near, v, x)  # noqa: E731
    return jnp.where(large, found, jax.lax.platform_dependent(v, x, cpu=guarded, default=near))


def _integral_or_limit(
    v: jax.Array, x: jax.Array, s: Scheme, rule: Callable[..., jax.Array], limit: Piece
) -> jax.Array:
    tiny = x < s.tiny
    by_rule = rule(v, jnp.where(tiny, jnp.ones_like(x), x), s.nodes, s.cut)
    return jnp.where(tiny, limit(v, jnp.where(tiny, x, jnp.full_like(x, s.tiny))), by_rule)


def _along(fn: Callable[[jax.Array], jax.Array], at: jax.Array) -> jax.Array:
    return jax.jvp(fn, (at,), (jnp.ones_like(at),))[1]


def _terms(f: Function, s: Scheme) -> int:
    return f.terms or s.terms


def _scheme(v: jax.Array) -> Scheme:
    return SCHEMES[v.dtype.name]
