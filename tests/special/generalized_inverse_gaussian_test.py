"""The generalized inverse Gaussian distribution against scipy's, and where scipy's fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.special.generalized_inverse_gaussian import gig_log_prob, gig_mean, gig_variance

P = np.array([-0.5, 2.3, -3.0, 50.0, 0.0])
A = np.array([1.0, 0.7, 2.0, 3.0, 0.1])
B = np.array([1.0, 4.0, 1e-3, 8.0, 2.0])


def test_densities_and_moments_are_those_of_scipy():
    x = np.array([0.1, 1.0, 5.0])[:, None]
    frozen = scipy.stats.geninvgauss(P, np.sqrt(A * B), scale=np.sqrt(B / A))
    with jax.enable_x64(True):
        np.testing.assert_allclose(gig_log_prob(x, P, A, B), frozen.logpdf(x), rtol=1e-13)
        np.testing.assert_allclose(gig_mean(P, A, B), frozen.mean(), rtol=1e-13)
        np.testing.assert_allclose(gig_variance(P, A, B), frozen.var(), rtol=1e-11)


def test_large_orders_and_arguments_integrate_to_one():
    """K is 0 or infinite as a number here; the density is nearly normal around its mean."""
    p, a, b = np.array([2000.0, -3.0]), np.array([3.0, 4e6]), np.array([8.0, 1e6])
    with jax.enable_x64(True):
        mean, variance = (np.asarray(f(p, a, b)) for f in (gig_mean, gig_variance))
        deviation = np.sqrt(variance)
        grid = np.linspace(-12, 12, 2001)[:, None]
        x = mean + deviation * grid
        mass = np.exp(gig_log_prob(x, p, a, b)) * deviation * (grid[1] - grid[0])
        np.testing.assert_allclose(np.sum(mass, axis=0), 1, rtol=1e-9)
        np.testing.assert_allclose(np.sum(mass * x, axis=0), mean, rtol=1e-9)


def test_derivatives_are_scores():
    """The mean of the derivative in a of log f is 0, so that log K's is -E[x] / 2 and the rest."""
    with jax.enable_x64(True):
        x = 0.7
        by_a, by_b = jax.jit(jax.grad(gig_log_prob, (2, 3)))(x, 2.3, 0.7, 4.0)
        mean = gig_mean(2.3, 0.7, 4.0)
        # 1 / X is of the same family, with -p and a, b exchanged.
        inverse = gig_mean(-2.3, 4.0, 0.7)
        assert float(by_a) == pytest.approx(float(mean - x) / 2, rel=1e-12)
        assert float(by_b) == pytest.approx(float(inverse - 1 / x) / 2, rel=1e-12)


def test_edges_dtypes_and_bad_arguments():
    x = jnp.array([0.0, -1.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(gig_log_prob(x, 1, 1.0, 1.0), [-np.inf] * 3 + [np.nan])
    assert gig_mean(jnp.ones(2, jnp.bfloat16), 1, 1).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="gig_mean: b=0 must be above 0"):
        gig_mean(1.0, 1.0, 0.0)
    with pytest.raises(TypeError, match="gig_log_prob: x is complex64"):
        gig_log_prob(jnp.ones(1, jnp.complex64), 1.0, 1.0, 1.0)
