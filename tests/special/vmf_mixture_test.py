"""Draws from vMF distributions, and mixtures by EM."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.special.vmf import (
    VmfMixture,
    vmf_fit,
    vmf_log_prob,
    vmf_mean_resultant,
    vmf_mixture_fit,
    vmf_mixture_init,
    vmf_mixture_log_prob,
    vmf_mixture_responsibilities,
    vmf_mixture_step,
    vmf_sample,
)


def direction(seed, p):
    x = np.random.default_rng(seed).normal(size=p)
    return jnp.asarray(x / np.linalg.norm(x), jnp.float32)


@cache
def drawn():
    return np.asarray(vmf_sample(jax.random.key(1), jnp.eye(64)[:3], 600.0, (60,)))


def three_clusters(per=60):
    # Of one draw, because a draw of each number would be a program of its own.
    return jnp.asarray(drawn()[:per].reshape(-1, 64)), jnp.eye(64)[:3]


@pytest.mark.parametrize(("p", "kappa"), [(2, 3.0), (3, 0.0), (5, 1e7), (300, 40.0), (2048, 1e4)])
def test_draws_have_the_moments_of_the_distribution(p, kappa):
    count, mu = 1000, direction(p, p)
    y = vmf_sample(jax.random.key(p), mu, kappa, (count,))
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), 1, atol=1e-6)
    # |y - mu|^2 / 2 keeps its digits where the cosine is 1 but for rounding.
    gap = np.sum((np.asarray(y) - np.asarray(mu)) ** 2, axis=-1, dtype=np.float64) / 2
    with jax.enable_x64(True):
        # The dimension as an array: one program for all.
        resultant = jax.jvp(partial(vmf_mean_resultant, np.array(p)), (kappa,), (1.0,))
        expected, variance = 1 - float(resultant[0]), float(resultant[1])
    tolerance = 4 * np.sqrt(variance / count) + 1e-6 * expected
    assert abs(gap.mean() - expected) < tolerance
    assert gap.var() == pytest.approx(variance, rel=0.25)
    # Across mu nothing is preferred.
    across = (np.asarray(y) - (1 - gap[:, None]) * np.asarray(mu)).mean(axis=0)
    spread = np.sqrt((1 - (1 - gap) ** 2).mean() / count)
    assert np.linalg.norm(across) < 1.5 * spread + 1e-6


def test_sample_shapes_and_edges():
    mu = jnp.stack([direction(0, 4), -jnp.eye(4)[0]])
    sample = jax.jit(lambda key: vmf_sample(key, mu, jnp.array([5.0, jnp.inf]), (3,)))
    y = sample(jax.random.key(0))
    assert y.shape == (3, 2, 4)
    np.testing.assert_allclose(y[:, 1], np.broadcast_to(mu[1], (3, 4)), atol=1e-6)
    assert not np.allclose(y[0, 0], y[1, 0])
    with pytest.raises(ValueError, match="kappa=-1 must be 0 or more"):
        vmf_sample(jax.random.key(0), mu, -1.0)


def test_a_fit_finds_what_was_drawn():
    mu, kappa = vmf_fit(vmf_sample(jax.random.key(3), direction(3, 50), 120.0, (2000,)))
    assert float(mu @ direction(3, 50)) > 0.998
    assert float(kappa) == pytest.approx(120.0, rel=0.05)


def test_em_never_lowers_the_likelihood_and_finds_the_clusters():
    y, axes = three_clusters()
    with jax.enable_x64(True):
        wide = y.astype(jnp.float64)
        wide = wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)
        fit = jax.jit(lambda key, y: vmf_mixture_fit(key, y, 3, iterations=15))
        mixture, trace = fit(jax.random.key(0), wide)
        assert np.all(np.diff(trace) > -1e-11)
        density = vmf_mixture_log_prob(wide, mixture)
        np.testing.assert_allclose(jnp.mean(density), trace[-1], rtol=1e-6)
        cosines = mixture.mu @ axes.astype(jnp.float64).T
    assert sorted(np.argmax(cosines, axis=1)) == [0, 1, 2]
    np.testing.assert_allclose(jnp.exp(mixture.log_weights), 1 / 3, atol=1e-3)
    np.testing.assert_allclose(mixture.kappa, 600, rtol=0.2)


def test_one_component_is_the_fit_in_one_step():
    y, _ = three_clusters(20)
    weights = jnp.linspace(0.1, 1.0, len(y))
    start = vmf_mixture_init(jax.random.key(0), y, 1)
    found, before = vmf_mixture_step(y, start, weights)
    mu, kappa = vmf_fit(y, weights)
    np.testing.assert_allclose(found.mu[0], mu, atol=1e-6)
    assert float(found.kappa[0]) == pytest.approx(float(kappa), rel=1e-5)
    expected = jnp.average(vmf_log_prob(y, start.mu, start.kappa), weights=weights)
    assert float(before) == pytest.approx(float(expected), rel=1e-5)


def test_the_densities_are_those_of_the_parts():
    y, axes = three_clusters(4)
    log_weights = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    mixture = VmfMixture(log_weights, axes, jnp.array([1.0, 50.0, 1e4]))
    parts = log_weights[None] + vmf_log_prob(y[:, None], mixture.mu, mixture.kappa[None])
    expected = jax.nn.logsumexp(parts, axis=1)
    np.testing.assert_allclose(vmf_mixture_log_prob(y, mixture), expected, atol=2e-3)
    shares = vmf_mixture_responsibilities(y, mixture)
    np.testing.assert_allclose(shares, jax.nn.softmax(parts, axis=1), atol=2e-3)


def test_empty_components_and_single_points_are_not_nan():
    y, axes = three_clusters(5)
    far = VmfMixture(jnp.log(jnp.full(2, 0.5)), jnp.stack([axes[0], -axes[1]]), jnp.full(2, 1e6))
    mixture, _ = vmf_mixture_step(y[::3], far)
    assert mixture.log_weights[1] == -np.inf
    np.testing.assert_array_equal(mixture.mu[1], -axes[1])
    again, density = vmf_mixture_step(y[::3], mixture)
    assert np.isfinite(density)
    assert np.all(np.isfinite(again.kappa))
    # As many components as points: every one ends with a point of its own.
    single, trace = vmf_mixture_fit(jax.random.key(2), y, len(y), iterations=30)
    assert np.all(np.isfinite(trace))
    assert np.all(np.isfinite(single.kappa))
    held, _ = vmf_mixture_fit(jax.random.key(2), y, len(y), iterations=30, prior=1.0)
    assert float(jnp.max(held.kappa)) < 1e3
    same, trace = vmf_mixture_fit(jax.random.key(2), jnp.tile(axes[:1], (4, 1)), 2, iterations=3)
    assert np.all(np.isfinite(trace))
    assert np.all(np.isfinite(same.mu))


def test_no_weight_at_all_changes_nothing():
    y, axes = three_clusters(5)
    start = VmfMixture(jnp.log(jnp.full(2, 0.5)), axes[:2], jnp.full(2, 9.0))
    mixture, likelihood = vmf_mixture_step(y, start, jnp.zeros(len(y)))
    jax.tree.map(np.testing.assert_array_equal, mixture, start)
    assert likelihood == 0


def test_products_are_of_the_highest_precision():
    # What a GPU rounds to TF32 is multiplied by kappa.
    y, axes = three_clusters(5)
    mixture = VmfMixture(jnp.log(jnp.full(2, 0.5)), axes[:2], jnp.full(2, 9.0))
    for program in (
        jax.make_jaxpr(vmf_mixture_log_prob)(y, mixture),
        jax.make_jaxpr(vmf_mixture_step)(y, mixture),
        jax.make_jaxpr(lambda y: vmf_mixture_init(jax.random.key(0), y, 2))(y),
    ):
        text = str(program)
        assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST, ") > 0


def test_bad_arguments_are_named():
    y, _ = three_clusters(2)
    with pytest.raises(ValueError, match=r"components=9 must be in \[1, 6\]"):
        vmf_mixture_init(jax.random.key(0), y, 9)
    mixture = vmf_mixture_init(jax.random.key(0), y, 2)
    with pytest.raises(ValueError, match="prior=-1 must be 0 or more"):
        vmf_mixture_step(y, mixture, prior=-1.0)
    with pytest.raises(ValueError, match=r"weights of \(3,\) must be \(6,\)"):
        vmf_mixture_step(y, mixture, jnp.ones(3))
    with pytest.raises(ValueError, match="vmf_mixture_step: y has a row"):
        vmf_mixture_step(2 * y, mixture)
