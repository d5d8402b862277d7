"""Matern covariances of any smoothness, and Student's characteristic function, which is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxlab.special.matern import log_matern, matern
from jaxlab.special.student_t import student_t_log_cf

R = np.array([0, 1e-9, 1e-3, 0.1, 1.0, 3.0, 30.0])
# nu, r / ell, and log of the covariance with its derivatives in r and nu at ell = 1: mpmath, 50
# digits, derivatives by central differences.
REFERENCE = np.array(
    [
        (0.3, 1e-05, -0.00081898910421397958, -49.159471041294445, 0.018462460858091629),
        (0.3, 0.3, -0.48176989969910598, -1.1355790189147325, 1.3783597279723057),
        (0.3, 4.0, -3.7319723213562565, -0.81957968431201667, -1.4387690147178432),
        (0.9, 1e-05, -4.3712826521438861e-9, -0.00077783087908710064, 6.650408011239355e-8),
        (0.9, 0.3, -0.16416644004536795, -0.78081130757358199, 0.18702547990891549),
        (0.9, 4.0, -4.4177792721539562, -1.2527227928938959, -0.88781283240211537),
        (2.2, 1e-05, -9.1666666645906542e-11, -1.8333333325039153e-5, 3.4722222108133929e-11),
        (2.2, 0.3, -0.076843081886522249, -0.48596221757927594, 0.020909114045646469),
        (2.2, 4.0, -5.2195259997106517, -1.7333128665862871, -0.43995504427842211),
        (14.0, 1e-05, -5.3846153846033046e-11, -1.0769230769182447e-5, 2.9585798815428556e-13),
        (14.0, 0.3, -0.048364253167140519, -0.32178355058659929, 0.00025715041483960788),
        (14.0, 4.0, -6.9092232170158043, -2.9316516202793611, -0.05226255878763184),
        (28.5, 1e-05, -5.1818181818131164e-11, -1.0363636363616099e-5, 6.611570247729777e-14),
        (28.5, 0.3, -0.04659542655153909, -0.31036392553831246, 5.785889487667153e-5),
        (28.5, 4.0, -7.3509108941766615, -3.3226648500373559, -0.01790104083718699),
        (30.0, 1e-05, -5.1724137930986716e-11, -1.0344827586187787e-5, 5.9453032102821278e-14),
        (30.0, 0.3, -0.046513115248587292, -0.30983063153152905, 5.2043458135763409e-5),
        (30.0, 4.0, -7.3766772393431769, -3.3469649957691673, -0.01648380344146208),
        (300.0, 1e-05, -5.0167224080263344e-11, -1.0033444816051823e-5, 5.5927786041235278e-16),
        (300.0, 0.3, -0.045147081949572894, -0.30095775279875322, 4.9180058771086685e-7),
        (300.0, 4.0, -7.9223626085329532, -3.9107510324448438, -0.00025122358013520831),
    ]
)


# At as many points as REFERENCE has, everywhere, for one compilation.
gradients = jax.jit(jax.grad(lambda *at: jnp.sum(log_matern(*at)), (0, 1, 2)))


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def test_half_integers_are_closed_forms():
    a, b = np.sqrt(3) * R, np.sqrt(5) * R
    closed = [np.exp(-R), (1 + a) * np.exp(-a), (1 + b + b * b / 3) * np.exp(-b)]
    found = matern(R[None], np.array([[0.5], [1.5], [2.5]]), 1.0)
    np.testing.assert_allclose(found, closed, rtol=1e-14)
    np.testing.assert_array_equal(found[:, 0], 1)


def test_smooth_limit_is_squared_exponential():
    np.testing.assert_allclose(matern(R, 1e4, 1.0), np.exp(-R * R / 2), atol=1e-4)
    np.testing.assert_allclose(matern(R, np.inf, 2.0), np.exp(-R * R / 8), rtol=1e-14)
    # The first correction in 1 / nu: (r^4 / 8 - r^2 / 2) / nu.
    gap = (log_matern(R[3:6], 1e8, 1.0) + R[3:6] ** 2 / 2) * 1e8
    np.testing.assert_allclose(gap, R[3:6] ** 4 / 8 - R[3:6] ** 2 / 2, rtol=1e-5)


def test_values_and_derivatives_of_any_smoothness():
    nu, r, value, slope, by_order = REFERENCE.T
    ell = 1.3
    found = log_matern(r * ell, nu, ell)
    by_r, by_nu, by_ell = gradients(r * ell, nu, np.full_like(r, ell))
    # Up to an order of 29 terms as large as these cancel.
    terms = np.abs(scipy.special.gammaln(nu)) + nu * np.abs(np.log(np.sqrt(2 * nu) * r))
    error = np.finfo(float).eps * np.where(nu > 29, 0, terms)
    assert np.all(np.abs(found - value) <= 2 * error + 4e-15 * (1 + np.abs(value)))
    np.testing.assert_allclose(by_r * ell, slope, rtol=2e-14)
    terms = np.abs(np.log(np.sqrt(2 * nu) * r / 2)) + np.abs(scipy.special.digamma(nu))
    # Through s, which holds nu, goes the opposite of most of what is left.
    # For large nu the sums of the expansion at s and at 0 are alike.
    terms = np.where(nu > 29, 1 / (8 * nu**2), terms) + np.abs(slope * r / (2 * nu))
    error = np.finfo(float).eps * (terms + np.abs(by_order))
    assert np.all(np.abs(by_nu - by_order) <= 16 * error)
    np.testing.assert_allclose(by_ell * ell, -slope * r, rtol=2e-14)


def test_derivatives_at_distance_zero():
    nu = np.array([0.3, 0.5, 1.0, 2.5, 40.0])
    along = lambda fn: lambda r: jax.jvp(fn, (r,), (jnp.ones(5),))[1]  # noqa: E731
    slope_at = along(lambda r: matern(r, nu, 1.3))
    slope, curvature = jax.jit(lambda r: (slope_at(r), along(slope_at)(r)))(jnp.zeros(5))
    np.testing.assert_array_equal(slope, 0)
    expected = -nu[3:] / (nu[3:] - 1) / 1.69
    np.testing.assert_allclose(curvature, [0, 0, 0, *expected], rtol=1e-13)
    count = len(REFERENCE)
    first = gradients(np.zeros(count), np.resize(nu, count), np.full(count, 1.3))
    # In nu, that of the expansion is a difference of equal sums.
    np.testing.assert_allclose(first, 0, atol=1e-20)


def test_second_derivatives_near_distance_zero():
    # For nu above 1 the limit, up to a power 2 nu - 2 of r; else what the recurrence gives.
    nu = np.array([0.5, 1.0, 1.1, 2.5, 14.0])
    # Of the logarithm, because the value is a sum of large terms.
    log = lambda r: log_matern(r, nu.astype(np.float32)[:, None], np.float32(1.0))  # noqa: E731
    along = lambda fn: lambda r: jax.jvp(fn, (r,), (jnp.ones_like(r),))[1]  # noqa: E731
    with jax.enable_x64(False):
        r = np.array([1e-37, 1e-30, 1e-20, 1e-17], np.float32)
        found = jax.jit(along(along(log)))(np.broadcast_to(r, (5, 4)))
    limit = -nu / (nu - 1 + (nu <= 1))
    np.testing.assert_allclose(found[3:], np.broadcast_to(limit[3:, None], (2, 4)), rtol=1e-5)
    np.testing.assert_allclose(found[2], np.full(4, limit[2]), rtol=2e-3)
    np.testing.assert_allclose(found[0], 0, atol=1e-5)
    # For nu = 1 the logarithm is s^2 (log(s / 2) + Euler's constant - 1 / 2) / 2, s^2 = 2 r^2.
    expected = 2 * (np.log(r / np.sqrt(2)) + np.euler_gamma + 1)
    np.testing.assert_allclose(found[1], expected, rtol=1e-4)


def test_dtypes_shapes_and_bad_arguments():
    r = jnp.array([0.3, 2.0, jnp.inf], jnp.float32)
    nu = jnp.array([[0.7], [200.0]], jnp.float32)
    found = jax.jit(matern)(r, nu, 1)
    assert (found.dtype, found.shape) == (jnp.float32, (2, 3))
    wide = matern(np.float64([0.3, 2.0]), np.array([[0.7], [200.0]]), 1.0)
    np.testing.assert_allclose(found[:, :2], wide, rtol=2e-6)
    np.testing.assert_array_equal(found[:, 2], 0)
    assert matern(jnp.ones(2, jnp.bfloat16), 1.5, 1.0).dtype == jnp.bfloat16
    assert np.isnan(matern(-1.0, 1.5, 1.0))
    assert np.isnan(jax.jit(matern)(1.0, -1.5, 1.0))
    with pytest.raises(ValueError, match="matern: nu=0 must be above 0"):
        matern(1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="student_t_log_cf: df=-1 must be above 0"):
        student_t_log_cf(1.0, -1, 1.0)


def test_students_characteristic_function_is_the_integral_of_its_density():
    """Against quadrature of cos(t x) f(x) for 7 degrees, closed forms for 1, 3 and infinity."""
    t = np.array([-2.0, 0.0, 0.5, 4.0])
    s = np.sqrt(3) * np.abs(t)
    np.testing.assert_allclose(student_t_log_cf(t, 1.0), -np.abs(t), rtol=1e-14)
    np.testing.assert_allclose(student_t_log_cf(t, 3.0), np.log1p(s) - s, rtol=1e-13)
    np.testing.assert_allclose(student_t_log_cf(t, np.inf, 2.0), -2 * t * t, rtol=1e-14)
    x = np.linspace(-400, 400, 800001)
    density = (1 + x * x / 7) ** -4
    transform = [np.sum(np.cos(u * x) * density) / np.sum(density) for u in 3 * t[:3]]
    np.testing.assert_allclose(jnp.exp(student_t_log_cf(t[:3], 7, 3.0)), transform, atol=1e-12)
