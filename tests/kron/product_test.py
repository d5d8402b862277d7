"""Products, diagonal and trace of Kronecker products against NumPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kron.operator import (
    Kronecker,
    kron_dense,
    kron_diag,
    kron_matmat,
    kron_matvec,
    kron_outer,
    kron_trace,
)

SHAPES = [(3, 4), (2, 5), (6, 2)]


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def draw(seed, *shapes, dtype=np.float64):
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=s) for s in shapes]
    if np.issubdtype(dtype, np.complexfloating):
        made = [x + 1j * rng.normal(size=x.shape) for x in made]
    return [x.astype(dtype) for x in made]


def dense(factors):
    return functools.reduce(np.kron, factors)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128, np.float32])
def test_products_are_those_of_the_dense_matrix(d, dtype):
    factors = draw(0, *SHAPES[:d], dtype=dtype)
    n = dense(factors).shape[1]
    x, columns = draw(1, (n,), (n, 3), dtype=dtype)
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for found, expected in (
        (kron_matvec(factors, x), dense(factors) @ x),
        (kron_matmat(factors, columns), dense(factors) @ columns),
        (kron_dense(factors), dense(factors)),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_the_first_factor_acts_on_the_slowest_axis():
    a, b, x = draw(0, (3, 4), (2, 5), (4, 5))
    np.testing.assert_allclose(kron_matvec((a, b), x), a @ x @ b.T, atol=1e-13)
    np.testing.assert_allclose(kron_matvec((a, b), x.reshape(-1)), (a @ x @ b.T).reshape(-1))


def test_stacks_of_factors_and_vectors_broadcast():
    a, b, c, x = draw(0, (2, 1, 3, 4), (2, 5), (7, 6, 2), (2, 7, 40))
    found = kron_matvec((a, b, c), x)
    assert found.shape == (2, 7, 36)
    for i in range(2):
        for j in range(7):
            expected = dense([a[i, 0], b, c[j]]) @ x[i, j]
            np.testing.assert_allclose(found[i, j], expected, atol=1e-12)
    grid = kron_matvec((a, b, c), x.reshape(2, 7, 4, 5, 2))
    np.testing.assert_array_equal(grid.reshape(found.shape), found)
    one = kron_matmat((a, b, c), x[..., None])
    np.testing.assert_allclose(one[..., 0], found, atol=1e-12)
    assert kron_dense((a, b, c)).shape == (2, 7, 36, 40)


def test_a_real_factor_of_a_complex_vector_is_made_complex():
    (a,), (x,) = draw(0, (3, 4)), draw(1, (4,), dtype=np.complex128)
    np.testing.assert_allclose(kron_matvec((a,), x), a @ x, atol=1e-13)


def test_diagonal_trace_and_outer():
    a, b, u, v = draw(0, (3, 3), (4, 4), (3,), (4,))
    np.testing.assert_allclose(kron_diag((a, b)), np.diag(np.kron(a, b)))
    np.testing.assert_allclose(kron_trace((a, b)), np.trace(np.kron(a, b)))
    np.testing.assert_allclose(kron_outer((u, v)), np.outer(u, v))
    stacked = kron_trace((np.stack([a, 2 * a]), b))
    np.testing.assert_allclose(stacked, np.trace(np.kron(a, b)) * np.array([1, 2]))


def test_products_are_differentiated_and_mapped():
    a, b, x, g = draw(0, (3, 4), (2, 5), (20,), (6,))
    slopes = jax.jit(jax.grad(lambda a, b, x: kron_matvec((a, b), x) @ g, (0, 1, 2)))(a, b, x)
    expected = jax.grad(lambda a, b, x: jnp.kron(a, b) @ x @ g, (0, 1, 2))(a, b, x)
    for found, known in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-12)
    mapped = jax.vmap(lambda x: kron_matvec((a, b), x))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped[1], 2 * mapped[0])


def test_what_does_not_fit_is_refused_with_what_would():
    a, b = draw(0, (3, 4), (2, 5))
    with pytest.raises(ValueError, match=r"\(7,\) does not fit.*nearest: \(\.\.\., 4, 5\)"):
        kron_matvec((a, b), jnp.zeros(7))
    with pytest.raises(ValueError, match=r"nearest: \(\.\.\., 20, R\)"):
        kron_matmat((a, b), jnp.zeros((4, 5)))
    with pytest.raises(ValueError, match="one array or more"):
        kron_dense(())
    with pytest.raises(ValueError, match=r"factors\[0\] of \(3, 4\) must be square"):
        kron_diag((a, b))
    with pytest.raises(ValueError, match=r"must be \(\.\.\., m, n\)"):
        kron_matvec((jnp.zeros(3),), jnp.zeros(3))


def test_an_operator_is_closed_under_what_mathematics_allows():
    a, b, x, columns = draw(0, (3, 3), (2, 2), (6,), (6, 3))
    k, known = Kronecker((a, b)), np.kron(a, b)
    assert k.shape == (6, 6)
    for found, expected in (
        ((k @ k.T).to_dense(), known @ known.T),
        (k.inverse().T.to_dense(), np.linalg.inv(known).T),
        (k @ x, known @ x),
        (x @ k, x @ known),
        (k @ columns, known @ columns),
        (k.solve(x), np.linalg.solve(known, x)),
        (k.logdet(), np.linalg.slogdet(known)[1]),
        (k.diagonal(), np.diag(known)),
        (k.trace(), np.trace(known)),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-10)
    made = jax.jit(lambda k: (k @ k).T)(k)
    assert isinstance(made, Kronecker)
    np.testing.assert_allclose(made.to_dense(), (known @ known).T, atol=1e-12)
    with pytest.raises(ValueError, match=r"\(3, 2\) columns do not meet factors of \(2, 3\) rows"):
        k @ Kronecker((b, a))
    with pytest.raises(ValueError, match="must be square"):
        Kronecker((a[:2], b)).inverse()


def test_rows_times_an_operator_are_rows_times_the_dense_matrix():
    a, b, stack = draw(0, (3, 4), (2, 5), (7, 3, 4))
    for factors, shapes in (
        ((a, b), [(6,), (3, 6), (1, 6), (7, 3, 6)]),
        ((stack, b), [(6,), (3, 6)]),
    ):
        k = Kronecker(factors)
        for x in draw(1, *shapes):
            np.testing.assert_allclose(x @ k, x @ np.asarray(kron_dense(factors)), atol=1e-12)
    # A grid of the rows is no vector of them, whether or not it would be one of the columns.
    for wrong in ((3, 2), (4, 5), (20,), (6, 2), ()):
        with pytest.raises(ValueError, match=r"x @ K.*nearest: \(6,\) or \(\.\.\., R, 6\)"):
            jnp.zeros(wrong) @ Kronecker((a, b))
