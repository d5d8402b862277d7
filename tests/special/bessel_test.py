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
from jaxlab.special.bessel.regions import SCHEMES

EPS = np.finfo(np.float64).eps
_AT_ONCE = 4096
DATA = Path(__file__).parent / "data"
# v, x, then the columns of NAMES, to 17 digits.
TABLE = np.loadtxt(DATA / "bessel_table.txt")
# In units of eps: of x relative to the value, of v relative to 1 or the value.
_LIMITS = {"log_iv_dx": 8, "log_kv_dx": 16, "log_iv_dv": 20, "log_kv_dv": 16}
# Of log_kv_dx where the integrand is widest, so that the rule's intervals are: from the limit's
# border to its double, for orders near 2. The specification allows 112.
_WIDEST = 80


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
    """By name, in eps: of values relative to how much the arguments' last digits move them."""
    found = {}
    for name in NAMES:
        value, t = evaluate(name, v, x), truth[name]
        with np.errstate(over="ignore"):
            rounded = t.astype(value.dtype)
        expected = np.isfinite(rounded)
        assert np.all(np.isfinite(value[expected])), name
        np.testing.assert_array_equal(value[~expected], rounded[~expected], name)
        kind, of = name[:6], np.abs(t)
        if name == kind:
            moved = np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
            scale = np.maximum(1, of) + moved
        else:
            scale = of if name.endswith("dx") else np.maximum(1, of)
        error = np.where(expected, np.abs(value - t) / scale, 0)
        found[name] = error.astype(float) / np.finfo(value.dtype).eps
    return found


def check(v, x, truth, limits=_LIMITS):
    """In units of the dtype's eps, the same for both, and never above the 2e-6 of float32."""
    tiny, most = SCHEMES[x.dtype.name].tiny, 2e-6 / np.finfo(x.dtype).eps
    for name, error in errors(v, x, truth).items():
        wide = (name == "log_kv_dx") & (x >= tiny) & (x < 2 * tiny) & (x.dtype == "float64")
        limit = np.where(wide, _WIDEST, min(limits.get(name, 8), most))
        worst = int(np.argmax(error / limit))
        at = np.broadcast_to(v, x.shape)[worst], x[worst]
        assert error[worst] <= limit[worst], (name, *at, error[worst])


def test_the_table():
    check(TABLE[:, 0], TABLE[:, 1], dict(zip(NAMES, TABLE[:, 2:].T, strict=True)), limits={})


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


def points(kind, rng, dtype="float64"):
    """(v, x) over the whole range, along the boundaries, and where log I or log K is 0."""
    # hypot(v, x) above which the expansion is taken, and x below which K is its limit.
    border, least = SCHEMES[dtype].least, SCHEMES[dtype].tiny
    eps, most, some = np.finfo(dtype).eps, 300, 4000
    if dtype == "float32":
        most, some = 37, 2000

    def near(size, most):
        return 1 + rng.choice([-1, 1], size) * 10 ** rng.uniform(np.log10(eps), most, size)

    if kind == "whole range":
        v, x = 10 ** rng.uniform(-6, 8, 100_000), 10 ** rng.uniform(-most, most, 100_000)
    elif kind == "small":
        v, x = 10 ** rng.uniform(-6, 1.4, 6000), 10 ** rng.uniform(-9, 1.4, 6000)
    elif kind == "boundary":
        angle, p = rng.uniform(0, np.pi / 2, some), border * near(some, -2)
        v = np.r_[p * np.cos(angle), rng.uniform(0, border - 1, some)]
        x = np.r_[p * np.sin(angle), least * near(some, -2)]
    elif kind == "tiny":
        # Both sides of where K is its limit, which is written for v below 1/2, below 0.95 and
        # above, of orders at and beside those and whole numbers.
        special = rng.choice(np.r_[0.5, 0.95, np.arange(border + 1)], some)
        beside = special + rng.choice([-1, 0, 1], some) * 10 ** rng.uniform(-16, -2, some)
        v = np.r_[np.abs(beside), rng.uniform(0, 1.2, some // 2), rng.uniform(0, border, some // 2)]
        x = least * np.r_[10 ** rng.uniform(-1, 1, some), near(some, -1)]
        x = rng.permutation(x)
    elif kind == "large":
        v, x = 10 ** rng.uniform(0, 8, 30_000), 10 ** rng.uniform(-2, 9, 30_000)
    else:
        # Both sides of where log I or log K is 0; I of orders below 1/2 is nowhere 1.
        v = np.r_[10 ** rng.uniform(0, 8, some), 10 ** rng.uniform(-6, 8, some)].astype(dtype)
        x = np.r_[zero_of("log_iv", v[:some]), zero_of("log_kv", v[some:])] * near(2 * some, -3)
    return v.astype(dtype), x.astype(dtype)


def zero_of(name, v):
    """Where a logarithm is 0, by Newton's method in log x from its limit for large orders."""
    v = v.astype(float)
    x = np.maximum(0.6627434193491815 * v, 0.5)
    for _ in range(6):
        x = x * np.exp(-evaluate(name, v, x) / (x * evaluate(f"{name}_dx", v, x)))
    return x


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "float64") for kind in ("whole range", "small", "boundary", "tiny", "large", "zeros")]
    + [(kind, "float32") for kind in ("whole range", "boundary", "tiny", "zeros")],
)
def test_a_hundred_thousand_points(kind, dtype):
    v, x = points(kind, np.random.default_rng(7), dtype)
    truth = extended(v, x)
    check(v, x, truth)
    if kind == "zeros":
        half = x.size // 2
        for name, part in (("log_iv", slice(half)), ("log_kv", slice(half, None))):
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


@pytest.mark.parametrize(("dtype", "order"), [("float64", 1e300), ("float32", 1e30)])
def test_orders_whose_squares_overflow(dtype, order):
    """In closed form, because no digit is left of the expansion's sum."""
    tiny, largest = np.finfo(dtype).tiny, np.finfo(dtype).max
    x = np.r_[2 * tiny, 1e-8, 1, order ** np.r_[0.5, 0.99], order * np.r_[0.66, 1], largest / 4]
    x = np.r_[x, order * 0.6627434193491815].astype(dtype)  # where both logarithms are near 0
    v = np.full_like(x, order)
    order = v[0]
    long_v, long_x = v.astype(np.longdouble), x.astype(np.longdouble)
    p, angle = np.hypot(long_v, long_x), np.arcsinh(long_v / long_x)
    eta, half = p - v * angle, np.log(p) / 2
    truth = {
        "log_iv": eta - half - np.log(2 * np.pi) / 2,
        "log_kv": -eta - half + np.log(np.pi / 2) / 2,
        "log_iv_dx": p / x - x / p / p / 2,
        "log_kv_dx": -p / x - x / p / p / 2,
        "log_iv_dv": -angle - v / p / p / 2,
        "log_kv_dv": angle - v / p / p / 2,
    }
    for known in (v, order):
        for name, error in errors(known, x, truth).items():
            assert np.max(error) <= 2, (name, x[np.argmax(error)], np.max(error))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", bessel.__all__)
def test_narrow_dtypes_are_rounded_once(name, dtype):
    v, x = jnp.asarray(10 ** np.random.default_rng(5).uniform(-2, [[2], [2.3]], (2, 300)), dtype)
    v, x = np.asarray(v), np.asarray(x)
    found, wide = evaluate(name, v, x), evaluate(name, v.astype("float32"), x.astype("float32"))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wide.astype(dtype))
    v, x = v.astype(np.longdouble), x.astype(np.longdouble)
    exact, info = exactly(name, v, x), jnp.finfo(dtype)
    ulp = 2.0 ** np.maximum(np.floor(np.log2(np.abs(exact))) - info.nmant, info.minexp - info.nmant)
    # Half a unit of its own, and 8 of float32, which are more than that where a logarithm is 0: it
    # is a sum there of numbers of the size of hypot(v, x).
    size = np.maximum(np.abs(exact), np.hypot(v, x) if len(name) <= len("log_kve") else 1)
    error = np.abs(found.astype(np.longdouble) - exact)
    assert np.all(error <= ulp / 2 + 8 * np.finfo("float32").eps * np.maximum(1, size))


def exactly(name, v, x):
    here = extended(v, x)
    if name in here:
        return here[name]
    kind = f"log_{name[:2]}" if name.endswith("ratio") else name[:6]
    if kind == name[:6]:
        return here[kind] + (x if kind == "log_kv" else -x)
    return np.exp(extended(v + 1, x)[kind] - here[kind])


def grid():
    v, x = np.meshgrid(np.r_[0, 10 ** np.linspace(-3, 5, 30)], 10 ** np.linspace(-8, 6, 30))
    return v.ravel(), x.ravel()


def identities():
    """Points for them, of which a third is where a logarithm is 0."""
    rng = np.random.default_rng(11)
    sets = [grid(), *(points(kind, rng) for kind in ("boundary", "zeros"))]
    return np.concatenate([*sets, 10 ** rng.uniform([[-3], [-8]], 6, (2, 7000))], axis=1)


def test_wronskian():
    v, x = identities()
    here, above = ({name: evaluate(name, at, x) for name in NAMES} for at in (v, v + 1))
    i, k = here["log_iv"], here["log_kv"]
    total = np.logaddexp(i + above["log_kv"], above["log_iv"] + k) + np.log(x)
    # The scale that the specification asks for. Where a logarithm is 0 no implementation keeps it:
    # half of the last digit of x moves log I by more, and v + 1 is rounded.
    asked = 1 + np.abs(i) + np.abs(k)
    moved = np.zeros_like(x)
    for at, of in ((v, here), (v + 1, above)):
        for kind in NAMES[:2]:
            change = np.abs(at * of[f"{kind}_dv"]) + np.abs(x * of[f"{kind}_dx"])
            moved = np.maximum(moved, change)
    fair = moved <= asked
    assert np.mean(fair) > 0.4
    assert np.max(np.abs(total[fair]) / asked[fair]) <= 8 * EPS
    # And everywhere, with what moves it.
    assert np.max(np.abs(total) / (asked + moved)) <= 4 * EPS


def test_recurrence_of_the_ratios():
    """Asked for is 1e-14 relative to 2 (v + 1) / x."""
    v, x = identities()
    twice = 2 * (v + 1) / x
    ratios = [[evaluate(name, at, x) for at in (v, v + 1)] for name in ("iv_ratio", "kv_ratio")]
    (i, above_i), (k, above_k) = ratios
    # That of K is by a rule near x = 1e-8 whose intervals are wide, see _WIDEST.
    for large, small, limit in ((1 / i, above_i, 12 * EPS), (above_k, 1 / k, 1e-14)):
        error = np.abs(large - small - twice)
        # Beyond x = v + 1 it is a difference of numbers near 1, and a digit of theirs is no digit
        # of it: at x = 1e6 v no ratio that is rounded keeps 1e-14. There it is relative to them.
        assert np.max((error / twice)[x <= v + 1]) <= limit
        assert np.max(error / large) <= limit


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
