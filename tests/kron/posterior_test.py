"""Posterior mean, variance and draws on grids, all cells seen and not, against dense formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.operator import kron_posterior, kron_posterior_samples

SHAPE, TESTS, NOISE = (7, 6), (3, 4), 0.1


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def kernel(a, b):
    return jnp.asarray(np.exp(-0.5 * ((a[:, None] - b[None, :]) / 0.3) ** 2))


AXES = [np.linspace(0, 1, n) for n in SHAPE]
TEST_AXES = [np.linspace(0.05, 1.1, n) for n in TESTS]
RNG = np.random.default_rng(0)
Y, SEEN = RNG.normal(size=SHAPE), RNG.random(SHAPE) < 0.7


@pytest.fixture
def blocks():
    """Covariances of the training grid, of the test grid with it, and of the test grid."""
    pairs = list(zip(AXES, TEST_AXES, strict=True))
    return (
        [kernel(a, a) for a, _ in pairs],
        [kernel(b, a) for a, b in pairs],
        [kernel(b, b) for _, b in pairs],
    )


def known(blocks, seen):
    xx, sx, ss = (np.kron(*b) for b in blocks)
    seen = np.ones(Y.size, bool) if seen is None else seen.reshape(-1)
    a = xx[seen][:, seen] + NOISE * np.eye(seen.sum())
    mean = sx[:, seen] @ np.linalg.solve(a, Y.reshape(-1)[seen])
    return mean, ss - sx[:, seen] @ np.linalg.solve(a, sx[:, seen].T)


@pytest.mark.parametrize("seen", [None, SEEN], ids=["all", "some"])
def test_moments_and_draws_are_those_of_the_dense_posterior(blocks, seen):
    xx, sx, ss = blocks
    count = 2000

    @jax.jit
    def both(y):
        exact = kron_posterior(xx, sx, [jnp.diagonal(t) for t in ss], y, NOISE, seen)
        key = jax.random.key(0)
        return exact, kron_posterior_samples(key, xx, sx, ss, y, NOISE, seen, count=count)

    exact, drawn = both(Y)
    mean, covariance = known(blocks, seen)
    np.testing.assert_allclose(exact.mean.reshape(-1), mean, atol=1e-8)
    np.testing.assert_allclose(exact.var.reshape(-1), np.diag(covariance), atol=1e-8)
    assert drawn.values.shape == (count, *TESTS)
    assert bool(drawn.ok.all())
    values = np.asarray(drawn.values).reshape(count, -1)
    # Five standard errors of a mean and of a covariance.
    largest = covariance.max()
    np.testing.assert_allclose(values.mean(0), mean, atol=5 * (largest / count) ** 0.5)
    np.testing.assert_allclose(np.cov(values.T), covariance, atol=5 * largest * (2 / count) ** 0.5)
    np.testing.assert_allclose(drawn.values - drawn.deviations, exact.mean[None].repeat(count, 0))


def test_draws_of_complex_processes_have_the_dense_posterior():
    rng = np.random.default_rng(1)
    # Covariances of both grids at once, Hermitian and not real.
    joint = []
    for n, s in zip(SHAPE[:1], TESTS[:1], strict=True):
        root = rng.normal(size=(n + s, 4)) + 1j * rng.normal(size=(n + s, 4))
        joint.append(root @ root.conj().T / 8 + 0.1 * np.eye(n + s))
    (whole,), n = joint, SHAPE[0]
    xx, sx, ss = whole[:n, :n], whole[n:, :n], whole[n:, n:]
    y = rng.normal(size=n) + 1j * rng.normal(size=n)
    gain = sx @ np.linalg.inv(xx + NOISE * np.eye(n))
    mean, covariance = gain @ y, ss - gain @ sx.conj().T
    count = 4000

    @jax.jit
    def both(y):
        exact = kron_posterior([xx], [sx], [np.diag(ss).real], y, NOISE)
        key = jax.random.key(0)
        return exact, kron_posterior_samples(key, [xx], [sx], [ss], y, NOISE, count=count)

    exact, drawn = both(y)
    np.testing.assert_allclose(exact.mean, mean, atol=1e-10)
    np.testing.assert_allclose(exact.var, np.diag(covariance).real, atol=1e-10)
    assert bool(drawn.ok.all())
    assert drawn.residual.dtype == np.float64
    away = np.asarray(drawn.deviations)
    largest = np.abs(covariance).max()
    np.testing.assert_allclose(away.mean(0), 0, atol=5 * (largest / count) ** 0.5)
    found = away.T @ away.conj() / count
    np.testing.assert_allclose(found, covariance, atol=5 * largest * (2 / count) ** 0.5)


def test_no_cell_seen_is_the_prior_and_what_does_not_converge_is_not_a_number(blocks):
    xx, sx, ss = blocks
    diagonals = [jnp.diagonal(t) for t in ss]
    solve = jax.jit(lambda seen, noise: kron_posterior(xx, sx, diagonals, Y, noise, seen))
    mean, var = solve(jnp.zeros(SHAPE, bool), NOISE)
    np.testing.assert_array_equal(mean, np.zeros(TESTS))
    np.testing.assert_allclose(var, np.ones(TESTS))
    # No step of conjugate gradients reaches a residual of 1e-10 with so little noise.
    assert np.isnan(jax.tree.leaves(solve(SEEN, 1e-300))).all()


def test_stacks_of_vectors_and_flat_ones(blocks):
    xx, sx, ss = blocks
    rows = jnp.stack([Y, 2 * Y]).reshape(2, -1)
    diagonals = [jnp.diagonal(t) for t in ss]
    mean, var = jax.jit(lambda y: kron_posterior(xx, sx, diagonals, y, NOISE))(rows)
    assert mean.shape == var.shape == (2, 12)
    expected, covariance = known(blocks, None)
    np.testing.assert_allclose(mean[1], 2 * expected, atol=1e-10)
    np.testing.assert_allclose(var[1], np.diag(covariance), atol=1e-10)


def test_bad_input_is_refused(blocks):
    xx, sx, ss = blocks
    with pytest.raises(ValueError, match="with n_d"):
        kron_posterior(xx, sx[::-1], [jnp.diagonal(t) for t in ss], Y, NOISE)
    with pytest.raises(ValueError, match="with n_d"):
        kron_posterior_samples(jax.random.key(0), xx, sx, ss[::-1], Y, NOISE)
    with pytest.raises(ValueError, match="count=0"):
        kron_posterior_samples(jax.random.key(0), xx, sx, ss, Y, NOISE, count=0)
