"""References for tests and benchmarks: NumPy's extended precision, and any number of digits.

Nothing here runs in a model. `extended` is vectorised, of about 19 digits where `longdouble` has a
mantissa of 64 bits; `bessel_reference_table` needs mpmath, and takes milliseconds a point.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from jaxlab.special.bessel.debye import debye_polynomials

NAMES = ("log_iv", "log_kv", "log_iv_dx", "log_kv_dx", "log_iv_dv", "log_kv_dv")
_EXPANSION, _TERMS = 40.0, 30
_SERIES_TERMS = 160
# Of Stirling's series, and of Euler's and Maclaurin's sum.
_STIRLING = 10
# Below, the next terms of K's limit are less than the last digit.
_TINY = 1e-9


@cache
def bernoulli(count: int) -> tuple[Fraction, ...]:
    """Bernoulli numbers B_0 .. B_count, by their recurrence.

    >>> [str(b) for b in bernoulli(4)]
    ['1', '-1/2', '1/6', '0', '-1/30']
    """
    found = [Fraction(1)]
    for m in range(1, count + 1):
        lower = sum((math.comb(m + 1, j) * b for j, b in enumerate(found)), Fraction(0))
        found.append(-lower / (m + 1))
    return tuple(found)


def extended(v: Any, x: Any) -> dict[str, np.ndarray]:
    """Log I, log K and their first derivatives in NumPy's longdouble.

    Args:
      v: (n,), orders, 0 or more.
      x: (n,), positive.

    Returns:
      By `NAMES`, longdouble (n,).

    Raises:
      ValueError: longdouble is no longer than float64 here.

    >>> f"{extended([0.5], [2.0])['log_kv'][0]:.15f}"  # log(sqrt(pi / 4) e^-2)
    '-2.120782237635245'
    """
    if np.finfo(np.longdouble).nmant < 63:
        raise ValueError("extended: this platform's longdouble is no longer than float64")
    v, x = np.asarray(v, np.longdouble), np.asarray(x, np.longdouble)
    found = {name: np.empty_like(v) for name in NAMES}
    far, tiny = np.hypot(v, x) > _EXPANSION, x < _TINY
    for names, chosen, evaluate in (
        (NAMES, far, _expansion),
        (NAMES[::2], ~far, _series),
        (NAMES[1::2], ~far & ~tiny, _integral),
        (NAMES[1::2], ~far & tiny, _limit),
    ):
        for name, values in zip(names, evaluate(v[chosen], x[chosen]), strict=True):
            found[name][chosen] = values
    return found


def _expansion(v: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    p = np.hypot(v, x)
    c, s = v / p, x / p
    q = c * c
    # asinh(v / x), also where the quotient overflows
    near = np.arcsinh(v / np.maximum(x, v * 1e-30))
    angle = np.where(s > 1e-9, near, np.log(2 * np.maximum(v, x)) - np.log(x))
    log_2pi = np.log(2 * np.longdouble(np.pi) + 2 * np.longdouble(_PI_LOW))
    log_2_over_pi = 2 * np.log(np.longdouble(2)) - log_2pi
    values: list[np.ndarray] = []
    slopes_x: list[np.ndarray] = []
    slopes_v: list[np.ndarray] = []
    for sign, factor in ((1, log_2pi), (-1, log_2_over_pi)):
        total, by_p, by_q = (np.zeros_like(p) for _ in range(3))
        for k in range(_TERMS, 0, -1):
            coefficients = [_long(a) for a in debye_polynomials(_TERMS)[k]]
            scale = (sign / p) ** k
            w = np.polynomial.polynomial.polyval(q, np.array(coefficients))
            slope = [j * a for j, a in enumerate(coefficients)][1:]
            total += w * scale
            by_p -= k * w * scale / p
            by_q += np.polynomial.polynomial.polyval(q, np.array(slope)) * scale
        values.append(sign * (p - v * angle) - (np.log(p) + factor) / 2 + np.log1p(total))
        inner = 1 + total
        slopes_x.append(sign / s - s / (2 * p) + (by_p * s - by_q * 2 * q * s / p) / inner)
        slopes_v.append(-sign * angle - c / (2 * p) + (by_p * c + by_q * 2 * c * s * s / p) / inner)
    return [*values, *slopes_x, *slopes_v]


def _series(v: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    log_half = np.log(x / 2)
    term, harmonic, above = np.ones_like(x), np.zeros_like(x), np.ones_like(x)
    total, weighted, next_order = term.copy(), np.zeros_like(x), above.copy()
    for k in range(1, _SERIES_TERMS):
        term = term * (x / 2) ** 2 / (k * (v + k))
        above = above * (x / 2) ** 2 / (k * (v + 1 + k))
        harmonic = harmonic + 1 / (v + k)
        total, next_order = total + term, next_order + above
        weighted = weighted + term * harmonic
    gamma, digamma = _log_gamma(v + 1)
    log_i = v * log_half - gamma + np.log(total)
    log_i_dx = v / x + x / (2 * (v + 1)) * next_order / total
    log_i_dv = log_half - digamma - weighted / total
    return [log_i, log_i_dx, log_i_dv]


def _integral(v: np.ndarray, x: np.ndarray, nodes: int = 600) -> list[np.ndarray]:
    """Of K. The integrand has a plateau, log(1 / x) long: where x is tiny that takes more nodes."""
    # In distances d from the integrand's peak: x cosh(t) - p is a difference of large numbers.
    p, top = np.hypot(v, x), np.arcsinh(v / x)
    up, down = (p + v) / 2, x * (x / (p + v)) / 2
    right = np.log1p(120 / p) + 1
    for _ in range(8):
        grown, decayed = up * np.exp(right), down * np.exp(-right)
        right = right - (grown + decayed - p - v * right - 60) / (grown - decayed - v)
    # Further to the left it is below e^-80, or it is even about t = 0.
    left = np.minimum(top, (80 + p) / np.maximum(v, 1e-3))
    step = (right + left) / nodes
    sums = [np.zeros_like(x) for _ in range(3)]
    for i in range(nodes + 1):
        d = right - (nodes - i) * step  # exact where the integrand is large
        rise = up * np.expm1(d) + down * np.expm1(-d)
        e = (0.25 if i in (0, nodes) else 0.5) * np.exp(v * d - rise)
        image = np.exp(-2 * v * (top + d))
        sums[0] += e * (1 + image)
        sums[1] += rise * e * (1 + image)
        sums[2] += (top + d) * e * (1 - image)
    log_k = v * top - p + np.log(step * sums[0])
    log_k_dx = -(p + sums[1] / sums[0]) / x
    return [log_k, log_k_dx, sums[2] / sums[0]]


def _limit(v: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """Of K, where x is tiny: a sum of two powers of x, written for small orders as for others."""
    far = np.log(np.longdouble(2)) - np.log(x)
    low = v < 0.4
    found = [np.empty_like(x) for _ in range(3)]
    for chosen, evaluate in ((low, _limit_of_small_order), (~low, _limit_of_order)):
        for part, values in zip(found, evaluate(v[chosen], far[chosen]), strict=True):
            part[chosen] = values
    return [found[0], found[1] / x, found[2]]


def _limit_of_small_order(v: np.ndarray, far: np.ndarray) -> list[np.ndarray]:
    """`log(pi v / sin(pi v)) / 2 + log(sinh(v m) / v)`, m by zeta's odd values; by log x, and v."""
    square = v * v
    m = far - np.longdouble("0.57721566490153286060651209008240243")
    of_m, reflected, of_reflected = np.zeros_like(v), np.zeros_like(v), np.zeros_like(v)
    for k in range(1, 30):
        odd, even = _zeta(2 * k + 1) / (2 * k + 1), _zeta(2 * k) / (2 * k)
        m = m - odd * square**k
        of_m = of_m - 2 * k * odd * v ** (2 * k - 1)
        reflected = reflected + even * square**k
        of_reflected = of_reflected + 2 * k * even * v ** (2 * k - 1)
    y = v * m
    # sinh(y) / y and y coth(y) - 1, by their series where y is small
    near = np.minimum(y, 1) ** 2
    sinhc, coth = np.zeros_like(y), np.zeros_like(y)
    for k in range(14, 0, -1):
        sinhc = near / (2 * k * (2 * k + 1)) * (1 + sinhc)
    for k in range(30, 0, -1):
        coth = near * (coth + (-1) ** (k + 1) * 2 * _zeta(2 * k) / _PI ** (2 * k))
    large = np.maximum(y, 1)
    log_sinhc = np.where(
        y < 1, np.log1p(sinhc), large + np.log(-np.expm1(-2 * large)) - np.log(2 * large)
    )
    coth = np.where(y < 1, coth, large / np.tanh(large) - 1)
    # d/dv log(sinh(y) / y) = (y coth(y) - 1) y' / y, y' = m + v m'
    of_v = of_reflected + coth * (1 / np.maximum(v, _SMALLEST) + of_m / m) + of_m / m
    return [
        reflected + log_sinhc + np.log(m),
        -(1 + coth) / m,
        np.where(v > 0, of_v, 0),
    ]


def _limit_of_order(v: np.ndarray, far: np.ndarray) -> list[np.ndarray]:
    """`lgamma(v) + v far - log(2) + log1p(-w)`: w is below the last digit for orders above 1."""
    gamma, digamma = _log_gamma(v + 1)
    value = gamma - np.log(2 * v) + v * far
    inside = np.where(v < 0.95, v, 0.75)
    above, of_above = _log_gamma(2 - inside)
    w = np.exp(above - np.log1p(-inside) - gamma - 2 * inside * far)
    w = np.where(v < 0.95, w, 0)
    of_log_w = 1 / (1 - inside) - of_above - digamma - 2 * far
    by_log_x = -v * (1 + w) / (1 - w)
    of_v = digamma - 1 / v + far - w * of_log_w / (1 - w)
    return [value + np.log1p(-w), by_log_x, of_v]


@cache
def _zeta(s: int) -> np.longdouble:
    """Riemann's zeta function at s >= 2 in longdouble, by Euler's and Maclaurin's sum."""
    n = np.longdouble(30)
    total = sum((np.longdouble(k) ** -s for k in range(29, 0, -1)), np.longdouble(0))
    tail = n ** (1 - s) / (s - 1) + n**-s / 2
    for k, b in enumerate(bernoulli(2 * _STIRLING)[2::2], 1):
        rising = math.prod(s + i for i in range(2 * k - 1))
        tail = tail + _long(b * rising / math.factorial(2 * k)) * n ** (-s - 2 * k + 1)
    return total + tail


def _log_gamma(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lgamma and digamma of z >= 1, by Stirling's series at z + 40."""
    product, inverse = np.ones_like(z), np.zeros_like(z)
    for k in range(40):
        product, inverse = product * ((z + k) / 20), inverse + 1 / (z + k)
    w = z + 40
    log_2pi = np.log(2 * np.longdouble(np.pi) + 2 * np.longdouble(_PI_LOW))
    gamma = (w - 0.5) * np.log(w) - w + log_2pi / 2
    digamma = np.log(w) - 1 / (2 * w)
    for k, b in enumerate(bernoulli(2 * _STIRLING)[2::2], 1):
        gamma = gamma + _long(b / (2 * k * (2 * k - 1))) / w ** (2 * k - 1)
        digamma = digamma - _long(b / (2 * k)) / w ** (2 * k)
    return gamma - np.log(product) - 40 * np.log(np.longdouble(20)), digamma - inverse


_PI_LOW = 1.2246467991473532e-16
_PI = np.longdouble(np.pi) + np.longdouble(_PI_LOW)
_SMALLEST = np.finfo(float).tiny


def _long(number: Fraction) -> np.longdouble:
    return np.longdouble(number.numerator) / np.longdouble(number.denominator)


def bessel_reference_table(
    vs: Iterable[float], xs: Iterable[float], dps: int = 50
) -> dict[str, list[tuple[float, float]]]:
    """Log I, log K and their first derivatives to many digits, each as float64 `high + low`.

    Args:
      vs: orders, 0 or more.
      xs: positive, as many.
      dps: decimal digits that are carried.

    Returns:
      By `NAMES`; derivatives with respect to the order at 0 are from the right.

    >>> f"{bessel_reference_table([0.5], [2.0])['log_kv'][0][0]:.15f}"
    '-2.120782237635245'
    """
    import mpmath  # of the tests' extra

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    with mpmath.workdps(2 * dps):
        step = mpmath.mpf(10) ** (-dps // 2)
        for v, x in zip(vs, xs, strict=True):
            mv, mx = mpmath.mpf(v), mpmath.mpf(x)
            for column, log in enumerate((_log_i, _log_k)):
                dx = (log(mv, mx * (1 + step)) - log(mv, mx * (1 - step))) / (2 * step * mx)
                around = [log(mv + k * step, mx) for k in range(3 if mv < step else 1)]
                if mv < step:
                    dv = (4 * around[1] - 3 * around[0] - around[2]) / (2 * step)
                else:
                    dv = (log(mv + step, mx) - log(mv - step, mx)) / (2 * step)
                for name, value in zip(NAMES[column::2], (around[0], dx, dv), strict=True):
                    high = float(value)
                    found[name].append((high, float(value - high)))
    return found


def _log_i(v: Any, x: Any) -> Any:
    import mpmath

    return mpmath.log(mpmath.besseli(v, x)) if _is_near(v, x) else _many_terms(v, x, 1)


def _log_k(v: Any, x: Any) -> Any:
    import mpmath

    return mpmath.log(mpmath.besselk(v, x)) if _is_near(v, x) else _many_terms(v, x, -1)


def _is_near(v: Any, x: Any) -> bool:
    return math.hypot(float(v), float(x)) < 120


def _many_terms(v: Any, x: Any, sign: int) -> Any:
    import mpmath

    p = mpmath.hypot(v, x)
    q, total = (v / p) ** 2, mpmath.mpf(0)
    for polynomial in reversed(debye_polynomials(70)):
        w = mpmath.mpf(0)
        for a in reversed(polynomial):
            w = w * q + mpmath.mpf(a.numerator) / a.denominator
        total = total * sign / p + w
    factor = 2 * mpmath.pi if sign > 0 else 2 / mpmath.pi
    eta = p - v * mpmath.asinh(v / x)
    return sign * eta - mpmath.log(factor * p) / 2 + mpmath.log(total)
