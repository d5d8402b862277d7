"""log K for small hypot(v, x): the trapezoidal rule, and the limit of small x.

Sources: NIST Digital Library of Mathematical Functions, 10.32.9 (the integral) and 10.27.4 with
10.25.2 (the limit). The integrand decays doubly exponentially, so that the rule converges
exponentially in the number of nodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from jaxlab.special.bessel.debye import asinh_ratio, polar
from jaxlab.special.bessel.zeta import even_coefficients, horner, log_gamma_1p, odd_coefficients

# Nodes that share one pair of exponentials; the other nodes' are products.
_BLOCK = 8
_NEWTON_STEPS = 6


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

    def newton(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        right, left = ends
        grown, decayed = up * jnp.exp(right), down / jnp.exp(right)
        right = right - (grown + decayed - p - v * right - cut) / (grown - decayed - v)
        grown, decayed = down * jnp.exp(left), up / jnp.exp(left)
        left = left - (grown + decayed - p + v * left - cut) / (grown - decayed + v)
        return right, left

    # A loop, because most of the time of compiling was that of six copies.
    right, left = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, (right, left))
    left = -jnp.minimum(left, top)
    return _Nodes(left, (right - left) / nodes, top)


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
    """Sums over the nodes, with half weights at both ends.

    Written in distances from the peak, where all exponents are small: in t itself they would be
    differences of large numbers.
    """
    up, down = _halves(v, x)
    steps = [at.step * k for k in range(_BLOCK)]
    grown = [jnp.exp(s) for s in steps]
    decayed = [jnp.exp(-s) for s in steps]
    images = [jnp.exp(-2 * v * s) for s in steps]

    def block(j: jax.Array, sums: tuple[jax.Array, ...], count: int = _BLOCK):
        left = at.left + at.step * (_BLOCK * j).astype(x.dtype)
        above, below = up * jnp.exp(left), down * jnp.exp(-left)
        image = jnp.exp(-2 * v * (at.top + left))
        for k in range(count):
            d = left + steps[k]
            rise = (above * grown[k] - up) + (below * decayed[k] - down)
            # cosh(v t) = e^(v t) (1 + e^(-2 v t)) / 2
            e = jnp.exp(v * d - rise) / 2
            if k == 0:
                # Both ends count half; each is the first node of a block.
                e = jnp.where((j == 0) | (j == nodes // _BLOCK), e / 2, e)
            mirror = e * (image * images[k])
            node = _Node(at.top + d, rise, e + mirror, e - mirror)
            sums = tuple(s + term for s, term in zip(sums, summed(node), strict=True))
        return sums

    nothing = (jnp.zeros_like(x),) * len(summed(_Node(x, x, x, x)))
    sums = jax.lax.fori_loop(0, nodes // _BLOCK, block, nothing)
    return block(jnp.int32(nodes // _BLOCK), sums, count=1)


def log_small(v: jax.Array, x: jax.Array) -> jax.Array:
    """Log K_v(x) up to terms of O(x^2): the sum of two powers of x, of which v = 0 is the limit."""
    far = np.log(2).astype(x.dtype) - jnp.log(x)
    low = _log_small_below_half(jnp.where(v < 0.5, v, jnp.full_like(v, 0.25)), far)
    order = jnp.where(v < 0.5, jnp.full_like(v, 0.5), v)
    # lgamma(v) = lgamma(1 + v) - log(v)
    high = log_gamma_1p(order) - jnp.log(2 * order) + order * far
    inside = jnp.where(order < 0.95, order, jnp.full_like(v, 0.75))
    other = gammaln(1 - inside) - gammaln(1 + inside) - 2 * inside * far
    high = high + jnp.where(order < 0.95, jnp.log1p(-jnp.exp(other)), jnp.zeros_like(high))
    return jnp.where(v < 0.5, low, high)


def _log_small_below_half(v: jax.Array, far: jax.Array) -> jax.Array:
    """`log(pi v / sin(pi v)) / 2 + log(sinh(y) / v)`, where y / v = far + odd(v) / v."""
    square = v * v
    slope = far - horner(odd_coefficients(), square)
    reflected = square * horner(even_coefficients(), square) - jnp.log1p(-square)
    return jnp.log(slope) + _log_sinhc(v * slope) + reflected / 2


def _log_sinhc(y: jax.Array) -> jax.Array:
    """log(sinh(y) / y) for y >= 0."""
    small = jnp.where(y < 1, y, jnp.full_like(y, 0.5))
    square = small * small
    near = jnp.zeros_like(y)
    for k in range(9, 0, -1):
        near = square / (2 * k * (2 * k + 1)) * (1 + near)
    large = jnp.where(y < 1, jnp.ones_like(y), y)
    return jnp.where(y < 1, jnp.log1p(near), large + jnp.log(-jnp.expm1(-2 * large) / (2 * large)))


def small_dlogx(v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative of `log_small` with respect to log x."""
    return jax.jvp(lambda x: log_small(v, x), (x,), (x,))[1]


def small_dv(v: jax.Array, x: jax.Array) -> jax.Array:
    """The derivative of `log_small` with respect to v."""
    return jax.jvp(lambda v: log_small(v, x), (v,), (jnp.ones_like(v),))[1]
