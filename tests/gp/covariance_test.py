"""Kernels of an axis: values against scipy, what every kernel is, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxlab.gp.covariance import (
    KERNELS,
    axis_covariance,
    axis_kernel,
    matern,
    matern_axis,
    spectral_axis,
    squared_exponential,
)

UNIFORM = np.linspace(-1.0, 2.0, 13)
SCATTERED = np.sort(np.random.default_rng(0).uniform(-1, 2, 9))


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def by_bessel(r, nu, length):
    s = np.sqrt(2 * nu) * np.abs(r) / length
    return 2 ** (1 - nu) / special.gamma(nu) * s**nu * special.kv(nu, s)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, 1.2, 4.0])
def test_materns_are_those_of_bessel_functions(nu):
    z = np.array([-3.0, -0.5, 0.01, 0.7, 2.0])
    np.testing.assert_allclose(matern(jnp.asarray(z), 0.8, nu), by_bessel(z, nu, 0.8), rtol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_of_variance_one_is_symmetric_and_positive(name):
    params = KERNELS[name].init(UNIFORM, np.float64)
    axes = UNIFORM, SCATTERED
    made = jax.jit(
        lambda p: [(axis_covariance(name, p, x), axis_covariance(name, p, x, x)) for x in axes]
    )
    for k, whole in made(params):
        k = np.asarray(k)
        np.testing.assert_allclose(np.diagonal(k), 1, rtol=1e-12)
        np.testing.assert_allclose(k, k.T, atol=1e-14)
        assert np.linalg.eigvalsh(k).min() > -1e-12
        # The columns of equal distances are gathered; between two axes all is evaluated.
        np.testing.assert_allclose(whole, k, atol=1e-12)


def test_spectral_mixtures_are_sums_of_waves_under_envelopes():
    z = np.linspace(-1, 1, 8)  # without 0, where Bessel's K is infinite
    params = {
        "log_w": jnp.log(jnp.array([3.0, 1.0])),
        "log_ls": jnp.array([0.0, 1.0]),
        "freq": jnp.array([0.5, 2.0]),
    }
    gaussian = 0.75 * np.exp(-(z**2)) * np.cos(np.pi * z)
    gaussian += 0.25 * np.exp(-np.e * z**2) * np.cos(4 * np.pi * z)
    found = spectral_axis(2).value(params, jnp.asarray(z))
    np.testing.assert_allclose(found, gaussian, atol=1e-14)
    student = 0.75 * by_bessel(z, 1.5, 1.0) * np.cos(np.pi * z)
    student += 0.25 * by_bessel(z, 1.5, 1 / np.e) * np.cos(4 * np.pi * z)
    found = spectral_axis(2, "matern32").value(params, jnp.asarray(z))
    np.testing.assert_allclose(found, student, atol=1e-12)


@pytest.mark.parametrize("envelope", ["gaussian", "matern12", "matern32", "matern52"])
def test_spectral_mixtures_begin_with_a_quarter_of_the_axis_as_length(envelope):
    kernel, quarter = spectral_axis(1, envelope), 0.75  # of UNIFORM, with frequency 0
    found = kernel.value(kernel.init(UNIFORM, np.float64), jnp.asarray(quarter))
    smoothness = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}.get(envelope)
    expected = by_bessel(quarter, smoothness, quarter) if smoothness else np.exp(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_squared_exponential():
    found = squared_exponential(jnp.asarray([0.0, -2.0]), 0.5)
    np.testing.assert_allclose(found, [1, np.exp(-8.0)])


def test_what_is_not_there_is_refused():
    for make, message in (
        (lambda: axis_kernel("matern23"), "did you mean 'matern"),
        (lambda: spectral_axis(0), "count=0 must be 1 or more"),
        (lambda: spectral_axis(3, "gausian"), "did you mean 'gaussian'"),
        (lambda: matern_axis(-1.0), "nu=-1.0 must be positive"),
        (lambda: matern(jnp.zeros(1), 1.0, 0.0), "nu=0.0 must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
