"""The uniform expansion of log I and log K, for large hypot(v, x).

Source: NIST Digital Library of Mathematical Functions, 10.41 (Debye's expansions, F. W. J. Olver).
With p = hypot(v, x) and q = (v / p)^2 their sums are polynomials W_k(q) over powers of p. Written
so they have no singularity at v = 0, where they are Hankel's expansions: one formula serves both.
"""

from fractions import Fraction
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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
def slopes_along_x(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """C_0 .. C_terms, where d/dx W_k(q) p^-k = -s C_k(q) p^-(k+1), s = x / p.

    >>> [str(c) for c in slopes_along_x(1)[1]]
    ['1/8', '-5/8']
    """
    # C_k = k W_k + 2 q W_k'.
    return tuple(
        tuple(c * (k + 2 * j) for j, c in enumerate(w))
        for k, w in enumerate(debye_polynomials(terms))
    )


@cache
def slopes_along_v(terms: int) -> tuple[tuple[Fraction, ...], ...]:
    """B_0 .. B_terms, where d/dv W_k(q) p^-k = c B_k(q) p^-(k+1), c = v / p.

    >>> [str(c) for c in slopes_along_v(1)[1]]
    ['-13/24', '5/8']
    """
    # B_k = -k W_k + 2 (1 - q) W_k' = 2 W_k' - C_k.
    found = []
    for w, along in zip(debye_polynomials(terms), slopes_along_x(terms), strict=True):
        slope = (*(2 * (j + 1) * c for j, c in enumerate(w[1:])), Fraction(0))
        found.append(tuple(a - b for a, b in zip(slope, along, strict=True)))
    return tuple(found)


class Polar(NamedTuple):
    """A point (v, x) as p = hypot(v, x), c = v / p and s = x / p."""

    p: jax.Array
    c: jax.Array
    s: jax.Array


@jax.custom_jvp
def polar(v: jax.Array, x: jax.Array) -> Polar:
    """The polar form of v >= 0 and x > 0, for all that floating-point numbers hold.

    >>> [float(part) for part in polar(jnp.array(3.0), jnp.array(4.0))]
    [5.0, 0.6000000238418579, 0.800000011920929]
    """
    large, small = jnp.maximum(v, x), jnp.minimum(v, x)
    ratio = small / large
    root = jnp.sqrt(1 + ratio * ratio)
    along = 1 / root
    across = ratio * along
    return Polar(large * root, jnp.where(v > x, along, across), jnp.where(v > x, across, along))


@polar.defjvp
def _polar_jvp(primals, tangents):
    p, c, s = polar(*primals)
    dv, dx = tangents
    # Differences of nearly equal numbers would appear if each quotient were differentiated.
    turn = (s * dv - c * dx) / p
    return Polar(p, c, s), Polar(c * dv + s * dx, s * turn, -c * turn)


@jax.custom_jvp
def secant(v: jax.Array, x: jax.Array) -> jax.Array:
    """hypot(v, x) / x, which is finite also where x / hypot(v, x) underflows."""
    p, _, _ = polar(v, x)
    return p / x


@secant.defjvp
def _secant_jvp(primals, tangents):
    v, x = primals
    dv, dx = tangents
    _, c, _ = polar(v, x)
    return secant(v, x), c / x * (dv - v * (dx / x))


@jax.custom_jvp
def asinh_ratio(v: jax.Array, x: jax.Array) -> jax.Array:
    """asinh(v / x), also where the quotient overflows."""
    _, c, s = polar(v, x)
    # (v + p - x) / x, with no difference; asinh(v / x) = log1p of it.
    over = (v / x) * (1 + c / (1 + s))
    # Where v / x may overflow, it is the logarithm of 2 v / x, whose exponents are apart.
    far = v > float(2.0 ** (jnp.finfo(v.dtype).maxexp - 24)) * x
    (v, of_v), (x, of_x) = jnp.frexp(v), jnp.frexp(x)
    shift = (of_v - of_x).astype(v.dtype) * np.log(2).astype(v.dtype)
    found = jnp.log1p(jnp.where(far, 2 * (v / x) - 1, over))
    return jnp.where(far, shift + found, found)


@asinh_ratio.defjvp
def _asinh_ratio_jvp(primals, tangents):
    v, x = primals
    dv, dx = tangents
    p, c, _ = polar(v, x)
    return asinh_ratio(v, x), dv / p - c * (dx / x)


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


def log_uniform(v: jax.Array, x: jax.Array, sign: int, terms: int, scaled: bool) -> jax.Array:
    """The expansion of log I (sign 1) or log K (sign -1).

    Args:
      v: orders, 0 or more.
      x: positive, of v's shape and dtype.
      sign: which function.
      terms: of the sum.
      scaled: whether x is taken from log I, or added to log K, without a difference of large
        numbers.

    Returns:
      Of v's shape and dtype.
    """
    p, c, s = polar(v, x)
    rest = v * asinh_ratio(v, x)
    # sqrt(v^2 + x^2) - x
    eta = (c * (v / (1 + s)) if scaled else p) - rest
    factor = np.log(2 * np.pi) if sign > 0 else np.log(2 / np.pi)
    total = 1 + debye_sum(c * c, sign / p, debye_polynomials(terms))
    # One logarithm of both: what is lost below 1 would be lost to the others' sum.
    return sign * eta - (jnp.log(p / (total * total)) + factor.astype(p.dtype)) / 2


def uniform_dx(v: jax.Array, x: jax.Array, sign: int, terms: int, scaled: bool) -> jax.Array:
    """The derivative of `log_uniform` with respect to x, as smooth as it is itself."""
    p, c, s = polar(v, x)
    q, step = c * c, sign / p
    total = 1 + debye_sum(q, step, debye_polynomials(terms))
    of_sum = debye_sum(q, step, slopes_along_x(terms)) / total
    eta = c * (c * secant(v, x)) / (1 + s) if scaled else secant(v, x)
    return sign * eta - s / p * (0.5 + of_sum)


def uniform_dv(v: jax.Array, x: jax.Array, sign: int, terms: int) -> jax.Array:
    """The derivative of `log_uniform` with respect to v."""
    p, c, _ = polar(v, x)
    q, step = c * c, sign / p
    total = 1 + debye_sum(q, step, debye_polynomials(terms))
    of_sum = debye_sum(q, step, slopes_along_v(terms)) / total
    return -sign * asinh_ratio(v, x) - c / p * (0.5 - of_sum)
