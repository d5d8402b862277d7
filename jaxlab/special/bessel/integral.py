"""log K for small hypot(v, x): the trapezoidal rule, and the limit of small x.

Sources: NIST Digital Library of Mathematical Functions, 10.32.9 (the integral) and 10.27.4 with
10.25.2 (the limit). The integrand decays doubly exponentially, so that the rule converges
exponentially in the number of nodes.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxlab.special.bessel.debye import asinh_ratio, polar

# Nodes that share one pair of exponentials; the other nodes' are products.
_BLOCK = 8


class _Nodes(NamedTuple):
    """Where the integrand is evaluated: `start + i step`, and its logarithm's maximum."""

    start: jax.Array
    step: jax.Array
    peak: jax.Array


class _Sums(NamedTuple):
    """Sums over the nodes of the integrand, of cosh t times it, and of t tanh(v t) times it."""

    plain: jax.Array
    cosh: jax.Array
    tanh: jax.Array


def log_integral(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> jax.Array:
    """Log K_v(x) by the integral of `e^(-x cosh t) cosh(v t)` over t > 0.

    Args:
      v: orders, 0 or more.
      x: positive, and not so small that the integrand becomes a plateau.
      nodes: intervals, a multiple of 8.
      cut: the integrand is left out where it is e^-cut of its maximum.
    """
    at = _nodes(v, x, nodes, cut)
    return at.peak + jnp.log(at.step * _sums(v, x, at, nodes).plain)


def integral_dx(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> jax.Array:
    """Its derivative with respect to x."""
    sums = _sums(v, x, _nodes(v, x, nodes, cut), nodes)
    return -sums.cosh / sums.plain


def integral_dv(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> jax.Array:
    """Its derivative with respect to v."""
    sums = _sums(v, x, _nodes(v, x, nodes, cut), nodes)
    return sums.tanh / sums.plain


def _nodes(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> _Nodes:
    # Of the integral nothing depends on where the nodes are, so no derivative passes through them.
    v, x = jax.lax.stop_gradient((v, x))
    p, _, _ = polar(v, x)
    top = asinh_ratio(v, x)
    right = top + jnp.log1p(2 * cut / p) + 1
    for _ in range(6):
        height = x * jnp.cosh(right) - p - v * (right - top) - cut
        right = right - height / (x * jnp.sinh(right) - v)
    width = jnp.sqrt(2 * cut / p)
    left = jnp.maximum(top - jnp.maximum(1.5 * width, width + width * width / 2), 0)
    left = jnp.where(v * top < cut, jnp.zeros_like(left), left)
    return _Nodes(left, (right - left) / nodes, v * top - p)


def _sums(v: jax.Array, x: jax.Array, at: _Nodes, nodes: int) -> _Sums:
    """Sums with half weights at both ends, relative to `e^peak`."""
    steps = [at.step * k for k in range(_BLOCK)]
    grown = [jnp.exp(t) for t in steps]
    decayed = [jnp.exp(-2 * v * t) for t in steps]

    def block(sums: _Sums, start: jax.Array, weights: list[float]) -> _Sums:
        base, fall = jnp.exp(start), jnp.exp(-2 * v * start)
        for k, weight in enumerate(weights):
            t, power, image = start + steps[k], base * grown[k], fall * decayed[k]
            cosh = (power + 1 / power) / 2
            # cosh(v t) = e^(v t) (1 + e^(-2 v t)) / 2
            e = (weight / 2) * jnp.exp(v * t - x * cosh - at.peak)
            even, odd = e * (1 + image), e * (1 - image)
            sums = _Sums(sums.plain + even, sums.cosh + cosh * even, sums.tanh + t * odd)
        return sums

    first = block(_Sums(*[jnp.zeros_like(x)] * 3), at.start, [0.5, *[1.0] * (_BLOCK - 1)])

    def later(j, sums):
        return block(sums, at.start + at.step * (_BLOCK * j).astype(x.dtype), [1.0] * _BLOCK)

    sums = jax.lax.fori_loop(1, nodes // _BLOCK, later, first)
    return block(sums, at.start + at.step * nodes, [0.5])


def log_small(v: jax.Array, x: jax.Array) -> jax.Array:
    """Log K_v(x) up to terms of O(x^2): the sum of two powers of x, of which v = 0 is the limit."""
    far = np.log(2).astype(x.dtype) - jnp.log(x)
    low = _log_small_below_half(jnp.where(v < 0.5, v, 0.25), far)
    order = jnp.where(v < 0.5, 0.5, v)
    high = gammaln(order) - np.log(2).astype(x.dtype) + order * far
    inside = jnp.where(order < 0.95, order, 0.75)
    other = gammaln(1 - inside) - gammaln(1 + inside) - 2 * inside * far
    high = high + jnp.where(order < 0.95, jnp.log1p(-jnp.exp(other)), jnp.zeros_like(high))
    return jnp.where(v < 0.5, low, high)


def _log_small_below_half(v: jax.Array, far: jax.Array) -> jax.Array:
    """`log(pi v / sin(pi v)) / 2 + log(sinh(y) / v)`, where y / v = far + odd(v) / v."""
    odd = jnp.full_like(v, zeta_coefficients()[-1])
    for coefficient in reversed(zeta_coefficients()[:-1]):
        odd = odd * (v * v) + coefficient
    slope = far - odd
    return jnp.log(slope) + _log_sinhc(v * slope) - jnp.log(jnp.sinc(v)) / 2


def _log_sinhc(y: jax.Array) -> jax.Array:
    """log(sinh(y) / y) for y >= 0."""
    small = jnp.where(y < 1, y, 0.5)
    square = small * small
    near = jnp.zeros_like(y)
    for k in range(9, 0, -1):
        near = square / (2 * k * (2 * k + 1)) * (1 + near)
    large = jnp.where(y < 1, 1, y)
    return jnp.where(y < 1, jnp.log1p(near), large + jnp.log(-jnp.expm1(-2 * large) / (2 * large)))


@cache
def zeta_coefficients(terms: int = 26) -> tuple[float, ...]:
    """Of v^(2k) in `-(lgamma(1 + v) - lgamma(1 - v)) / (2 v)`: Euler's constant, zeta(3) / 3, ...

    >>> round(zeta_coefficients()[1], 6)  # 1.2020569 / 3
    0.400686
    """
    return (float(np.euler_gamma), *(_zeta(2 * k + 1) / (2 * k + 1) for k in range(1, terms)))


def _zeta(s: int, direct: int = 20) -> float:
    # Euler and Maclaurin: what is left behind `direct` terms.
    n = float(direct)
    tail = n ** (1 - s) / (s - 1) - n**-s / 2 + s * n ** (-s - 1) / 12
    tail -= s * (s + 1) * (s + 2) * n ** (-s - 3) / 720
    tail += math.prod(s + i for i in range(5)) * n ** (-s - 5) / 30240
    return math.fsum([*(k**-s for k in range(1, direct + 1)), tail])


small_dx = lambda v, x: _derivative(1, v, x)  # noqa: E731
small_dv = lambda v, x: _derivative(0, v, x)  # noqa: E731


def _derivative(place: int, v: jax.Array, x: jax.Array) -> jax.Array:
    tangents = [jnp.zeros_like(v), jnp.zeros_like(x)]
    tangents[place] = jnp.ones_like(v)
    return jax.jvp(partial(log_small), (v, x), tuple(tangents))[1]
