"""Values and first derivatives of log I and log K: tables, identities, all doubles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.special import bessel
from jaxlab.special.bessel.reference import (
    NAMES,
    _integral,
    _limit,
    bessel_reference_table,
    extended,
)

EPS = np.finfo(np.float64).eps
_AT_ONCE = 4096
DATA = Path(__file__).parent / "data"
# v, x, then the columns of NAMES, to 17 digits.
TABLE = np.loadtxt(DATA / "bessel_table.txt")
# In units of eps: of x relative to the value (2.5e-14 for K, reached near x = 1e-8), of v relative
# to 1 or the value.
_LIMITS = {"log_iv_dx": 8, "log_kv_dx": 112, "log_iv_dv": 20, "log_kv_dv": 20}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def evaluate(name, v, x):
    """A function at any number of points, always of as many at once, for one compilation."""
    fn, rest = getattr(bessel, name), -len(x) % _AT_ONCE
    x = np.pad(x, (0, rest), constant_values=1.0).reshape(-1, _AT_ONCE)
    if np.ndim(v):
        v = np.pad(v, (0, rest), constant_values=1.0).reshape(-1, _AT_ONCE)
    rows = [fn(v[i] if np.ndim(v) else v, part) for i, part in enumerate(x)]
    return np.concatenate(rows)[: x.size - rest]


def errors(v, x, truth):
    """By name, errors: of values relative to how much the arguments' last digits move them."""
    found = {}
    for name in NAMES:
        value, t = evaluate(name, v, x), truth[name]
        expected = np.isfinite(t.astype(value.dtype))
        assert np.all(np.isfinite(value[expected])), name
        kind, of = name[:6], np.abs(t)
        if name == kind:
            moved = np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
            scale = np.maximum(1, of) + moved
        else:
            scale = of if name.endswith("dx") else np.maximum(1, of)
        found[name] = np.where(expected, np.abs(value - t) / scale, 0).astype(float)
    return found


def check(v, x, truth):
    for name, error in errors(v, x, truth).items():
        worst = int(np.argmax(error))
        limit = _LIMITS.get(name, 8) * EPS
        at = np.broadcast_to(v, x.shape)[worst], x[worst]
        assert error[worst] <= limit, (name, *at, error[worst] / EPS)


def test_the_table():
    check(TABLE[:, 0], TABLE[:, 1], dict(zip(NAMES, TABLE[:, 2:].T, strict=True)))


def test_the_reference_is_that_of_many_digits():
    v = np.array([0.3, 1e-5, 35.956, 0.0, 700.0, 39.0, 1e6, 0.39, 0.7, 0.0])
    x = np.array([24.99, 1e-280, 1e-292, 3.0, 1e-3, 1.0, 1e6, 1e-290, 1e-30, 1e-12])
    ours = extended(v, x)
    for name, pairs in bessel_reference_table(v, x, dps=40).items():
        truth = np.array([np.longdouble(high) + low for high, low in pairs])
        scale = np.maximum(1, np.abs(truth))
        assert np.max(np.abs(ours[name] - truth) / scale) < 1e-16, name


def test_the_limit_of_the_reference_is_its_integral():
    v = np.r_[0, 0.4, 0.95, 1, 10 ** np.random.default_rng(1).uniform(-6, 1.6, 96)]
    x = 10 ** np.random.default_rng(2).uniform(-300, -9.01, 100)
    v, x = v.astype(np.longdouble), x.astype(np.longdouble)
    for ours, exact in zip(_limit(v, x), _integral(v, x, nodes=6000), strict=True):
        assert np.max(np.abs(ours - exact) / np.maximum(1, np.abs(exact))) < 1e-17


def test_the_stored_pairs():
    """Both sides of every border, the zeros and the ends of the range, to beyond float64."""
    rows = np.loadtxt(DATA / "bessel_pairs.txt")
    columns = rows[:, 2::2].astype(np.longdouble) + rows[:, 3::2]
    check(rows[:, 0], rows[:, 1], dict(zip(NAMES, columns.T, strict=True)))


def points(kind, rng):
    """(v, x) over the whole range, along the boundaries, and where log I or log K is 0."""
    if kind == "whole range":
        return 10 ** rng.uniform(-6, 8, 70_000), 10 ** rng.uniform(-300, 300, 70_000)
    if kind == "small":
        return 10 ** rng.uniform(-6, 1.4, 6000), 10 ** rng.uniform(-9, 1.4, 6000)
    if kind == "boundary":
        angle, side = rng.uniform(0, np.pi / 2, 4000), rng.choice([-1, 1], 4000)
        p = 25 * (1 + side * 10 ** rng.uniform(-16, -2, 4000))
        tiny = 1e-8 * (1 + side * 10 ** rng.uniform(-16, -2, 4000))
        v, x = p * np.cos(angle), p * np.sin(angle)
        return np.r_[v, rng.uniform(0, 24, 4000)], np.r_[x, tiny]
    if kind == "large":
        return 10 ** rng.uniform(0, 8, 30_000), 10 ** rng.uniform(-2, 9, 30_000)
    # Both sides of where log I or log K is 0; I of orders below 1/2 is nowhere 1.
    v = np.r_[10 ** rng.uniform(0, 8, 4000), 10 ** rng.uniform(-6, 8, 4000)]
    x = np.r_[zero_of("log_iv", v[:4000]), zero_of("log_kv", v[4000:])]
    return v, x * (1 + rng.choice([-1, 1], 8000) * 10 ** rng.uniform(-15, -3, 8000))


def zero_of(name, v):
    """Where a logarithm is 0, by Newton's method in log x from its limit for large orders."""
    x = np.maximum(0.6627434193491815 * v, 0.5)
    for _ in range(6):
        x = x * np.exp(-evaluate(name, v, x) / (x * evaluate(f"{name}_dx", v, x)))
    return x


@pytest.mark.parametrize("kind", ["whole range", "small", "boundary", "large", "zeros"])
def test_a_hundred_thousand_points(kind):
    v, x = points(kind, np.random.default_rng(7))
    truth = extended(v, x)
    check(v, x, truth)
    if kind == "zeros":
        for name, part in (("log_iv", slice(4000)), ("log_kv", slice(4000, None))):
            signs = np.sign(truth[name][part])
            assert min(np.mean(signs > 0), np.mean(signs < 0)) > 0.4, name


@pytest.mark.parametrize("order", [25.1, 86.1, 210.1, 1180.1, 90200.1])
def test_a_known_order_and_as_few_terms_as_suffice(order):
    x = 10 ** np.random.default_rng(9).uniform(-300, 9, 400)
    check(order, x, extended(np.full_like(x, order), x))


def test_half_an_order_in_closed_form():
    x = 10 ** np.linspace(-8, 8, 200)
    sinh = np.where(x < 1, np.log(np.sinh(np.minimum(x, 1))), x + np.log(-np.expm1(-2 * x) / 2))
    half = np.full_like(x, 0.5)
    np.testing.assert_allclose(
        bessel.log_iv(half, x), np.log(2 / (np.pi * x)) / 2 + sinh, rtol=8 * EPS, atol=8 * EPS
    )
    log_k = np.log(np.pi / (2 * x)) / 2 - x
    np.testing.assert_allclose(bessel.log_kv(half, x), log_k, rtol=8 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(bessel.kv_ratio(half, x), 1 + 1 / x, rtol=8 * EPS)


def test_orders_0_and_1_are_jax_own():
    x = 10 ** np.linspace(-6, 4, 300)
    for order, peer in ((0.0, jax.scipy.special.i0e), (1.0, jax.scipy.special.i1e)):
        ours, theirs = bessel.log_ive(order, x), jnp.log(peer(x))
        assert np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))) < 4e-15


def grid():
    v, x = np.meshgrid(np.r_[0, 10 ** np.linspace(-3, 5, 30)], 10 ** np.linspace(-8, 6, 30))
    return v.ravel(), x.ravel()


def test_wronskian_and_recurrence():
    v, x = grid()
    i, k = bessel.log_iv(v, x), bessel.log_kv(v, x)
    above_i, above_k = bessel.log_iv(v + 1, x), bessel.log_kv(v + 1, x)
    total = jnp.logaddexp(i + above_k, above_i + k) + np.log(x)
    # Where a logarithm is 0 its error is that of its parts, which are of the size of hypot(v, x).
    scale = 1 + np.hypot(v, x) + sum(map(np.abs, (i, k, above_i, above_k)))
    assert np.max(np.abs(total) / scale) < 8 * EPS
    rho = bessel.iv_ratio(v, x)
    below = bessel.iv_ratio(v + 1, x)
    np.testing.assert_allclose(1 / rho - below, 2 * (v + 1) / x, rtol=1e-14, atol=1e-14)


def test_order_and_bounds_of_amos():
    v, x = grid()
    rho = np.asarray(bessel.iv_ratio(v, x))
    half = v + 0.5
    lower = x / (half + np.hypot(v + 1.5, x))
    upper = x / (half + np.hypot(half, x))
    assert np.all(rho >= lower * (1 - 8 * EPS))
    assert np.all(rho <= upper * (1 + 8 * EPS))
    assert np.all(np.asarray(bessel.log_iv_dx(v, x)) > 0)
    assert np.all(np.asarray(bessel.log_kv_dx(v, x)) < 0)


def test_scaled_forms_keep_digits_where_x_is_large():
    v, x = np.array([0.0, 3.0, 1023.0, 0.5]), np.array([1e6, 1e5, 1e6, 2.0])
    truth = extended(v, x)
    for sign, scaled, name in ((-1, bessel.log_ive, "log_iv"), (1, bessel.log_kve, "log_kv")):
        exact = truth[name] + sign * x.astype(np.longdouble)
        np.testing.assert_allclose(scaled(v, x), exact.astype(float), rtol=1e-13, atol=1e-14)
    # Below the border of the expansion, too.
    rng = np.random.default_rng(0)
    v, x = np.r_[[1e-300] * 50, rng.uniform(0, 3, 350)], np.r_[14.99, rng.uniform(8, 25, 399)]
    truth = extended(v, x)
    for sign, scaled, name in ((-1, bessel.log_ive, "log_iv"), (1, bessel.log_kve, "log_kv")):
        exact = truth[name] + sign * x.astype(np.longdouble)
        moved = np.abs(v * truth[f"{name}_dv"]) + np.abs(x * (truth[f"{name}_dx"] + sign))
        error = np.abs(np.asarray(scaled(v, x)) - exact) / (np.maximum(1, np.abs(exact)) + moved)
        assert np.max(error) <= 8 * EPS, (name, error / EPS)
    lead = -np.log(2 * np.pi * 1e12) / 2 + 1 / 8e12
    assert abs(float(bessel.log_ive(0.0, 1e12)) - lead) < 8e-15
    small = bessel.log_ive(np.float32(3), np.float32(1e6))
    assert abs(float(small) - float(bessel.log_ive(3.0, 1e6))) < 1e-6


def test_the_published_scheme_and_where_it_loses_digits():
    v, x = np.array([3.0, 40.0, 1023.0, 2.0]), np.array([2000.0, 20.0, 500.0, 9.0])
    for ours in (bessel.log_iv, bessel.log_kv):
        np.testing.assert_allclose(ours(v, x, method="paper"), ours(v, x), rtol=1e-12)
    truth = float(extended([2e-6], [0.25])["log_kv"][0])
    error = abs(float(bessel.log_kv(2e-6, 0.25, method="paper") - truth))
    assert 1e-10 < error < 1e-9
    assert abs(float(bessel.log_kv(2e-6, 0.25) - truth)) < 8 * EPS
