"""Cholesky factors with as much jitter as they need, solves, determinants, square roots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.operator import (
    kron_cholesky,
    kron_eigh,
    kron_logdet,
    kron_solve,
    kron_sqrt_matvec,
)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def definite(seed, n, complex_=False):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if complex_ else 0)
    return a @ a.conj().T + np.eye(n)


@pytest.mark.parametrize("complex_", [False, True])
def test_solve_determinant_and_root_are_the_dense_ones(complex_):
    factors = [definite(s, n, complex_) for s, n in ((0, 3), (1, 4), (2, 2))]
    known = np.kron(np.kron(factors[0], factors[1]), factors[2])
    x = np.random.default_rng(3).normal(size=(2, 24)).astype(known.dtype)

    @jax.jit
    def everything(factors, x):
        made = kron_cholesky(factors)
        solved = kron_solve(made, x), kron_solve(made.chols, x)
        return made, solved, kron_logdet(made), kron_sqrt_matvec(made, x), kron_eigh(factors)

    made, solved, logdet, root, (lams, qs) = everything(factors, x)
    assert bool(made.ok)
    assert made.jitter.tolist() == [0, 0, 0]
    np.testing.assert_allclose(solved[0], np.linalg.solve(known, x.T).T, atol=1e-12)
    np.testing.assert_array_equal(*solved)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(known)[1], rtol=1e-12)
    assert logdet.dtype == jnp.float64
    np.testing.assert_allclose(root, x @ np.linalg.cholesky(known).T, atol=1e-11)
    for factor, lam, q in zip(factors, map(np.asarray, lams), map(np.asarray, qs), strict=True):
        np.testing.assert_allclose(q * lam @ q.conj().T, factor, atol=1e-12)


def test_each_determinant_counts_as_often_as_the_other_factors_are_long():
    found = kron_logdet((3 * jnp.eye(2), jnp.eye(5)))
    np.testing.assert_allclose(found, 10 * np.log(9.0))
    found = kron_logdet((jnp.diag(jnp.array([3.0, 1.0])), jnp.eye(5)))
    np.testing.assert_allclose(found, 5 * np.log(9.0))


def test_stacks_of_factors():
    a = np.stack([definite(0, 3), definite(1, 3)])
    b, x = definite(2, 4), np.ones(12)

    @jax.jit
    def everything(a):
        made = kron_cholesky((a, b))
        return made.ok, kron_solve(made, x), kron_logdet(made)

    ok, solved, logdet = everything(a)
    assert ok.tolist() == [True, True]
    for i in range(2):
        known = np.kron(a[i], b)
        np.testing.assert_allclose(solved[i], np.linalg.solve(known, x), atol=1e-12)
        np.testing.assert_allclose(logdet[i], np.linalg.slogdet(known)[1])


def test_jitter_grows_until_it_is_enough_and_is_reported():
    singular = jnp.ones((4, 4))
    # Its smallest eigenvalue is -1e-6 of the mean of the diagonal.
    slightly = jnp.diag(jnp.array([2.0, 2.0, -3e-6, 2.0]))
    made = kron_cholesky((singular, slightly, jnp.eye(2)))
    assert bool(made.ok)
    first, second, third = made.jitter.tolist()
    assert 0 < first < 1e-10
    assert 2e-6 < second < 3e-5
    assert third == 0
    added = second * float(jnp.mean(jnp.diagonal(slightly)))
    rebuilt = made.chols[1] @ made.chols[1].T
    np.testing.assert_allclose(rebuilt, slightly + added * jnp.eye(4), atol=1e-12)
    assert kron_cholesky((jnp.eye(2),), jitter=1e-4).jitter.tolist() == [1e-4]


def test_what_is_indefinite_is_flagged_and_not_a_number(maybe_jit):
    made = maybe_jit(lambda a: kron_cholesky((a, jnp.eye(2))))(jnp.diag(jnp.array([1.0, -0.5])))
    assert not bool(made.ok)
    np.testing.assert_allclose(made.jitter[0], 1e-3)
    assert np.isnan(made.chols[0]).all()
    assert np.isnan(kron_logdet(made))
    assert np.isnan(kron_solve(made, jnp.ones(4))).all()


def test_gradients_pass_through_the_factorisation_and_not_through_the_jitter():
    k, x = jnp.asarray(definite(0, 3)), jnp.arange(3.0)
    ours = lambda k: kron_cholesky((k,)).chols[0]  # noqa: E731

    def derivatives(k, cholesky):
        def value(k):
            chol = cholesky(k)
            return x @ kron_solve((chol,), x) + jnp.sum(chol**3)

        return jax.grad(value)(k), jax.jvp(value, (k,), (k @ k,))[1]

    pairs = jax.jit(lambda k: [derivatives(k, c) for c in (ours, jnp.linalg.cholesky)])(k)
    for found, known in zip(*pairs, strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-9, atol=1e-9)
    # Of ones + t I the jitter is a constant: only the diagonal's growth is seen.
    flat = lambda t: kron_logdet((ours(jnp.ones((3, 3)) + t * jnp.eye(3)),))  # noqa: E731
    slope = jax.jit(jax.grad(flat))(0.0)
    assert np.isfinite(slope)
    assert slope > 1e9


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"jitter=0.1 must be in .*nearest: 0.001"):
        kron_cholesky((jnp.eye(2),), jitter=0.1)
    with pytest.raises(ValueError, match="must be square"):
        kron_eigh((jnp.ones((2, 3)),))
