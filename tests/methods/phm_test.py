"""PHM: Kronecker products, quaternions, the nearest sum, the variance of a drawn one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.methods.phm import PHM, hamilton_tables, nearest_phm, phm_apply, phm_to_dense


def factors(n, p, q, seed=0):
    rng = np.random.default_rng(seed)
    a, s = rng.normal(size=(n, n, n)), rng.normal(size=(n, p, q))
    return a, s, sum(np.kron(a[i], s[i]) for i in range(n))


def test_the_dense_matrix_is_the_sum_of_kronecker_products():
    a, s, w = factors(3, 2, 4)
    dense = phm_to_dense(jnp.asarray(a, jnp.float32), jnp.asarray(s, jnp.float32))
    np.testing.assert_allclose(dense, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("p", "q"), [(2, 5), (5, 2)])
def test_the_product_is_right_and_never_forms_the_matrix(p, q):
    a, s, w = factors(3, p, q)
    x = np.random.default_rng(1).normal(size=(7, 3 * p))
    operands = [jnp.asarray(v, jnp.float32) for v in (a, s, x)]
    np.testing.assert_allclose(jax.jit(phm_apply)(*operands), x @ w, rtol=1e-4, atol=1e-4)
    text = jax.jit(phm_apply).lower(*operands).as_text()
    assert f"{3 * p}x{3 * q}" not in text
    assert f"3x{p}x3x{q}" not in text


def test_hamilton_tables_multiply_quaternions():
    def product(u, v):
        """Hamilton's product from the scalar and the cross product."""
        scalar = u[0] * v[0] - u[1:] @ v[1:]
        return np.array([scalar, *(u[0] * v[1:] + v[0] * u[1:] + np.cross(u[1:], v[1:]))])

    s, x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    w = PHM(None, hamilton_tables(), jnp.asarray(s)[:, None, None])
    np.testing.assert_allclose(x @ w, product(s, x), rtol=1e-5, atol=1e-6)
    # Unit quaternions rotate.
    dense = np.asarray(w.to_dense())
    np.testing.assert_allclose(dense @ dense.T, (s @ s) * np.eye(4), rtol=1e-4, atol=1e-5)


def test_projection_leaves_the_discarded_spectrum_of_the_rearranged_matrix(maybe_jit):
    w = np.random.default_rng(0).normal(size=(2, 12, 15)).astype(np.float32)
    a, s = maybe_jit(lambda w: nearest_phm(w, 3))(w)
    error = np.square(np.asarray(phm_to_dense(a, s)) - w).sum((-1, -2))
    for i in range(2):
        blocks = [w[i][4 * j : 4 * j + 4, 5 * k : 5 * k + 5] for j in range(3) for k in range(3)]
        sigma = np.linalg.svd(np.stack([b.ravel() for b in blocks]), compute_uv=False)
        np.testing.assert_allclose(error[i], np.square(sigma[3:]).sum(), rtol=1e-4)
    # Balanced: both sides of every term have the same norm.
    norms = [np.sqrt(np.square(np.asarray(v)).sum((-1, -2))) for v in (a, s)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 6), (12, 9)])
def test_a_sum_of_few_products_is_exact_and_its_other_terms_can_train(shape):
    # One entry a block in the first, so that three terms are more than there can be.
    p, q = shape[0] // 3, shape[1] // 3
    w = jnp.kron(jnp.eye(3) + 1.0, jnp.arange(1.0, p * q + 1).reshape(p, q))
    kernel = PHM.from_dense(w, n=3)
    np.testing.assert_allclose(kernel.to_dense(), w, rtol=1e-4, atol=1e-3)
    assert kernel.tables.shape == (3, 3, 3)
    towards = jax.random.normal(jax.random.key(0), shape)
    grads = jax.grad(lambda k: jnp.sum(k.to_dense() * towards))(kernel)
    assert (jnp.abs(grads.s).max((1, 2)) > 1e-3).all()


def test_hamilton_projection_is_the_least_squares_one():
    w = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    kernel = PHM.from_dense(jnp.asarray(w), tables="hamilton")
    tables = np.asarray(hamilton_tables())
    columns = [
        np.kron(tables[i], np.eye(1, 6, j).reshape(2, 3)).ravel()
        for i in range(4)
        for j in range(6)
    ]
    best, *_ = np.linalg.lstsq(np.stack(columns, axis=1), w.ravel(), rcond=None)
    np.testing.assert_allclose(np.asarray(kernel.s).ravel(), best, rtol=1e-4, atol=1e-5)
    again = PHM.from_dense(kernel.to_dense(), tables="hamilton")
    np.testing.assert_allclose(again.s, kernel.s, rtol=1e-4, atol=1e-6)


def test_fixed_tables_are_not_trained_and_learned_ones_are():
    for tables, trained in (("hamilton", {"s"}), ("learned", {"learned", "s"})):
        kernel = PHM.from_dense(jnp.ones((2, 8, 12)), tables=tables)
        mask = jaxlab.trainable_mask({"kernel": kernel})["kernel"]
        assert {name for name in kernel.axes if getattr(mask, name)} == trained
        assert kernel.tables.shape == (2, 4, 4, 4)


@pytest.mark.parametrize(("tables", "count"), [("learned", 300), ("hamilton", 20)])
def test_a_drawn_matrix_has_the_variance_of_a_dense_layer(tables, count):
    def draw(key):
        like = jnp.zeros((16, 32))
        return PHM.from_dense(like, tables=tables, init="random", key=key).to_dense()

    w = jax.vmap(draw)(jax.random.split(jax.random.key(0), count))
    # Tables are few, 64 numbers a draw: hence the many draws of them.
    np.testing.assert_allclose(jnp.mean(w**2), 1 / 16, rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 5}, "n=5 .* nearest: 4"),
        ({"n": 0}, "nearest: 1"),
        ({"n": 2, "tables": "hamilton"}, "n=2 does not fit tables='hamilton'; nearest: n=4"),
        ({"tables": "hamiltonian"}, "did you mean 'hamilton'"),
        ({"init": "rand"}, "did you mean 'random'"),
        ({"init": "random"}, "needs a key"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PHM.from_dense(jnp.ones((12, 8)), **arguments)
