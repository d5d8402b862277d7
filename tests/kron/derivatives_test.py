"""Derivatives and flags that must not be wrong in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.kronecker import Kronecker
from jaxlab.kron.operator import (
    kron_add_diag_solve,
    kron_cholesky,
    kron_masked_logdet,
    kron_masked_solve,
    kron_matvec,
    kron_posterior,
    kron_posterior_samples,
)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def definite(seed, n, complex_=False):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if complex_ else 0)
    return jnp.asarray(a @ a.conj().T + np.eye(n))


def normal(seed, *shape, complex_=False):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_ else 0))


def grid(complex_=False):
    factors = definite(0, 4, complex_), definite(1, 3, complex_)
    crosses = normal(2, 5, 4, complex_=complex_), normal(3, 2, 3, complex_=complex_)
    prior = jnp.full(5, 400.0), jnp.full(2, 300.0)
    return factors, crosses, prior, normal(4, 4, 3, complex_=complex_)


def dense_var(factors, crosses, prior, sigma2):
    # Of a matrix its Hermitian part counts.
    k = jnp.kron(*((f + f.conj().T) / 2 for f in factors))
    c = jnp.kron(*crosses)
    noise = jnp.asarray(sigma2, k.dtype) * jnp.eye(len(k), dtype=k.dtype)
    solved = jnp.linalg.solve(k + noise, c.conj().T)
    return jnp.kron(*prior) - jnp.sum(c * solved.T, axis=1).real


@pytest.mark.parametrize("complex_", [False, True])
def test_the_variance_and_its_derivatives(complex_):
    factors, crosses, prior, y = grid(complex_)
    weights = normal(5, 10)

    def ours(f, c, s):
        return kron_posterior(f, c, prior, y.reshape(-1), s).var @ weights

    def dense(f, c, s):
        return dense_var(f, c, prior, s) @ weights

    got, expected = (
        jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2)))(factors, crosses, 0.3)
        for fn in (ours, dense)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


def test_second_derivatives_in_factors_are_refused():
    factors, crosses, prior, y = grid()
    mask = jnp.ones((4, 3), bool).at[1, 2].set(False)

    def twice(fn):
        return jax.grad(jax.grad(lambda s: fn((s * factors[0], factors[1]), s)))(1.0)

    def var(f, s):
        return kron_posterior(f, crosses, prior, y, 0.3).var.sum()

    def logdet(f, s):
        return kron_masked_logdet(factors, mask, s, jax.random.key(0)).value

    for fn in (var, logdet):
        with pytest.raises(NotImplementedError, match="none beyond"):
            twice(fn)


def test_draws_have_derivatives_in_values_only():
    factors, _, _, y = grid()

    def total(f, y):
        drawn = kron_posterior_samples(jax.random.key(0), f, f, f, y, 0.1, count=2)
        return drawn.values.sum()

    assert np.all(np.isfinite(np.asarray(jax.grad(total, argnums=1)(factors, y))))
    with pytest.raises(NotImplementedError, match="kron_posterior"):
        jax.grad(total)(factors, y)


def test_running_out_of_steps_does_no_harm():
    x = np.linspace(0, 1, 20)
    k = jnp.asarray(np.exp(-0.5 * ((x[:, None] - x) / 0.3) ** 2))
    factors, y = (k, k[:15, :15]), normal(0, 20, 15)
    mask = jnp.asarray(np.random.default_rng(1).random((20, 15)) < 0.7)

    @jax.jit
    def back(y):
        def total(y):
            solved = kron_masked_solve(factors, mask, 1e-4, y, maxiter=3)
            return jnp.sum(jnp.where(mask, solved.x, 0)), solved

        return jax.value_and_grad(total, has_aux=True)(y)

    (_, solved), slope = back(y)
    assert not bool(solved.ok)
    assert float(solved.residual) <= 1
    # Nothing was asked of the forward solve of zeros; the gradient's did not converge.
    (_, solved), slope = back(jnp.zeros_like(y))
    assert bool(solved.ok)
    assert bool(jnp.all(jnp.isnan(slope[mask])))
    whole = kron_masked_solve(factors, mask, 1e-4, y)
    assert bool(whole.ok)
    assert int(whole.iterations) < 100


def test_one_probe_knows_no_error():
    mask = jnp.ones((4, 3), bool).at[0, 0].set(False)
    estimate = kron_masked_logdet(grid()[0], mask, 0.1, jax.random.key(0), probes=1)
    assert bool(jnp.isnan(estimate.error))


def test_noise_of_a_stack_goes_before_noise_of_cells():
    factors = definite(0, 3), definite(1, 2)
    y, noise = normal(2, 6, 3, 2), jnp.arange(1.0, 7.0)
    got = kron_add_diag_solve(factors, noise, y).x
    for i in range(6):
        k = np.kron(*factors) + float(noise[i]) * np.eye(6)
        expected = np.linalg.solve(k, np.asarray(y[i]).reshape(-1))
        np.testing.assert_allclose(np.asarray(got[i]).reshape(-1), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("width", [12, 5])
def test_solve_takes_what_a_product_gives(width):
    k = Kronecker((definite(0, 4), definite(1, 3)))
    x = normal(2, 12, width)
    np.testing.assert_allclose(np.asarray(k.solve(k @ x)), np.asarray(x), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        np.asarray(k.solve(k @ x[:, 0])), np.asarray(x[:, 0]), rtol=1e-8, atol=1e-10
    )
    with pytest.raises(ValueError, match="nearest: \\(12,\\)"):
        k.solve(x[:7])


def test_numbers_times_a_product():
    k = Kronecker((definite(0, 4, True), definite(1, 3)))
    dense = np.asarray(k.to_dense())
    for got, expected in [
        (2 * k, 2 * dense),
        (-k, -dense),
        (k / 2, dense / 2),
        (k.H, dense.conj().T),
    ]:
        np.testing.assert_allclose(np.asarray(got.to_dense()), expected, rtol=1e-12)
    assert (k.ndim, k.dtype) == (2, jnp.complex128)
    with pytest.raises(TypeError, match="no scalar"):
        k * jnp.ones(2)


def test_bad_factors_are_named():
    with pytest.raises(TypeError, match="int64"):
        kron_cholesky((jnp.eye(2, dtype=int), jnp.eye(2, dtype=int)))
    with pytest.raises(ValueError, match="is empty"):
        kron_matvec((jnp.zeros((0, 0)), jnp.eye(2)), jnp.zeros(0))
    with pytest.raises(TypeError, match="bfloat16"):
        kron_cholesky((jnp.eye(2, dtype=jnp.bfloat16),))
    solved = kron_masked_solve(([[2.0]], [[1.0]]), jnp.ones(1, bool), 1.0, jnp.ones(1))
    assert solved.x.tolist() == pytest.approx([1 / 3])
