"""Logarithms of quotients that are known to be positive: exponents apart, one small argument left.

The library's logarithm must also be right for zeros, infinities and negative numbers, and that of a
quotient divides twice: for the quotient, and for the reduction to a small argument. Here `log(a /
b)` is `n log 2 + 2 atanh((a - b') / (a + b'))`, where b' is b with another exponent, near a, and
the caller may share a division between several.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Of (a - b') / (a + b').
WIDEST = 0.255
_TERMS = {"float64": 8, "float32": 4}


class Logarithm(NamedTuple):
    """A logarithm: `n log 2 + 2 atanh(above / below)`, where the quotient is below 0.255."""

    above: jax.Array
    below: jax.Array
    n: jax.Array

    def half(self, quotient: jax.Array) -> jax.Array:
        """Half of the number, from `above / below`."""
        dtype = quotient.dtype
        return self.n.astype(dtype) * (np.log(2) / 2).astype(dtype) + atanh(quotient)


def leading(a: jax.Array) -> jax.Array:
    """Exponent and first digits of positive numbers, as int32: the exponent is above the digits.

    >>> hex(int(leading(jnp.array(1.0, jnp.float32))))
    '0x3f800000'
    """
    if a.dtype.itemsize == 4:
        return jax.lax.bitcast_convert_type(a, jnp.int32)
    # GPUs compute with 64 bits in two steps.
    return (jax.lax.bitcast_convert_type(a, jnp.int64) >> 32).astype(jnp.int32)


def places(dtype: jnp.dtype) -> int:
    """How many digits `leading` has: 23 of float32, 20 of float64."""
    return jnp.finfo(dtype).nmant % 32


def power_of_two(exponent: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The power whose `leading` is an exponent and no digits.

    >>> float(power_of_two(jnp.int32(129 << 23), jnp.dtype("float32")))
    4.0
    """
    if dtype.itemsize > 4:
        exponent = exponent.astype(jnp.int64) << 32
    return jax.lax.bitcast_convert_type(exponent, dtype)


def times_power(a: jax.Array, exponent: jax.Array) -> jax.Array:
    """The number with `exponent` added to its own, in the place where `leading` has it.

    >>> float(times_power(jnp.array(1.5, jnp.float32), jnp.int32(2 << 23)))
    6.0
    """
    first = leading(a) + exponent
    if a.dtype.itemsize > 4:
        rest = jax.lax.bitcast_convert_type(a, jnp.int64) & 0xFFFFFFFF
        first = (first.astype(jnp.int64) << 32) | rest
    return jax.lax.bitcast_convert_type(first, a.dtype)


def log_quotient(a: jax.Array, b: jax.Array, guide: jax.Array, exponent: jax.Array) -> Logarithm:
    """`log(a 2^k / b)` of positive numbers that are normal, of one shape and dtype.

    Args:
      a: with an exponent that is small.
      b: any.
      guide: with `0.8 <= a / guide <= 1`. The exponents are taken from it, because they must not
        depend on how a is rounded: a compiler may evaluate a twice, and not alike.
      exponent: k, in the place where `leading` has it.

    >>> numbers = (jnp.array(number) for number in (12.0, 1.25, 13.0))
    >>> log = log_quotient(*numbers, jnp.int32(0))
    >>> f"{2 * log.half(log.above / log.below):.4f}"  # log 9.6
    '2.2618'
    """
    digits = places(a.dtype)
    # The bits of a positive number are its logarithm up to 0.09, in units of 2^-digits. A third in
    # the place of a half, because a is below its guide.
    n = leading(guide) - leading(b) + (1 << digits) // 3
    b = times_power(b, n & -(1 << digits))
    return Logarithm(a - b, a + b, (n + exponent) >> digits)


def atanh(s: jax.Array) -> jax.Array:
    """Of |s| <= 0.255.

    >>> f"{2 * atanh(jnp.array(0.2)):.4f}"  # log 1.5
    '0.4055'
    """
    square = s * s
    coefficients = _beyond_first(_TERMS[s.dtype.name])
    total = jnp.full_like(s, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * square + c
    return s + s * square * total


@cache
def _beyond_first(terms: int) -> tuple[float, ...]:
    """Of s^0, s^2, ... in `(atanh(s) - s) / s^3`, fitted where errors are spread evenly.

    The first of Taylor's series would need four more for the same error.
    """
    middle = WIDEST**2 / 2
    square = middle + middle * np.polynomial.chebyshev.chebpts1(terms)
    value = sum((square**k / (2 * k + 3) for k in range(40)), np.zeros(terms))
    found = []
    for degree in reversed(range(terms)):
        fitted = np.polynomial.Polynomial.fit(square, value, degree, domain=[0, 2 * middle])
        c = float(fitted.convert().coef[-1])
        # Few digits of the last are needed if those before are fitted to what is left; and numbers
        # of 20 are part of a GPU's instruction, where longer ones take two more.
        found.append(short(c) if 2 * degree >= terms else c)
        value = value - found[-1] * square**degree
    return tuple(reversed(found))


def short(number: float) -> float:
    """The number with 20 digits behind the first.

    >>> short(1 / 3) * 2**22
    1398101.0
    """
    fraction, exponent = np.frexp(number)
    return float(np.ldexp(np.round(fraction * 2**21), exponent - 21))
