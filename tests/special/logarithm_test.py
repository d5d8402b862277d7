"""Logarithms of quotients, and the expansion of the logarithm, beside NumPy's and exact numbers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.special import bessel
from jaxlab.special.bessel.debye import (
    asinh_ratio,
    debye_polynomials,
    log_polynomials,
    polar,
    terms_above,
)
from jaxlab.special.bessel.logarithm import (
    atanh,
    leading,
    log_quotient,
    places,
    power_of_two,
    times_power,
)
from jaxlab.special.bessel.order import sum_of_order


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_log_quotient_is_right_to_rounding_for_all_exponents(dtype):
    rng = np.random.default_rng(0)
    largest = np.finfo(dtype).maxexp - 6
    with jax.enable_x64(True):
        k = rng.integers(-largest, largest, 4000)
        a, b = (2 ** rng.uniform([[0], [-largest]], [[3], [largest]], (2, 4000))).astype(dtype)
        b[:2000] = a[:2000] * 2.0 ** k[:2000] * rng.uniform(0.3, 3, 2000).astype(dtype)
        v, x = 2 ** rng.uniform(-3, 3, (2, 4000))
        # As for a = v + hypot(v, x).
        guide = (a * (2 * v + x) / (v + np.hypot(v, x))).astype(dtype)
        exponent = jnp.asarray(k << places(jnp.dtype(dtype)), jnp.int32)
        log = log_quotient(jnp.asarray(a), jnp.asarray(b), jnp.asarray(guide), exponent)
        quotient = log.above / log.below
        found = 2 * log.half(quotient)
        assert found.dtype == dtype
        assert float(jnp.max(jnp.abs(quotient))) <= 0.255
    exact = np.log(a.astype(np.longdouble)) - np.log(b.astype(np.longdouble))
    exact += k * np.log(np.longdouble(2))
    error = np.abs(np.asarray(found) - exact) / np.maximum(1, np.abs(exact))
    assert np.max(error) <= 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_atanh_keeps_relative_accuracy_up_to_its_widest_argument(dtype):
    s = np.concatenate([np.linspace(-0.255, 0.255, 2001), 10.0 ** -np.arange(1, 30)]).astype(dtype)
    with jax.enable_x64(True):
        found = np.asarray(atanh(jnp.asarray(s)))
    exact = np.arctanh(s.astype(np.longdouble))
    assert np.all(np.abs(found - exact) <= 2 * np.finfo(dtype).eps * np.abs(exact))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_powers_of_two_by_bits_are_exact(dtype):
    k = np.arange(-20, 21)
    with jax.enable_x64(True):
        a = jnp.asarray(np.linspace(1, 2, 41), dtype)
        exponent = jnp.asarray(k << places(a.dtype), jnp.int32)
        moved = times_power(a, exponent)
        power = power_of_two(exponent + leading(jnp.ones_like(a)), a.dtype)
        assert moved.dtype == power.dtype == dtype
    np.testing.assert_array_equal(moved, np.asarray(a) * 2.0**k)
    np.testing.assert_array_equal(power, 2.0**k)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_polar_form_and_angle_over_the_whole_range(dtype):
    rng = np.random.default_rng(1)
    # Squares of most over- or underflow.
    most = np.finfo(dtype).maxexp - 10
    v, x = (2 ** rng.uniform(-most, most, (2, 4000))).astype(dtype)
    x[:2000] = (v[:2000] * 2 ** rng.uniform(-3, 3, 2000)).astype(dtype)
    with jax.enable_x64(True):
        p, inverse, c, s = (np.asarray(part) for part in polar(jnp.asarray(v), jnp.asarray(x)))
        angle = np.asarray(asinh_ratio(jnp.asarray(v), jnp.asarray(x)))
    wide_v, wide_x = v.astype(np.longdouble), x.astype(np.longdouble)
    exact = np.hypot(wide_v, wide_x)
    eps, tiny = np.finfo(dtype).eps, np.finfo(dtype).tiny
    np.testing.assert_allclose(p.astype(np.longdouble) / exact, 1, rtol=4 * eps)
    for found, part in ((inverse, 1 / exact), (c, wide_v / exact), (s, wide_x / exact)):
        # What is nearly subnormal may be 0.
        error = np.abs(found - part)
        assert np.all(error <= 4 * eps * part + tiny * 2**25)
    exact = np.arcsinh(wide_v / wide_x)
    assert np.all(np.abs(angle - exact) <= 5 * eps * exact + 4 * tiny)


def test_exponential_of_the_logarithms_polynomials_gives_back_debyes():
    terms, q = 8, Fraction(2, 7)
    w, d = (
        [sum((c * q**j for j, c in enumerate(part)), Fraction(0)) for part in made(terms)]
        for made in (debye_polynomials, log_polynomials)
    )
    # The series of exp: k e_k is the sum of j d_j e_(k-j).
    found = [Fraction(1)]
    for k in range(1, terms + 1):
        found.append(sum((j * d[j] * found[k - j] for j in range(1, k + 1)), Fraction(0)) / k)
    assert found == w


def test_at_1_the_logarithm_is_stirlings_series_of_log_gamma():
    # 1 / 12, 0, -1 / 360, 0, 1 / 1260, with the sign of t.
    ones = [sum(d) for d in log_polynomials(5)][1:]
    wanted = [Fraction(-1, 12), 0, Fraction(1, 360), 0, Fraction(-1, 1260)]
    assert ones == wanted


def test_fewer_terms_for_larger_orders_and_never_more_than_allowed():
    counts = [terms_above(p, 1e-16, 14) for p in (25.0, 60.0, 300.0, 1023.0, 1e4, 1e6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 14
    assert counts[-1] <= 2
    q = np.linspace(0, 1, 50)
    for p, terms in ((60.0, counts[1]), (300.0, counts[2])):
        rest = sum(
            np.abs(np.polyval([float(c) for c in reversed(d)], q)) * p**-k
            for k, d in enumerate(log_polynomials(terms + 4))
            if k > terms
        )
        assert np.max(rest) <= 1e-16


@pytest.mark.parametrize(("order", "sign", "error"), [(30.0, -1, 1e-16), (1023.0, 1, 1e-15)])
def test_the_sum_of_one_order_is_within_its_error_and_shorter(order, sign, error):
    terms = terms_above(order, error, 14)
    found = sum_of_order(order, sign, terms, error)
    assert len(found) < terms * (terms + 3) / 2
    c = np.linspace(0, 1, 301).astype(np.longdouble)
    exact = sum(
        np.polyval([float(d) for d in reversed(polynomial)], c * c) * (sign * c / order) ** k
        for k, polynomial in enumerate(log_polynomials(terms))
    )
    difference = np.polyval(found[::-1], c) * c - exact
    # And what rounding the coefficients and the sum itself leaves.
    assert np.max(np.abs(difference)) <= 1.01 * error + 1e-17


@pytest.mark.parametrize("x", [1e30, 2e307, 1.2e308])
def test_numbers_that_nearly_overflow(x):
    with jax.enable_x64(True):
        found = [float(bessel.log_ive(v, jnp.asarray(x))) for v in (0.5, 1023.0)]
        large = float(bessel.log_iv(9e307, jnp.asarray(x)))
        ratio = 9e307 / x
        exact = x * (np.hypot(1, ratio) - ratio * np.arcsinh(ratio)) if ratio < 1e3 else -np.inf
    np.testing.assert_allclose(found, -(np.log(2 * np.pi) + np.log(x)) / 2, rtol=1e-15)
    np.testing.assert_allclose(large, exact, rtol=1e-14)
