"""Missing cells and K + diagonal: solutions, gradients, flags; the estimated determinant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.operator import (
    kron_add_diag_solve,
    kron_eigh,
    kron_masked_logdet,
    kron_masked_solve,
    scaled_eigenvalue_logdet,
)

SHAPE, NOISE = (20, 15), 0.01


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def smooth(n, length):
    x = np.linspace(0, 1, n)
    return np.exp(-0.5 * ((x[:, None] - x[None, :]) / length) ** 2)


FACTORS = smooth(SHAPE[0], 0.1), smooth(SHAPE[1], 0.2)
RNG = np.random.default_rng(0)
SEEN = RNG.random(SHAPE) < 0.7
Y = RNG.normal(size=SHAPE)


def dense(factors=FACTORS, noise=NOISE):
    """The covariance of the cells that were seen."""
    return np.kron(*factors)[SEEN.reshape(-1)][:, SEEN.reshape(-1)] + noise * np.eye(SEEN.sum())


@jax.jit
def solve(seen, y):
    """By the default, with each mask that is tried."""
    return kron_masked_solve(FACTORS, seen, NOISE, y)


@pytest.mark.parametrize("precond", ["eigh", "none"])
def test_missing_cells_are_as_if_they_were_not_there(precond):
    y = np.where(SEEN, Y, np.nan)
    other = jax.jit(lambda y: kron_masked_solve(FACTORS, SEEN, NOISE, y, precond=precond))(y)
    for found in (other, solve(SEEN, y)):
        assert bool(found.ok)
        assert found.residual < 1e-10
        np.testing.assert_allclose(found.x[SEEN], np.linalg.solve(dense(), Y[SEEN]), atol=1e-8)
        assert not found.x[~SEEN].any()


def test_the_default_takes_a_fraction_of_the_steps():
    # Enough cells for smooth functions to be averaged over.
    k = smooth(40, 0.1), smooth(40, 0.1)
    seen = np.random.default_rng(1).random((40, 40)) < 0.7
    roots = [np.linalg.cholesky(a + 1e-6 * np.eye(40)) for a in k]
    y = np.kron(*roots) @ RNG.normal(size=1600)

    @jax.jit
    def steps(y):
        solve = lambda p: kron_masked_solve(k, seen, NOISE, y, 1e-6, precond=p)  # noqa: E731
        return [solve(p).iterations for p in ("spectral", "eigh", "none")]

    spectral, eigh, none = steps(y)
    assert spectral * 5 < eigh < none


def test_all_cells_seen_is_the_direct_solve_and_none_is_the_prior():
    everything = solve(jnp.ones(SHAPE, bool), Y)
    assert everything.iterations < 5
    known = np.linalg.solve(np.kron(*FACTORS) + NOISE * np.eye(Y.size), Y.reshape(-1))
    np.testing.assert_allclose(everything.x.reshape(-1), known, atol=1e-8)
    nothing = solve(jnp.zeros(SHAPE, bool), Y)
    assert bool(nothing.ok)
    assert not nothing.x.any()


def test_too_few_steps_are_flagged():
    few = jax.jit(lambda y: kron_masked_solve(FACTORS, SEEN, NOISE, y, maxiter=1))(Y)
    assert few.iterations == 1
    assert few.residual > 1e-3
    assert not bool(few.ok)


def test_a_diagonal_of_any_shape_and_stacks():
    diag = RNG.uniform(0.01, 2, size=SHAPE)
    rows = jnp.stack([Y, 2 * Y]).reshape(2, -1)
    found = jax.jit(lambda d: kron_add_diag_solve(FACTORS, d, rows))(diag.reshape(-1))
    known = np.linalg.solve(np.kron(*FACTORS) + np.diag(diag.reshape(-1)), Y.reshape(-1))
    assert found.x.shape == (2, 300)
    assert found.ok.tolist() == [True, True]
    np.testing.assert_allclose(found.x[1], 2 * known, atol=1e-8)


def test_gradients_are_implicit():
    def ours(factors, noise, y):
        return jnp.sum(y * kron_masked_solve(factors, SEEN, noise, y).x)

    def known(factors, noise, y):
        picked = jnp.kron(*factors)[SEEN.reshape(-1)][:, SEEN.reshape(-1)]
        return y[SEEN] @ jnp.linalg.solve(picked + noise * jnp.eye(SEEN.sum()), y[SEEN])

    arguments = tuple(map(jnp.asarray, FACTORS)), 0.1, jnp.asarray(Y)
    pairs = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*arguments) for f in (ours, known))
    for found, expected in zip(*map(jax.tree.leaves, pairs), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=1e-8 * scale)


def test_the_determinant_is_estimated_with_an_honest_error_and_gradient():
    factors = tuple(map(jnp.asarray, FACTORS))

    def estimate(scale, noise, probes):
        scaled = scale * factors[0], factors[1]
        found = kron_masked_logdet(scaled, SEEN, noise, jax.random.key(0), probes=probes)
        return found.value, found.error

    (value, error), slopes = jax.jit(
        jax.value_and_grad(estimate, argnums=(0, 1), has_aux=True), static_argnums=2
    )(1.0, NOISE, 64)
    inverse = np.linalg.inv(dense())
    known = np.linalg.slogdet(dense())[1]
    assert 0 < error < 2
    assert abs(value - known) < 4 * error
    by_scale = np.sum(inverse * (dense() - NOISE * np.eye(SEEN.sum())))
    np.testing.assert_allclose(slopes, (by_scale, np.trace(inverse)), rtol=0.05)
    rough = scaled_eigenvalue_logdet(kron_eigh(factors)[0], NOISE, SEEN.sum())
    assert abs(rough - known) > abs(value - known)


def test_the_determinant_is_exact_where_every_cell_was_seen():
    everything = jnp.ones(SHAPE, bool)
    estimate = jax.jit(
        lambda seen: kron_masked_logdet(FACTORS, seen, NOISE, jax.random.key(0), probes=2).value
    )
    known = np.linalg.slogdet(np.kron(*FACTORS) + NOISE * np.eye(Y.size))[1]
    np.testing.assert_allclose(estimate(everything), known, rtol=1e-9)
    np.testing.assert_allclose(estimate(~everything), 0, atol=1e-9)


def test_bad_input_is_refused():
    for arguments, message in (
        ({"precond": "spectrl"}, "did you mean 'spectral'"),
        ({"maxiter": 0}, "maxiter=0 must be 1 or more"),
        ({"tol": 2.0}, r"tol=2.0 must be in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kron_masked_solve(FACTORS, SEEN, NOISE, Y, **arguments)
    with pytest.raises(TypeError, match="mask is int"):
        kron_masked_solve(FACTORS, SEEN.astype(int), NOISE, Y)
    with pytest.raises(TypeError, match="complex128 is not real"):
        kron_add_diag_solve(FACTORS, 1.0, Y.astype(complex))
    with pytest.raises(ValueError, match="probes=0"):
        kron_masked_logdet(FACTORS, SEEN, NOISE, jax.random.key(0), probes=0)
    with pytest.raises(ValueError, match="does not fit"):
        kron_masked_solve(FACTORS, SEEN[:3], NOISE, Y)
