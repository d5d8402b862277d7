"""log Gamma near 1 and 2, and what log K needs of it, by zeta's values at whole numbers.

The library's lgamma loses a dozen units in the last place near its zeros, where log I of small
orders is a sum with it; quotients such as sin(pi v) / (pi v) lose all of a derivative near v = 0.
"""

import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln


def log_gamma_1p(v: jax.Array) -> jax.Array:
    """lgamma(1 + v) for v >= 0.

    >>> f"{log_gamma_1p(jnp.array(1.0)):.3f}, {log_gamma_1p(jnp.array(3.0)):.3f}"  # log 1, log 6
    '0.000, 1.792'
    """
    w, low, high = _near_zeros(v)
    near = horner(_coefficients(), w) * w - jnp.where(low, jnp.log1p(w), jnp.zeros_like(w))
    return jnp.where(high, gammaln(jnp.where(high, v, 2.0 + jnp.zeros_like(v)) + 1), near)


def digamma_1p(v: jax.Array) -> jax.Array:
    """digamma(1 + v) for v >= 0."""
    w, low, high = _near_zeros(v)
    slopes = [(k + 1) * a for k, a in enumerate(_coefficients())]
    near = horner(slopes, w) - jnp.where(low, 1 / (1 + w), jnp.zeros_like(w))
    return jnp.where(high, digamma(jnp.where(high, v, 2.0 + jnp.zeros_like(v)) + 1), near)


def horner(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    """The polynomial with these coefficients, lowest power first."""
    total = jnp.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        total = total * x + a
    return total


def _near_zeros(v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The distance from the nearer zero, and whether that is v = 0, or neither is near."""
    low, high = v < 0.5, v > 1.5
    return jnp.where(low, v, jnp.where(high, jnp.zeros_like(v), v - 1)), low, high


@cache
def _coefficients(terms: int = 27) -> tuple[float, ...]:
    """Of w^0, w^1, ... in `lgamma(2 + w) / w`, for |w| <= 1/2."""
    higher = ((-1) ** k * (zeta(k) - 1) / k for k in range(2, terms + 2))
    return (1 - float(np.euler_gamma), *higher)


@cache
def odd_coefficients(terms: int = 26) -> tuple[float, ...]:
    """Of v^(2k) in `(lgamma(1 - v) - lgamma(1 + v)) / (2 v)`: Euler's constant, zeta(3) / 3, ...

    >>> round(odd_coefficients()[1], 6)  # 1.2020569 / 3
    0.400686
    """
    return (float(np.euler_gamma), *(zeta(2 * k + 1) / (2 * k + 1) for k in range(1, terms)))


@cache
def even_coefficients(terms: int = 14) -> tuple[float, ...]:
    """Of v^(2k) in `log(pi v (1 - v^2) / sin(pi v)) / v^2`."""
    return tuple((zeta(2 * k) - 1) / k for k in range(1, terms + 1))


@cache
def zeta(s: int, direct: int = 60) -> float:
    """Riemann's zeta function at s >= 2, by Euler's and Maclaurin's sum.

    >>> abs(zeta(2) - np.pi**2 / 6) < 1e-15
    True
    """
    n = float(direct)
    tail = [n ** (1 - s) / (s - 1), -(n**-s) / 2, s * n ** (-s - 1) / 12]
    for divisor, count in ((-720, 3), (30240, 5), (-1209600, 7)):
        rising = math.prod(s + i for i in range(count))
        tail.append(rising * n ** (-s - count) / divisor)
    return math.fsum([*(float(k) ** -s for k in range(1, direct + 1)), *tail])
