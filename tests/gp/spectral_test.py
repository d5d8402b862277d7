"""Closed-form kernel derivatives against automatic and finite differences; Toeplitz matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.gp.gram import factorise, logdet, solve
from jaxlab.gp.spectral import cross_matrix, kernel_matrix, spectral_kernel, toeplitz

CASES = [("matern12", 0), ("matern32", 2), ("matern52", 3), ("gaussian", 3)]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def components(waves=True):
    part = {"log_w": jnp.asarray([0.1, -1.0]), "log_ls": jnp.asarray([0.3, -0.4])}
    return part | ({"freq": jnp.asarray([0.7, 2.0])} if waves else {})


@pytest.mark.parametrize(("envelope", "most"), CASES)
@pytest.mark.parametrize("waves", [True, False])
def test_derivatives_are_those_of_the_kernel(envelope, most, waves):
    part = components(waves)
    z = jnp.asarray([-0.9, -0.2, 0.05, 0.4, 1.3])

    def function(z):
        return spectral_kernel(part, z, envelope=envelope)

    @jax.jit
    def both(z):
        derivatives = [function]
        for _ in range(most):
            derivatives.append(jax.grad(derivatives[-1]))
        return [
            (spectral_kernel(part, z, order, envelope=envelope), jax.vmap(derivatives[order])(z))
            for order in range(1, most + 1)
        ]

    for found, expected in both(z):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_the_diagonal_is_the_limit_and_has_its_closed_form():
    part = components()
    w, m = np.exp(part["log_w"]), 2 * np.pi * np.asarray(part["freq"])
    a = np.sqrt(5) * np.exp(part["log_ls"])
    at_zero = [float(spectral_kernel(part, jnp.zeros(()), order)) for order in range(4)]
    expected = [w.sum(), 0, -(w * (a**2 / 3 + m**2)).sum(), 0]
    np.testing.assert_allclose(at_zero, expected, rtol=1e-13, atol=1e-13)
    for envelope, most in CASES[1:]:
        step = 1e-7
        near = [spectral_kernel(part, jnp.asarray(s * step), 2, envelope=envelope) for s in (-1, 1)]
        limit = spectral_kernel(part, jnp.zeros(()), 2, envelope=envelope)
        np.testing.assert_allclose(near, [limit, limit], rtol=1e-5)
        if most == 3:
            first, second = (
                spectral_kernel(part, jnp.asarray(z), 1, envelope=envelope) for z in (-step, step)
            )
            np.testing.assert_allclose((second - first) / (2 * step), limit, rtol=1e-6)  # fmt: skip


@pytest.mark.parametrize("order", range(4))
def test_toeplitz_is_full_evaluation_with_the_same_gradient(order):
    x = np.linspace(0.5, 2.0, 7)
    scale = np.cos(np.arange(49.0)).reshape(7, 7)

    def whole(part):
        return jnp.sum(scale * cross_matrix(part, x, x, order))

    def quick(part):
        return jnp.sum(scale * kernel_matrix(part, x, order))

    @jax.jit
    def both(part):
        slopes = jax.grad(whole)(part), jax.grad(quick)(part)
        return kernel_matrix(part, x, order), cross_matrix(part, x, x, order), *slopes

    matrix, full, a, b = both(components())
    np.testing.assert_allclose(matrix, full, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(matrix, (-1) ** order * matrix.T)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), a, b)


def test_uneven_points_are_evaluated_one_by_one():
    x = np.array([0.0, 0.1, 0.4, 1.0])
    part = components()
    for i, j in ((0, 3), (2, 1)):
        expected = spectral_kernel(part, jnp.asarray(x[i] - x[j]), 1)
        np.testing.assert_allclose(kernel_matrix(part, x, 1)[i, j], expected, rtol=1e-13)


def test_covariances_are_positive_semidefinite():
    x = np.linspace(0, 1, 40)

    @jax.jit
    def matrices(part):
        return [
            [kernel_matrix(part, x, order, envelope=e) for order in (0, 2) if order <= most]
            for e, most in CASES
        ]

    for value, *second in matrices(components()):
        values = np.linalg.eigvalsh(np.asarray(value))
        assert values.min() > -1e-13 * values.max()
        # A second derivative of the kernel is minus the covariance of the derivative.
        for matrix in second:
            values = np.linalg.eigvalsh(-np.asarray(matrix))
            assert values.min() > -1e-10 * values.max()


def test_toeplitz_layout():
    expected = [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    np.testing.assert_array_equal(toeplitz(jnp.arange(3.0)), expected)


@pytest.mark.parametrize(
    ("envelope", "order", "message"),
    [
        ("matern12", 1, "orders 0 to 0.*matern32, matern52, gaussian"),
        ("matern32", 3, "matern52, gaussian"),
        ("matern52", 4, "have them: none"),
        ("gaussian", -1, "order=-1"),
        ("matern5", 0, "did you mean 'matern52'"),
    ],
)
def test_a_kernel_that_is_too_rough_is_refused(envelope, order, message):
    with pytest.raises(ValueError, match=message):
        spectral_kernel(components(), jnp.zeros(2), order, envelope=envelope)


def test_one_factorisation_has_the_values_and_gradients_of_dense_algebra():
    rng = np.random.default_rng(0)
    root, right = rng.normal(size=(2, 5, 5)), jnp.asarray(rng.normal(size=(2, 5, 3)))
    matrix = jnp.asarray(root @ np.swapaxes(root, 1, 2) + np.eye(5))

    def ours(matrix, right):
        gram = factorise(matrix)
        return jnp.sum(jnp.sin(solve(gram, right))) + jnp.sum(logdet(gram))

    def dense(matrix, right):
        found = jnp.linalg.solve(matrix, right)
        return jnp.sum(jnp.sin(found)) + jnp.sum(jnp.linalg.slogdet(matrix)[1])

    found, expected = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(matrix, right) for f in (ours, dense)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)
    assert not np.isfinite(factorise(-matrix).log_determinant).any()
