"""Logarithms of quotients that are known to be positive: exponents apart, one small argument left.

The library's logarithm must also be right for zeros, infinities and negative numbers, and that of a
quotient divides twice: for the quotient, and for the reduction to a small argument. Here `log(a /
b)` is `n log 2 + 2 atanh((a' - b') / (a' + b'))`, where a' and b' are a and b without their
exponents, and the caller may share a division between two of them.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of (a' - b') / (a' + b').
_WIDEST = 0.28
_TERMS = {"float64": 10, "float32": 4}


class Logarithm(NamedTuple):
    """A logarithm: `n log 2 + 2 atanh(above / below)`, where the quotient is below 0.28."""

    above: jax.Array
    below: jax.Array
    n: jax.Array

    def by(self, quotient: jax.Array) -> jax.Array:
        """The number, from `above / below`."""
        return self.n * np.log(2).astype(quotient.dtype) + twice_atanh(quotient)


def log_quotient(a: jax.Array, b: jax.Array, guide: jax.Array) -> Logarithm:
    """`log(a / b)` of positive numbers that are normal, of one shape and dtype.

    Args:
      a: any.
      b: any.
      guide: with `0.7 <= a / guide <= 1`. The exponents are taken from it, because they must not
        depend on how a is rounded: a compiler may evaluate a twice, and not alike.

    >>> log = log_quotient(jnp.array(12.0), jnp.array(1.25), jnp.array(13.0))
    >>> f"{log.by(log.above / log.below):.4f}"  # log 9.6
    '2.2618'
    """
    width, digits = jnp.finfo(a.dtype).bits, jnp.finfo(a.dtype).nmant
    integer = jnp.dtype(f"int{width}")
    bits, of_a, of_b = (jax.lax.bitcast_convert_type(part, integer) for part in (guide, a, b))
    # The bits of a positive number are its logarithm up to 0.09, in units of 2^-digits. A quarter
    # in the place of a half, because a is below its guide.
    n = (bits - of_b + (1 << (digits - 2))) >> digits
    # A multiple of 2^digits: nothing but an exponent.
    shift = (bits & -(1 << digits)) - np.ones((), a.dtype).view(integer)
    a = jax.lax.bitcast_convert_type(of_a - shift, a.dtype)
    b = jax.lax.bitcast_convert_type(of_b - shift + (n << digits), a.dtype)
    return Logarithm(a - b, a + b, n.astype(a.dtype))


def twice_atanh(s: jax.Array) -> jax.Array:
    """`2 atanh(s)` for |s| <= 0.28.

    >>> f"{twice_atanh(jnp.array(0.2)):.4f}"  # log 1.5
    '0.4055'
    """
    square = s * s
    coefficients = _beyond_first(_TERMS[s.dtype.name])
    total = jnp.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * square + c
    return 2 * s + s * square * total


@cache
def _beyond_first(terms: int) -> tuple[float, ...]:
    """Of s^0, s^2, ... in `(2 atanh(s) - 2 s) / s^3`, interpolated where errors are spread evenly.

    The first of Taylor's series would need four more for the same error.
    """
    middle = _WIDEST**2 / 2
    square = middle + middle * np.polynomial.chebyshev.chebpts1(terms)
    value = sum((2 * square**k / (2 * k + 3) for k in range(40)), np.zeros(terms))
    # Exact to rounding: as many points as coefficients, in the scaled variable.
    fitted = np.polynomial.Polynomial.fit(square, value, terms - 1, domain=[0, 2 * middle])
    return tuple(float(c) for c in fitted.convert().coef)
