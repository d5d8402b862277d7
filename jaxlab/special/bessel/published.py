"""The published scheme of log I and log K, with its regions and numbers of terms: to compare.

Source: T. Plesner, H. H. B. Sørensen and S. Hauberg, "Accurate Computation of the Logarithm of
Modified Bessel Functions on GPUs", ICS 2024; the integral: C. Rothwell, "Computation of the
logarithm of Bessel functions of complex argument", 2006.

It loses digits at the edges of its regions, up to 6e-10 for K of small orders near x = 0.5.
"""

from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxlab.special.bessel.debye import asinh_ratio, debye_polynomials

_SERIES_TERMS = 41
_INTERVALS = 600


def published_log(v: jax.Array, x: jax.Array, sign: int) -> jax.Array:
    """Log I (sign 1) or log K (sign -1) of orders v >= 0 and x > 0 of one shape and dtype."""
    lx, lv = jnp.log(x), jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny))
    # The first region that an argument is in counts; the fallback takes what is left.
    conditions = [
        ((x > 1400) & (v < 3.05)) | ((0.6229 * lx - 3.2318 > lv) & (v > 3.1)),
        ((x > 30) & (v < 15.3919)) | ((0.5113 * lx + 0.7939 > lv) & (x > 59.6925)),
        ((x > 274.2377) & (v > 0.3)) | (v > 163.6993),
        ((x > 84.4153) & (v > 0.46)) | (v > 56.9971),
        ((x > 35.9074) & (v > 0.6)) | (v > 20.1534),
        ((x > 19.6931) & (v > 0.7)) | (v > 12.6964),
    ]
    pieces = [
        lambda v, x: _hankel(v, x, sign, 3),
        lambda v, x: _hankel(v, x, sign, 20),
        lambda v, x: _debye(v, x, sign, 4),
        lambda v, x: _debye(v, x, sign, 6),
        lambda v, x: _debye(v, x, sign, 9),
        lambda v, x: _debye(v, x, sign, 13),
    ]
    suits = [(1.0, 2000.0), (1.0, 100.0), *[(200.0, 300.0)] * 4]
    taken, found = jnp.zeros(v.shape, bool), jnp.zeros_like(v)
    for inside, piece, point in zip(conditions, pieces, suits, strict=True):
        chosen = inside & ~taken
        found = jnp.where(chosen, _at(piece, chosen, v, x, point), found)
        taken = taken | inside
    rest = _series if sign > 0 else _integral
    return jnp.where(taken, found, _at(rest, ~taken, v, x, (1.0, 1.0)))


def _at(
    piece: Callable[[jax.Array, jax.Array], jax.Array],
    chosen: jax.Array,
    v: jax.Array,
    x: jax.Array,
    point: tuple[float, float],
) -> jax.Array:
    away = [jnp.full_like(v, number) for number in point]
    return piece(jnp.where(chosen, v, away[0]), jnp.where(chosen, x, away[1]))


def _hankel(v: jax.Array, x: jax.Array, sign: int, terms: int) -> jax.Array:
    mu, term = 4 * v * v, jnp.ones_like(x)
    total = term
    for k in range(1, terms + 1):
        term = term * -sign * (mu - (2 * k - 1) ** 2) / (8 * k * x)
        total = total + term
    factor = np.log(2 * np.pi) if sign > 0 else np.log(2 / np.pi)
    return sign * x - (factor.astype(x.dtype) + jnp.log(x)) / 2 + jnp.log(jnp.abs(total))


def _debye(v: jax.Array, x: jax.Array, sign: int, terms: int) -> jax.Array:
    z = x / v
    root = jnp.sqrt(1 + z * z)
    t, total = 1 / root, jnp.ones_like(x)
    for k in range(1, terms + 1):
        polynomial: tuple[Fraction, ...] = debye_polynomials(terms)[k]
        u = sum((float(c) * t ** (k + 2 * j) for j, c in enumerate(polynomial)), jnp.zeros_like(t))
        total = total + (sign / v) ** k * u
    eta = root - asinh_ratio(v, x)
    factor = np.log(2 * np.pi) if sign > 0 else np.log(2 / np.pi)
    lead = -(factor.astype(x.dtype) + jnp.log(v)) / 2 - jnp.log1p(z * z) / 4
    return sign * v * eta + lead + jnp.log(jnp.abs(total))


def _series(v: jax.Array, x: jax.Array) -> jax.Array:
    """A log-sum-exp over the terms, relative to one near the largest."""

    def log_term(k: jax.Array) -> jax.Array:
        return 2 * k * jnp.log(x / 2) - gammaln(k + 1) - gammaln(v + k + 1)

    top = log_term(jnp.floor((jnp.sqrt(x * x + v * v) - v) / 2))
    total = jax.lax.fori_loop(
        0,
        _SERIES_TERMS,
        lambda k, s: s + jnp.exp(log_term(jnp.full_like(x, 1) * k.astype(x.dtype)) - top),
        jnp.zeros_like(x),
    )
    return v * jnp.log(x / 2) + top + jnp.log(total)


def _integral(v: jax.Array, x: jax.Array) -> jax.Array:
    """Simpson's rule in the transformed variable, summed relative to its largest value."""
    n = 8
    b = 2 * n / (2 * v + 1)

    def log_terms(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        power = jnp.exp(b * jnp.log(u))
        g = jnp.log(b) - power + (v - 0.5) * jnp.log(2 * x + power) + (n - 1) * jnp.log(u)
        h = -1 / u - (2 * v + 1) * jnp.log(u) + (v - 0.5) * jnp.log(2 * x * u + 1)
        return g, h

    def node(i: jax.Array) -> jax.Array:
        g, h = log_terms(jnp.full_like(x, 1) * ((i + 1).astype(x.dtype) / _INTERVALS))
        return jnp.logaddexp(g, h)

    top = jax.lax.fori_loop(
        0, _INTERVALS, lambda i, m: jnp.maximum(m, node(i)), jnp.full_like(x, -jnp.inf)
    )

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        # The integrand is 0 at u = 0; weights are 4, 2, 4, ..., 4, 1 from the first node on.
        weight = jnp.where(i == _INTERVALS - 1, 1.0, jnp.where(i % 2 == 0, 4.0, 2.0))
        return total + weight.astype(x.dtype) * jnp.exp(node(i) - top)

    total = jax.lax.fori_loop(0, _INTERVALS, add, jnp.zeros_like(x))
    lead = np.log(np.pi).astype(x.dtype) / 2 - gammaln(v + 0.5) - v * jnp.log(2 * x) - x
    return lead + top + jnp.log(total / (3 * _INTERVALS))
