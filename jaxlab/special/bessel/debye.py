"""The uniform expansion of log I and log K, for large hypot(v, x).

Source: NIST Digital Library of Mathematical Functions, 10.41 (Debye's expansions, F. W. J. Olver).
With p = hypot(v, x) and q = (v / p)^2 their sums are polynomials W_k(q) over powers of p. Written
so they have no singularity at v = 0, where they are Hankel's expansions: one formula serves both.
Their logarithms are such sums, too, with polynomials D_k(q); so no logarithm of a sum is taken, and
no derivative is a quotient.
"""

from fractions import Fraction
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.bessel.logarithm import (
    Logarithm,
    leading,
    log_quotient,
    places,
    power_of_two,
    short,
)


@cache
def debye_polynomials(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """W_0 .. W_terms, lowest power of q first, where `u_k(t) = t^k W_k(t^2)`.

    The recurrence of u_k (10.41.9), in exact rational numbers.

    >>> [str(c) for c in debye_polynomials(1)[1]]
    ['1/8', '-5/24']
    """
    found: list[tuple[Fraction, ...]] = [(Fraction(1),)]
    for k in range(terms):
        new = [Fraction(0)] * (k + 2)
        for j, c in enumerate(found[-1]):
            power = k + 2 * j
            # t^2 (1 - t^2) u' / 2, and the integral of (1 - 5 s^2) u / 8 from 0 to t.
            new[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            new[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        found.append(tuple(new))
    return tuple(found)


@cache
def log_polynomials(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """D_0 .. D_terms, where `log sum_k W_k(q) h^k = sum_k D_k(q) h^k`.

    >>> [str(c) for c in log_polynomials(2)[2]]
    ['1/16', '-3/8', '5/16']
    """
    w = debye_polynomials(terms)
    found: list[tuple[Fraction, ...]] = [(Fraction(0),)]
    for k in range(1, terms + 1):
        # Of the derivative in h: k W_k is the sum of j D_j W_(k-j).
        new = [k * c for c in w[k]]
        for j in range(1, k):
            for a, d in enumerate(found[j]):
                for b, c in enumerate(w[k - j]):
                    new[a + b] -= j * d * c
        found.append(tuple(c / k for c in new))
    return tuple(found)


@cache
def _largest(terms: int) -> tuple[float, ...]:
    """The largest of |D_0| .. |D_terms| over q in [0, 1]."""
    q = np.linspace(0, 1, 201)
    rows = (np.polyval([float(c) for c in reversed(d)], q) for d in log_polynomials(terms))
    return tuple(float(np.max(np.abs(row))) for row in rows)


def terms_above(least: float, error: float, most: int) -> int:
    """Terms of the logarithm's expansion whose successors are below `error` for p above `least`.

    Never more than `most`.

    >>> terms_above(1e3, 1e-16, 14), terms_above(1e5, 1e-16, 14), terms_above(26.0, 1e-16, 14)
    (5, 3, 14)
    """
    largest = _largest(most + 1)
    following = (2 * largest[k + 1] * (1 / least) ** (k + 1) for k in range(1, most))
    return next((k for k, size in enumerate(following, 1) if size < error), most)


@cache
def slopes_along_x(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """C_0 .. C_terms, where d/dx D_k(q) p^-k = -s C_k(q) p^-(k+1), s = x / p.

    >>> [str(c) for c in slopes_along_x(1)[1]]
    ['1/8', '-5/8']
    """
    # C_k = k D_k + 2 q D_k'.
    return tuple(
        tuple(c * (k + 2 * j) for j, c in enumerate(d))
        for k, d in enumerate(log_polynomials(terms))
    )


@cache
def slopes_along_v(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """B_0 .. B_terms, where d/dv D_k(q) p^-k = c B_k(q) p^-(k+1), c = v / p.

    >>> [str(c) for c in slopes_along_v(1)[1]]
    ['-13/24', '5/8']
    """
    # B_k = -k D_k + 2 (1 - q) D_k' = 2 D_k' - C_k.
    found = []
    for d, along in zip(log_polynomials(terms), slopes_along_x(terms), strict=True):
        slope = (*(2 * (j + 1) * c for j, c in enumerate(d[1:])), Fraction(0))
        found.append(tuple(a - b for a, b in zip(slope, along, strict=True)))
    return tuple(found)


class Polar(NamedTuple):
    """A point (v, x) as p = hypot(v, x), 1 / p, c = v / p and s = x / p."""

    p: jax.Array
    inverse: jax.Array
    c: jax.Array
    s: jax.Array


@jax.custom_jvp
def polar(v: jax.Array, x: jax.Array) -> Polar:
    """The polar form of v >= 0 and x > 0, for all that floating-point numbers hold.

    What would be nearly subnormal of 1 / p, c and s may be 0.

    >>> at = polar(jnp.array(3.0), jnp.array(4.0))
    >>> float(at.p), round(float(at.c), 6), round(float(at.s), 6)
    (5.0, 0.6, 0.8)
    """
    # Powers of two, by which no square over- or underflows. Of one order that is known while
    # compiling, they are but one comparison; a quotient of both would be a division.
    half = jnp.finfo(v.dtype).maxexp // 2
    bound, shift = float(2.0 ** (half - 12)), float(2.0 ** (half + 12))
    large, small = (v > bound) | (x > bound), (v < 1 / bound) & (x < 1 / bound)
    one = jnp.ones_like(v)
    scale = jnp.where(large, one / shift, jnp.where(small, one * shift, one))
    back = jnp.where(large, one * shift, jnp.where(small, one / shift, one))
    v, x = v * scale, x * scale
    square = v * v + x * x
    inverse = jax.lax.rsqrt(square)
    # This root of x * x is x itself.
    return Polar(jnp.sqrt(square) * back, inverse * scale, v * inverse, x * inverse)


@polar.defjvp
def _polar_jvp(primals, tangents):
    p, inverse, c, s = polar(*primals)
    dv, dx = tangents
    # Differences of nearly equal numbers would appear if each quotient were differentiated.
    turn, along = (s * dv - c * dx) * inverse, c * dv + s * dx
    change = Polar(along, -along * inverse * inverse, s * turn, -c * turn)
    return Polar(p, inverse, c, s), change


@jax.custom_jvp
def secant(v: jax.Array, x: jax.Array) -> jax.Array:
    """hypot(v, x) / x, which is finite also where x / hypot(v, x) underflows or hypot overflows."""
    # Where x / 4 is subnormal beside such a v, the quotient is beyond all numbers.
    large = jnp.maximum(v, x) > float(2.0 ** (jnp.finfo(v.dtype).maxexp - 2))
    scale = jnp.where(large, jnp.full_like(v, 0.25), jnp.ones_like(v))
    x = x * scale
    return polar(v * scale, x).p / x


@secant.defjvp
def _secant_jvp(primals, tangents):
    v, x = primals
    dv, dx = tangents
    return secant(v, x), polar(v, x).c / x * (dv - v * (dx / x))


@jax.custom_jvp
def asinh_ratio(v: jax.Array, x: jax.Array) -> jax.Array:
    """asinh(v / x), also where the quotient overflows, for x that is not subnormal."""
    log = _log_half_angle(_same_units(v, x), x)
    return 2 * log.half(log.above / log.below)


class _Units(NamedTuple):
    """v, x, p = hypot(v, x) in units of a power of two, where the larger of v and x is in [2, 4).

    Attributes:
      inverse: 1 / p.
      exponent: of the unit, in the place where `leading` has it.
    """

    v: jax.Array
    x: jax.Array
    p: jax.Array
    inverse: jax.Array
    exponent: jax.Array


def _same_units(v: jax.Array, x: jax.Array, quick: bool = True) -> _Units:
    """`quick`: whether p may be off by two of its last digits."""
    digits = places(v.dtype)
    # Of the arguments, which are not rounded: see log_quotient. An exponent of 0 has no inverse.
    larger = jnp.maximum(jnp.maximum(leading(v), leading(x)), 1 << digits) & -(1 << digits)
    one = leading(jnp.ones_like(v))
    exponent = larger - one - (1 << digits)
    unit = power_of_two(one - exponent, v.dtype)
    v, x = v * unit, x * unit
    square = v * v + x * x
    inverse = jax.lax.rsqrt(square)
    p = square * inverse if quick else jnp.sqrt(square)
    return _Units(v, x, p, inverse, exponent)


def _log_half_angle(at: _Units, x: jax.Array) -> Logarithm:
    """The logarithm of (v + p) / x, without that quotient."""
    log = log_quotient(at.v + at.p, x, 2 * at.v + at.x, at.exponent)
    near = log.n == 0
    # There it is 2 atanh(v / (p + x)): the difference would lose digits for small v / x.
    above = jnp.where(near, at.v, log.above)
    return Logarithm(above, jnp.where(near, at.p + at.x, log.below), log.n)


@asinh_ratio.defjvp
def _asinh_ratio_jvp(primals, tangents):
    v, x = primals
    dv, dx = tangents
    _, inverse, c, _ = polar(v, x)
    return asinh_ratio(v, x), dv * inverse - c * (dx / x)


def debye_sum(
    q: jax.Array, step: jax.Array, polynomials: tuple[tuple[Fraction, ...], ...]
) -> jax.Array:
    """`sum_k P_k(q) step^k` for k from 1.

    Args:
      q: in [0, 1].
      step: of q's shape and dtype.
      polynomials: P_0, which is left out, to the last.

    >>> total = debye_sum(jnp.array(1.0), jnp.array(-0.1), debye_polynomials(3))
    >>> print(f"{total:.6f}")  # Stirling's series
    0.008365
    """
    total = jnp.zeros_like(q)
    for polynomial in reversed(polynomials[1:]):
        w = jnp.full_like(q, float(polynomial[-1]))
        for coefficient in reversed(polynomial[:-1]):
            w = w * q + float(coefficient)
        total = (total + w) * step
    return total


def log_uniform(
    v: jax.Array,
    x: jax.Array,
    sign: int,
    terms: int,
    scaled: bool,
    of_order: jax.Array | None = None,
) -> jax.Array:
    """The expansion of log I (sign 1) or log K (sign -1).

    Args:
      v: orders, 0 or more.
      x: positive, of v's shape and dtype.
      sign: which function.
      terms: of the sum's logarithm.
      scaled: whether x is taken from log I, or added to log K, without a difference of large
        numbers.
      of_order: coefficients of the sum, for all orders (`order.sum_of_order`).

    Returns:
      Of v's shape and dtype.
    """
    # Of one large order, errors of p are small beside what the last digits of x move the value by.
    at, one = _same_units(v, x, quick=of_order is not None), leading(jnp.ones_like(v))
    slant = _log_half_angle(at, x)
    # log p is taken from the middle of [2, 4 sqrt(2)].
    middle = short(2**1.75)
    length = Logarithm(at.p - middle, at.p + middle, at.exponent >> places(v.dtype))
    # One division for all.
    below, end = slant.below * length.below, at.p + at.x
    shared = 1 / (below * end if scaled else below)
    if scaled:
        # sqrt(v^2 + x^2) - x = v tangent
        tangent, shared = at.v * below * shared, end * shared
        eta = v * (tangent - 2 * slant.half(slant.above * length.below * shared))
    else:
        eta = at.p - 2 * at.v * slant.half(slant.above * length.below * shared)
        eta = eta * power_of_two(one + at.exponent, v.dtype)
    half_log_p = length.half(length.above * slant.below * shared)
    c = at.v * at.inverse
    if of_order is None:
        inverse = at.inverse * power_of_two(one - at.exponent, v.dtype)
        total = debye_sum(c * c, sign * inverse, log_polynomials(terms))
    else:
        total = c * _polynomial(c, of_order)
    factor = np.log(2 * np.pi) / 2 if sign > 0 else np.log(2 / np.pi) / 2
    factor += np.log(middle) / 2
    return sign * eta - half_log_p + (total - factor.astype(v.dtype))


def _polynomial(at: jax.Array, coefficients: jax.Array) -> jax.Array:
    total = jnp.full_like(at, coefficients[-1])
    for k in reversed(range(len(coefficients) - 1)):
        total = total * at + coefficients[k]
    return total


def uniform_dx(v: jax.Array, x: jax.Array, sign: int, terms: int, scaled: bool) -> jax.Array:
    """The derivative of `log_uniform` with respect to x, as smooth as it is itself."""
    _, inverse, c, s = polar(v, x)
    of_sum = debye_sum(c * c, sign * inverse, slopes_along_x(terms))
    eta = c * (c * secant(v, x)) / (1 + s) if scaled else secant(v, x)
    return sign * eta - s * inverse * (0.5 + of_sum)


def uniform_dv(v: jax.Array, x: jax.Array, sign: int, terms: int) -> jax.Array:
    """The derivative of `log_uniform` with respect to v."""
    _, inverse, c, _ = polar(v, x)
    of_sum = debye_sum(c * c, sign * inverse, slopes_along_v(terms))
    return -sign * asinh_ratio(v, x) - c * inverse * (0.5 - of_sum)
