"""K + sigma^2 I and sums of two products: values, limits, gradients where eigenvalues repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.operator import (
    eigh_add_scalar_logdet,
    eigh_add_scalar_solve,
    kron_add_scalar_logdet,
    kron_add_scalar_quad,
    kron_add_scalar_solve,
    kron_cholesky,
    kron_eigh,
    kron_matvec,
    kron_solve,
    kron_sum_logdet,
    kron_sum_solve,
)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def definite(seed, n, complex_=False):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n)) + (1j * rng.normal(size=(n, n)) if complex_ else 0)
    return jnp.asarray(a @ a.conj().T + np.eye(n))


def on_a_circle(n):
    """A kernel of points on a circle: a circulant, whose eigenvalues come in pairs."""
    lag = np.arange(n)
    k = np.exp(-2 * np.sin(np.pi * (lag[:, None] - lag[None, :]) / n) ** 2)
    return jnp.asarray(k)


def vector(seed, n, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) + (1j * rng.normal(size=n) if dtype == np.complex128 else 0)
    return jnp.asarray(x.astype(dtype))


def dense(factors, sigma2):
    """K + sigma^2 I, of which the Hermitian part of each factor counts."""
    a, b = ((k + k.conj().T) / 2 for k in factors)
    k = jnp.kron(a, b)
    return k + jnp.asarray(sigma2, k.dtype) * jnp.eye(len(k), dtype=k.dtype)


CASES = {
    "generic": lambda: (definite(0, 6), definite(1, 4)),
    "identity and another": lambda: (jnp.eye(6), definite(1, 4)),
    "circles": lambda: (on_a_circle(6), on_a_circle(4)),
    "complex": lambda: (definite(0, 3, True), definite(1, 4, True)),
}


@jax.jit
def ours_and_dense(factors, x, w):
    """Solve, quadratic form, log-determinant and their gradients, of both."""

    def mixed(parts):
        solved, quad, logdet = parts
        return quad + 2 * logdet + 3 * jnp.sum(w * jnp.square(jnp.abs(solved))), parts

    def ours(factors, sigma2, x):
        solved = kron_add_scalar_solve(factors, sigma2, x)
        quad = kron_add_scalar_quad(factors, sigma2, x)
        return mixed((solved, quad, kron_add_scalar_logdet(factors, sigma2)))

    def known(factors, sigma2, x):
        a = dense(factors, sigma2)
        solved = jnp.linalg.solve(a, x)
        return mixed((solved, jnp.sum(x.conj() * solved).real, jnp.linalg.slogdet(a)[1]))

    gradient = [jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True) for f in (ours, known)]
    return [g(factors, 0.3, x) for g in gradient]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_dense_matrix(case):
    factors = CASES[case]()
    n = len(factors[0]) * len(factors[1])
    both = ours_and_dense(factors, vector(2, n, factors[0].dtype), vector(3, n))
    for found, expected in zip(*map(jax.tree.leaves, both), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_solves_leave_nothing_and_meet_the_limit_without_noise():
    factors = definite(0, 5), definite(1, 6)
    x = vector(2, 30)

    @jax.jit
    def everything(factors, x):
        lams, qs = kron_eigh(factors)
        solved = eigh_add_scalar_solve(lams, qs, 0.1, x)
        left = kron_matvec(factors, solved) + 0.1 * solved - x
        pairs = (
            (solved, kron_add_scalar_solve(factors, 0.1, x)),
            (eigh_add_scalar_solve(lams, qs, 0.0, x), kron_solve(kron_cholesky(factors), x)),
            (eigh_add_scalar_logdet(lams, 0.1), kron_add_scalar_logdet(factors, 0.1)),
        )
        return left, pairs

    left, pairs = everything(factors, x)
    assert np.linalg.norm(left) < 1e-10 * np.linalg.norm(x)
    for found, known in pairs:
        np.testing.assert_allclose(found, known, rtol=1e-12, atol=1e-11)


def test_eigenvalues_just_below_zero_count_as_zero():
    lams, qs = (jnp.array([-1e-18, 1.0]), jnp.array([-1e-20, 4.0])), (jnp.eye(2), jnp.eye(2))
    solved = eigh_add_scalar_solve(lams, qs, 1e-19, jnp.ones(4))
    np.testing.assert_allclose(solved, [1e19, 1e19, 1e19, 0.25])
    logdet = eigh_add_scalar_logdet(lams, 1e-19)
    np.testing.assert_allclose(logdet, 3 * np.log(1e-19) + np.log(4))
    # Rank one: rounding makes three of its eigenvalues negative.
    flat = jnp.ones((4, 4))
    assert np.isfinite(kron_add_scalar_logdet((flat, flat), 1e-12))
    slope = jax.jit(jax.grad(lambda k: kron_add_scalar_quad((k, flat), 1e-6, jnp.ones(16))))(flat)
    assert np.isfinite(slope).all()


def test_stacks_of_factors_noise_and_vectors():
    a, b = jnp.stack([definite(0, 3), definite(1, 3)]), definite(2, 4)
    sigma2, x = jnp.array([0.1, 2.0]), jnp.stack([vector(0, 12), vector(1, 12)])

    def together(a):
        solved = kron_add_scalar_solve((a, b), sigma2, x)
        logdet = kron_add_scalar_logdet((a, b), sigma2)
        return jnp.sum(solved * x) + jnp.sum(logdet), (solved, logdet)

    def dense_one(a, sigma2, x):
        full = dense((a, b), sigma2)
        solved, logdet = jnp.linalg.solve(full, x), jnp.linalg.slogdet(full)[1]
        return solved @ x + logdet, (solved, logdet)

    slopes, parts = jax.jit(jax.grad(together, has_aux=True))(a)
    known = jax.jit(jax.vmap(jax.grad(dense_one, has_aux=True)))(a, sigma2, x)
    for found, expected in zip(*map(jax.tree.leaves, ((slopes, parts), known)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_one_decomposition_serves_several_functions():
    factors, x = (definite(0, 3), definite(1, 4)), vector(2, 12)
    shared = lambda k: kron_add_scalar_quad(k, 0.3, x, eigh=kron_eigh(k))  # noqa: E731
    alone = lambda k: kron_add_scalar_quad(k, 0.3, x)  # noqa: E731
    pairs = jax.jit(lambda k: (jax.grad(shared)(k), jax.grad(alone)(k)))(factors)
    for found, known in zip(*pairs, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-12)


def test_a_second_derivative_in_the_factors_is_refused_and_not_wrong():
    k, x = definite(0, 3), vector(1, 3)
    for value in (
        lambda k: kron_add_scalar_logdet((k,), 0.3),
        lambda k: kron_add_scalar_quad((k,), 0.3, x),
    ):
        with pytest.raises(NotImplementedError, match="first derivatives"):
            jax.jit(jax.hessian(value))(k)
    # In the vector there is one.
    found = jax.jit(jax.hessian(lambda x: kron_add_scalar_quad((k,), 0.3, x)))(x)
    np.testing.assert_allclose(found, 2 * np.linalg.inv(k + 0.3 * np.eye(3)), atol=1e-12)


@pytest.mark.parametrize("complex_", [False, True])
def test_sums_of_two_products(complex_):
    k, s = [[definite(i + 10 * j, n, complex_) for i, n in enumerate((3, 4))] for j in (0, 1)]
    x = vector(5, 12, k[0].dtype)
    known = np.kron(*k) + np.kron(*s)
    solved, logdet = jax.jit(lambda *t: (kron_sum_solve(*t), kron_sum_logdet(*t[:2])))(k, s, x)
    np.testing.assert_allclose(solved, np.linalg.solve(known, x), atol=1e-11)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(known)[1], rtol=1e-12)


def test_gradients_of_sums_survive_repeated_eigenvalues():
    k, s = (jnp.eye(3), definite(0, 2)), (jnp.eye(3), definite(1, 2))
    x = vector(2, 6)

    def known(k, s):
        a, b, c, d = ((m + m.T) / 2 for m in (*k, *s))
        full = jnp.kron(a, b) + jnp.kron(c, d)
        return x @ jnp.linalg.solve(full, x) + jnp.linalg.slogdet(full)[1]

    ours = lambda k, s: x @ kron_sum_solve(k, s, x) + kron_sum_logdet(k, s)  # noqa: E731
    found, expected = (jax.jit(jax.grad(f, argnums=(0, 1)))(k, s) for f in (ours, known))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="noise of"):
        kron_sum_solve(k, s[::-1], x)
