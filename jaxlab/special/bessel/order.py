"""The uniform expansion's sum for one order that is known: a polynomial in c = v / p alone.

With p = hypot(v, x) it is `sum_k D_k(c^2) (c / v)^k`, of which a known v leaves few powers of c
that matter. They are economized (C. Lanczos, "Applied Analysis", 1956, chapter 7): the highest is
left out by a multiple of Chebyshev's polynomial, whose other coefficients take its place.
"""

from fractions import Fraction
from functools import cache, lru_cache

from jaxlab.special.bessel.debye import log_polynomials
from jaxlab.special.bessel.logarithm import short

# Of fixed-point numbers: coefficients of Chebyshev's polynomials are large, and cancel.
_BITS = 256


@lru_cache(256)
def sum_of_order(order: float, sign: int, terms: int, error: float) -> tuple[float, ...]:
    """Coefficients a_0, a_1, ... of `sum_k D_k(c^2) (sign c / v)^k = a_0 c + a_1 c^2 + ...`.

    Args:
      order: v, positive and finite.
      sign: 1 or -1.
      terms: of the expansion.
      error: what the result may differ by, for c in [0, 1].

    >>> len(sum_of_order(1023.0, 1, 4, 1e-15)), len(sum_of_order(1e6, 1, 2, 1e-13))
    (9, 3)
    """
    step, found = sign / Fraction(order), [0] * (3 * terms)
    for k, polynomial in enumerate(log_polynomials(terms)[1:], 1):
        for j, d in enumerate(polynomial):
            found[k - 1 + 2 * j] += int(d * step**k * (1 << _BITS))
    for degree in range(3 * terms - 1, 0, -1):
        now, last = found[degree] / (1 << _BITS), degree == len(found) - 1
        # Out, where none is above; or with fewer digits, see logarithm.short.
        for instead in (0.0, short(now)) if last else (short(now),):
            # Its leading coefficient is that power of two.
            change = (int(instead * 2.0**_BITS) - found[degree]) >> (2 * degree - 1)
            size = abs(change) / (1 << _BITS)
            if size <= error:
                error -= size
                terms_of = zip(found, _chebyshev(degree), strict=False)
                found[: degree + 1] = [a + change * b for a, b in terms_of]
                break
        if last and abs(found[-1]) >> (2 * degree) == 0:
            found.pop()
    return tuple(a / (1 << _BITS) for a in found)


@cache
def _chebyshev(degree: int) -> tuple[int, ...]:
    """Coefficients of Chebyshev's polynomial on [0, 1], of degree 1 or more, the lowest first.

    >>> _chebyshev(2)
    (1, -8, 8)
    """
    before, now = [1], [-1, 2]
    for _ in range(degree - 1):
        # Twice 2 c - 1 times the last, less the one before.
        grown = [-2 * a for a in now] + [0]
        for j, a in enumerate(now):
            grown[j + 1] += 4 * a
        for j, a in enumerate(before):
            grown[j] -= a
        before, now = now, grown
    return tuple(now)
