"""log K for small hypot(v, x): the trapezoidal rule, and the limit of small x.

Sources: NIST Digital Library of Mathematical Functions, 10.32.9 (the integral) and 10.27.4 with
10.25.2 (the limit). The integrand decays doubly exponentially, so that the rule converges
exponentially in the number of nodes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.bessel.debye import asinh_ratio, polar
from jaxlab.special.bessel.zeta import even_coefficients, horner, log_gamma_1p, odd_coefficients

# Nodes that share one pair of exponentials; the other nodes' are products.
_BLOCK = 8
_HALF = _BLOCK // 2
_NEWTON_STEPS = 6
# Of y^2, y^4, ... in sinh(y) / y.
_SINHC = [1 / math.factorial(2 * k + 1) for k in range(1, 10)]


class _Nodes(NamedTuple):
    """Nodes t as distances from the integrand's peak: `left + i step`, and t = top + distance."""

    left: jax.Array
    step: jax.Array
    top: jax.Array


class _Node(NamedTuple):
    """What is known at a node.

    Attributes:
      t: where it is.
      rise: `x cosh(t) - p`.
      even: the integrand, relative to its peak.
      odd: with sinh(v t) in the place of cosh(v t).
    """

    t: jax.Array
    rise: jax.Array
    even: jax.Array
    odd: jax.Array


def log_integral(
    v: jax.Array, x: jax.Array, nodes: int, cut: float, scaled: bool = False
) -> jax.Array:
    """Log K_v(x) by the integral of `e^(-x cosh t) cosh(v t)` over t > 0.

    Args:
      v: orders, 0 or more.
      x: positive, and not so small that the integrand becomes a plateau.
      nodes: intervals, a multiple of 8.
      cut: the integrand is left out where it is e^-cut of its maximum.
      scaled: whether x is added, without a difference of large numbers.
    """
    p = polar(v, x).p
    lead = v * (v / (p + x)) if scaled else p
    at = _nodes(v, x, cut, nodes)
    (total,) = _sums(v, x, at, nodes, lambda node: (node.even,))
    return v * at.top - lead + jnp.log(at.step * total)


def integral_dlogx(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> jax.Array:
    """Its derivative with respect to log x: minus the mean of x cosh t under the integrand."""
    at = _nodes(v, x, cut, nodes)
    total, rise = _sums(v, x, at, nodes, lambda node: (node.even, node.rise * node.even))
    return -(sum(_halves(v, x)) + rise / total)


def integral_dv(v: jax.Array, x: jax.Array, nodes: int, cut: float) -> jax.Array:
    """Its derivative with respect to v: the mean of t tanh(v t)."""
    at = _nodes(v, x, cut, nodes)
    total, moment = _sums(v, x, at, nodes, lambda node: (node.even, node.t * node.odd))
    return moment / total


def _nodes(v: jax.Array, x: jax.Array, cut: float, nodes: int) -> _Nodes:
    # Of the integral nothing depends on where the nodes are, so no derivative passes through them.
    v, x = jax.lax.stop_gradient((v, x))
    p = polar(v, x).p
    top = asinh_ratio(v, x)
    up, down = _halves(v, x)
    right = jnp.log1p(2 * cut / p) + 1
    # To the left it falls like e^(-v d) first, or reaches t = 0, where it is even.
    left = jnp.minimum((cut + p) / jnp.maximum(v, 1 / cut), jnp.log((cut + p) / down))

    def newton(_: jax.Array, ends: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        right, left, _, _ = ends
        grown, decayed = up * jnp.exp(right), down / jnp.exp(right)
        right = right - (grown + decayed - p - v * right - cut) / (grown - decayed - v)
        grown, decayed = down * jnp.exp(left), up / jnp.exp(left)
        left = left - (grown + decayed - p + v * left - cut) / (grown - decayed + v)
        first = -jnp.minimum(left, top)
        return right, left, first, (right - first) / nodes

    # A loop, because most of the time of compiling was that of six copies; and with all that others
    # read, because a compiler would write what follows it into each of those.
    ends = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, (right, left, left, left))
    _, _, first, step = ends
    return _Nodes(first, step, top)


def _halves(v: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x e^top / 2` and `x e^-top / 2`, whose sum is p: with the derivatives of a fixed top."""
    fixed_v, fixed_x = jax.lax.stop_gradient((v, x))
    p = polar(fixed_v, fixed_x).p
    scale = x / fixed_x
    return (p + fixed_v) / 2 * scale, fixed_x * (fixed_x / (p + fixed_v)) / 2 * scale


def _sums(
    v: jax.Array,
    x: jax.Array,
    at: _Nodes,
    nodes: int,
    summed: Callable[[_Node], tuple[jax.Array, ...]],
) -> tuple[jax.Array, ...]:
    """Sums over the nodes, of which the first, that may be t = 0, has half a weight.

    The last, with as little weight, is left out, as what is behind it. Written in distances from
    the peak, where all exponents are small: in t itself they would be differences of large numbers.
    """
    up, down = _halves(v, x)
    # Products of these take the place of exponentials, a few each so that no error adds up; all of
    # them from memory would take longer.
    ratios = [jnp.exp(at.step * rate) for rate in (1.0, -1.0, -2 * v, 2 * v)]

    def block(j: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        grown, decayed, after, before = (_powers(ratio) for ratio in ratios)
        middle = at.left + at.step * (_BLOCK * j + _HALF).astype(x.dtype)
        above, below = up * jnp.exp(middle), down * jnp.exp(-middle)
        image = jnp.exp(-2 * v * (at.top + middle))
        for k in range(-_HALF, _HALF):
            d, n = middle + k * at.step, abs(k)
            more, less, beyond = (grown, decayed, after) if k > 0 else (decayed, grown, before)
            rise = (above * more[n] - up) + (below * less[n] - down)
            e = jnp.exp(v * d - rise)
            if k == -_HALF:
                e = jnp.where(j == 0, e / 2, e)
            # cosh(v t) = e^(v t) (1 + e^(-2 v t)) / 2
            mirror = e * (image * beyond[n])
            node = _Node(at.top + d, rise, e + mirror, e - mirror)
            sums = tuple(s + term for s, term in zip(sums, summed(node), strict=True))
        return sums

    nothing = (jnp.zeros_like(x),) * len(summed(_Node(x, x, x, x)))
    sums = jax.lax.fori_loop(0, nodes // _BLOCK, block, nothing)
    return tuple(s / 2 for s in sums)


def _powers(a: jax.Array) -> list[jax.Array]:
    """Of exponents 0 .. half a block."""
    found = [jnp.ones_like(a), a]
    while len(found) <= _HALF:
        n = len(found)
        found.append(found[n // 2] * found[n - n // 2])
    return found


def log_small(v: jax.Array, x: jax.Array) -> jax.Array:
    """Log K_v(x) up to terms of O(x^2): the sum of two powers of x, of which v = 0 is the limit."""
    far = np.log(2).astype(x.dtype) - jnp.log(x)
    # Where v > 0.95 the second power is below rounding, whatever its coefficient.
    inside = jnp.minimum(v, 0.95)
    square = inside * inside
    slope = far - horner(odd_coefficients(), square)
    reflected = square * horner(even_coefficients(), square) - jnp.log1p(-square)
    low = jnp.log(slope) + _log_sinhc(inside * slope) + reflected / 2
    order = jnp.where(v < 0.5, jnp.full_like(v, 0.5), v)
    # lgamma(v) = lgamma(1 + v) - log(v)
    high = log_gamma_1p(order) - jnp.log(2 * order) + order * far
    high = high + jnp.log1p(-jnp.exp(-2 * order * slope))
    return jnp.where(v < 0.5, low, high)


def _log_sinhc(y: jax.Array) -> jax.Array:
    """log(sinh(y) / y) for y >= 0."""
    small = jnp.where(y < 1, y, jnp.full_like(y, 0.5))
    square = small * small
    near = square * horner(_SINHC, square)
    large = jnp.where(y < 1, jnp.ones_like(y), y)
    return jnp.where(y < 1, jnp.log1p(near), large + jnp.log(-jnp.expm1(-2 * large) / (2 * large)))


def small_dlogx(v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative of `log_small` with respect to log x."""
    return jax.jvp(lambda x: log_small(v, x), (x,), (x,))[1]


def small_dv(v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative of `log_small` with respect to v."""
    return jax.jvp(lambda v: log_small(v, x), (v,), (jnp.ones_like(v),))[1]
