"""The von Mises-Fisher distribution against closed forms, scipy and mpmath, in any dimension."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats

from jaxlab.special.vmf import (
    vmf_entropy,
    vmf_fit,
    vmf_kappa_from_r,
    vmf_kl_divergence,
    vmf_log_normalizer,
    vmf_log_prob,
    vmf_mean_resultant,
    vmf_sample,
)

# Made with mpmath: what Newton's method must find.
SOLUTIONS = [
    (2048, 0.5, 1365.0667417076888),
    (2048, 0.9, 9696.8130522631650),
    (8192, 0.5, 5461.0666854192300),
    (8192, 0.95, 79810.242935829340),
    (32768, 0.1, 3309.8969898150980),
    (32768, 0.5, 21845.066671354325),
    (32768, 0.999, 16375304.652075788),
]


def unit(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def exact_resultant(p, kappa):
    """A_p(kappa) to many digits, by the power series of both Bessel functions."""
    with mpmath.workdps(40):
        half, x = mpmath.mpf(p) / 2, mpmath.mpf(kappa)
        lower, upper = (mpmath.hyp0f1(order, x * x / 4) for order in (half, half + 1))
        return float(x / (2 * half) * upper / lower)


def kappa_of(p, r):
    """Of as many pairs everywhere, for one compilation."""
    p, r = np.broadcast_arrays(p, r)
    padded = [np.pad(np.ravel(a), (0, 30 - a.size), constant_values=0.5) for a in (p, r)]
    padded[0][r.size :] = 3
    return np.asarray(vmf_kappa_from_r(*padded))[: r.size].reshape(r.shape)


def test_kappa_in_many_dimensions():
    p, r, expected = (np.array(column) for column in zip(*SOLUTIONS, strict=True))
    with jax.enable_x64(True):
        np.testing.assert_allclose(kappa_of(p, r), expected, rtol=1e-12)
        np.testing.assert_allclose(vmf_kappa_from_r(2048, r[:2]), expected[:2], rtol=1e-12)


def test_a_fit_in_many_dimensions_has_that_kappa():
    with jax.enable_x64(True):
        for p, r, expected in SOLUTIONS:
            # Two points whose mean has length r.
            points = np.zeros((2, p))
            points[:, 0] = r
            points[:, 1] = np.sqrt(1 - r * r) * np.array([1, -1])
            mu, kappa = vmf_fit(points)
            np.testing.assert_allclose(kappa, expected, rtol=1e-12)
            np.testing.assert_allclose(mu[:2], [1, 0], atol=1e-15)


def test_kappa_undoes_the_resultant_whatever_the_dimension():
    p = np.array([2, 3, 10, 100, 2048, 131072.0])[:, None]
    r = np.array([1e-6, 0.01, 0.5, 0.9, 0.999])
    with jax.enable_x64(True):
        kappa = kappa_of(p, r)
        back = vmf_mean_resultant(p, kappa)
        np.testing.assert_allclose(back, np.broadcast_to(r, back.shape), rtol=2e-15, atol=1e-15)
    in_float32 = kappa_of(p.astype(np.float32), r.astype(np.float32))
    assert in_float32.dtype == jnp.float32
    # As well determined as 1 - r is.
    scale = 4 * np.finfo(np.float32).eps / (1 - r)
    assert np.all(np.abs(in_float32 / kappa - 1) < scale)


def test_kappa_at_the_edges():
    with jax.enable_x64(True):
        r = jnp.array([0.0, 1.0, -0.1, 1.1, jnp.nan])
        found = vmf_kappa_from_r(7, r)
        slopes = jax.jit(jax.grad(lambda r: jnp.sum(vmf_kappa_from_r(7, r))))(r)
        np.testing.assert_array_equal(found, [0, np.inf, np.nan, np.nan, np.nan])
        np.testing.assert_array_equal(slopes[:2], [7, np.inf])


def test_derivatives_of_kappa_are_implicit():
    step = 1e-5
    p, r = np.array([7, 7 - step, 7 + step]), np.full(3, 0.6)
    with jax.enable_x64(True):
        kappa = kappa_of(p, r)
        by_p, by_r = jax.jit(jax.grad(lambda p, r: vmf_kappa_from_r(p, r)[0], (0, 1)))(p, r)
        # One over the derivative of A, by its differential equation.
        assert float(by_r[0]) == pytest.approx(1 / (1 - 0.36 - 6 * 0.6 / kappa[0]), rel=1e-13)
        assert float(by_p[0]) == pytest.approx((kappa[2] - kappa[1]) / (2 * step), rel=1e-8)
        # Where 1 - A^2 - (p - 1) A / kappa would have lost all digits: coth(x) - 1 / x.
        resultant = partial(vmf_mean_resultant, np.full(3, 3.0))
        along = jax.jit(lambda kappa: jax.jvp(resultant, (kappa,), (jnp.ones(3),))[1])
        tail = along(np.full(3, 1e8))
        np.testing.assert_allclose(tail, 1e-16, rtol=1e-12)


def test_the_resultant_is_that_of_mpmath():
    cases = [(2, 1e-3), (3, 1.0), (5, 40.0), (64, 3.0), (100, 500.0), (300, 0.1)]
    p, kappa = (np.array(column, float) for column in zip(*cases, strict=True))
    expected = [exact_resultant(*case) for case in cases]
    with jax.enable_x64(True):
        np.testing.assert_allclose(vmf_mean_resultant(p, kappa), expected, rtol=2e-15)
        slope = jax.jit(jax.grad(lambda kappa: jnp.sum(vmf_log_normalizer(p, kappa))))(kappa)
        np.testing.assert_allclose(slope, -np.array(expected), rtol=2e-15)


def test_three_dimensions_in_closed_form():
    kappa = np.array([0.0, 1e-3, 2.0, 1e6])
    some = np.where(kappa > 0, kappa, 1)
    log_c = np.log(some / (2 * np.pi)) - np.log(-np.expm1(-2 * some)) - some
    log_c = np.where(kappa > 0, log_c, -np.log(4 * np.pi))
    mean = np.where(kappa > 0.1, 1 / np.tanh(some) - 1 / some, kappa / 3 - kappa**3 / 45)
    with jax.enable_x64(True):
        np.testing.assert_allclose(vmf_log_normalizer(3, kappa), log_c, rtol=1e-13)
        np.testing.assert_allclose(vmf_mean_resultant(3, kappa), mean, rtol=1e-13)
        entropy = -(log_c + kappa) + kappa * (1 - mean)
        np.testing.assert_allclose(vmf_entropy(3, kappa), entropy, rtol=1e-9)


def test_the_order_derivative_of_the_normalizer():
    p, kappa = np.array([9.0, 9.0, 2048.0]), np.array([0.0, 4.0, 700.0])
    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(lambda p: jnp.sum(vmf_log_normalizer(p, kappa))))(p)
        low, high = (vmf_log_normalizer(p * scale, kappa) for scale in (1 - 1e-4, 1 + 1e-4))
        np.testing.assert_allclose(slope, (high - low) / (2e-4 * p), rtol=1e-5)


def test_densities_are_those_of_scipy():
    y, mu = unit(0, 6, 5), unit(1, 5)
    kappa = np.array([0.5, 20.0, 300.0])
    expected = np.stack([scipy.stats.vonmises_fisher(mu, k).logpdf(y) for k in kappa])
    with jax.enable_x64(True):
        found = vmf_log_prob(y, mu, kappa[:, None])
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-12)
        entropies = [scipy.stats.vonmises_fisher(mu, k).entropy() for k in kappa]
        np.testing.assert_allclose(vmf_entropy(5, kappa), entropies, rtol=1e-11)


def test_float32_at_large_concentrations():
    """Kappa mu.y + log C would be off by hundredths or more: both are a million."""
    mu = np.eye(2048)[0]
    angle = 0.03
    y = np.cos(angle) * mu + np.sin(angle) * np.eye(2048)[1]
    with jax.enable_x64(True):
        exact = float(vmf_log_prob(y, mu, 1e6))
        wide = [float(f(2048, 1e6)) for f in (vmf_log_normalizer, vmf_entropy)]
    narrow = [a.astype(np.float32) for a in (y, mu)]
    assert float(vmf_log_prob(*narrow, 1e6)) == pytest.approx(exact, rel=2e-6)
    found = [float(f(2048, jnp.float32(1e6))) for f in (vmf_log_normalizer, vmf_entropy)]
    assert found == pytest.approx(wide, rel=1e-6)


def test_dtypes_and_edges_of_the_density():
    y = jnp.asarray(unit(2, 4, 8), jnp.bfloat16)
    found = vmf_log_prob(y, y[0], jnp.array(3.0, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert vmf_log_prob(np.eye(3, dtype=np.float32)[:1], np.eye(3)[0].astype("f4"), 2).shape == (1,)
    axes = jnp.eye(3)
    np.testing.assert_array_equal(vmf_log_prob(axes[:2], axes[0], jnp.inf), [np.inf, -np.inf])
    assert np.isnan(vmf_log_prob(axes[0], axes[0], -1.0))
    assert vmf_entropy(3, jnp.inf) == -np.inf
    uniform = vmf_log_prob(axes, axes[1], 0.0)
    np.testing.assert_allclose(uniform, -np.log(4 * np.pi), rtol=1e-6)


def test_divergence_is_the_mean_of_the_difference():
    mu, other = unit(3, 4), unit(4, 4)
    with jax.enable_x64(True):
        # Both densities depend on two cosines; E_f[y] = A mu.
        gap = vmf_log_normalizer(4, 5.0) - vmf_log_normalizer(4, 2.0)
        mean = vmf_mean_resultant(4, 5.0)
        expected = gap + mean * (5.0 - 2.0 * mu @ other)
        assert vmf_kl_divergence(mu, 5.0, other, 2.0) == pytest.approx(float(expected), rel=1e-13)
        assert vmf_kl_divergence(mu, 5.0, mu, 5.0) == 0
        grad = jax.jit(jax.grad(lambda k: vmf_kl_divergence(mu, 5.0, mu, k)))(5.0)
        assert grad == pytest.approx(0, abs=1e-14)


def test_fit_maximises_the_likelihood():
    y = unit(5, 40, 6) + 0.6
    y /= np.linalg.norm(y, axis=-1, keepdims=True)
    weights = np.random.default_rng(6).uniform(size=40)
    with jax.enable_x64(True):
        mu, kappa = vmf_fit(y, weights)

        def likelihood(kappa, tilt):
            turned = mu + tilt
            return jnp.sum(weights * vmf_log_prob(y, turned / jnp.linalg.norm(turned), kappa))

        by_kappa, by_mu = jax.jit(jax.grad(likelihood, (0, 1)))(kappa, jnp.zeros(6))
        assert abs(by_kappa) < 1e-12 * len(y)
        np.testing.assert_allclose(by_mu, 0, atol=1e-11)
        both = np.stack([y, y[::-1]], axis=1)
        twice = vmf_fit(both, np.stack([weights, weights[::-1] * 1e307], axis=1))
        np.testing.assert_allclose(twice[1], kappa, rtol=1e-12)
        np.testing.assert_allclose(twice[0], np.stack([mu, mu]), rtol=1e-12)


def test_fits_that_have_no_maximum_are_not_nan():
    with jax.enable_x64(True):
        for dtype, n, p in itertools.product((np.float32, np.float64), (2, 3, 1000), (2, 5, 300)):
            same = np.broadcast_to(unit(n, p).astype(dtype), (n, p))
            mu, kappa = vmf_fit(same)
            assert kappa == np.inf, (dtype, n, p)
            np.testing.assert_array_equal(mu, same[0])
            other = np.concatenate([same, unit(0, p)[None].astype(dtype)])
            mu, kappa = vmf_fit(other, np.r_[np.ones(n), 0].astype(dtype))
            assert kappa == np.inf  # what has no weight takes no part
        # A distance that is more than rounding is seen.
        apart = 1e-6 * np.eye(5)[1:3] + np.eye(5)[0]
        apart = apart / np.linalg.norm(apart, axis=1, keepdims=True)
        assert vmf_fit(apart)[1] == pytest.approx(4 / 2 / 2.5e-13, rel=1e-2)
    assert vmf_fit(jnp.eye(3)[:1])[1] == np.inf
    # Points whose distances have no square, of a mean that rounding leaves shorter than 1.
    for n in (12, 19, 23):
        assert vmf_fit(jnp.tile(jnp.eye(2)[:1], (n, 1)).at[0, 1].set(1e-25))[1] == np.inf
    opposite = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    for weights in (None, jnp.zeros(2)):
        mu, kappa = vmf_fit(opposite, weights)
        assert (mu.tolist(), float(kappa)) == ([1.0, 0.0], 0.0)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"vmf_fit: y has a row .* nearest: y / norm"):
        vmf_fit(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"vmf_fit: y of shape \(3,\) must be points"):
        vmf_fit(np.eye(3)[0])
    with pytest.raises(ValueError, match="axis=-1 must be one of"):
        vmf_fit(np.eye(3), axis=-1)
    with pytest.raises(ValueError, match="weights=-1 must be 0 or more"):
        vmf_fit(np.eye(3), np.array([1, -1, 0]))
    with pytest.raises(ValueError, match=r"vmf_log_normalizer: p=1 must be 2 or more"):
        vmf_log_normalizer(1, 0.5)
    with pytest.raises(TypeError, match="x is complex64"):
        vmf_mean_resultant(3, jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match="steps=-1"):
        vmf_kappa_from_r(3, 0.5, steps=-1)


@pytest.mark.parametrize("p", [3, 50])
@pytest.mark.parametrize("kappa", [10.0, 1e5, 1e6, 1e8])
def test_a_fit_in_float32_has_the_digits_of_its_points(p, kappa):
    mu = np.random.default_rng(p).normal(size=p)
    mu = jnp.asarray(mu / np.linalg.norm(mu), jnp.float32)
    y = vmf_sample(jax.random.key(0), mu, kappa, (500,))
    found = vmf_fit(y)[1]
    assert found.dtype == jnp.float32
    wide = np.asarray(y, np.float64)
    with jax.enable_x64(True):
        wide = jnp.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
        expected = vmf_fit(wide)[1]
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-3)
