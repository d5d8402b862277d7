"""The static factor against the inverse of the dense matrix, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac.factor import (
    static_block,
    static_diag,
    static_element,
    static_factor,
    static_ihvp,
)


def dense_inverse(g, damp):
    return np.linalg.inv(damp * np.eye(g.shape[1]) + g.T @ g / len(g))


def gradients(m, d, seed=0):
    return np.random.default_rng(seed).standard_normal((m, d))


@pytest.mark.parametrize(("m", "d"), [(1, 1), (4, 10), (16, 16), (32, 200)])
@pytest.mark.parametrize("method", ["cholesky", "recursion"])
def test_everything_is_that_of_the_dense_inverse(m, d, method):
    g, damp = gradients(m, d), 0.1
    expected = dense_inverse(g, damp)
    with jax.enable_x64(True):
        f = static_factor(jnp.asarray(g), damp, method=method)
        assert f.m == m
        scale = np.abs(expected).max()
        x = np.random.default_rng(1).standard_normal(d)
        found = static_ihvp(f, jnp.asarray(x))
        np.testing.assert_allclose(found, expected @ x, rtol=1e-12, atol=1e-12 * scale)
        np.testing.assert_allclose(static_diag(f), np.diag(expected), rtol=1e-12)
        last = d - 1
        for pair in ((0, 0), (0, last), (last, 0)):
            np.testing.assert_allclose(static_element(f, *pair), expected[pair], atol=1e-12 * scale)
        idx = np.unique([0, d // 2, last])
        block = static_block(f, jnp.asarray(idx))
        np.testing.assert_allclose(block, expected[np.ix_(idx, idx)], atol=1e-12 * scale)


def test_it_inverts_and_is_symmetric_with_eigenvalues_below_one_over_the_damping():
    g, damp = gradients(8, 20), 1e-2
    with jax.enable_x64(True):
        f = static_factor(jnp.asarray(g), damp)
        inverse = np.asarray(jax.vmap(lambda x: static_ihvp(f, x))(jnp.eye(20)))
    fisher = damp * np.eye(20) + g.T @ g / 8
    np.testing.assert_allclose(inverse @ fisher, np.eye(20), atol=1e-11)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-12 / damp)
    values = np.linalg.eigvalsh(inverse)
    assert values.min() > 0
    assert values.max() <= (1 + 1e-12) / damp


def test_both_methods_give_the_same_factor_and_row_order_does_not_matter():
    g = gradients(6, 15)
    with jax.enable_x64(True):
        one, two = (static_factor(jnp.asarray(g), 0.1, method=m) for m in ("cholesky", "recursion"))
        np.testing.assert_allclose(one.z, two.z, rtol=0, atol=1e-12)
        turned = static_factor(jnp.asarray(g[::-1]), 0.1)
        x = jnp.arange(15.0)
        np.testing.assert_allclose(static_ihvp(one, x), static_ihvp(turned, x), rtol=1e-12)


def test_hand_case():
    f = static_factor(jnp.array([[1.0, 0.0], [1.0, 1.0]]), 1.0)
    expected = np.array([[1.5, -0.5], [-0.5, 2.0]]) / 2.75
    np.testing.assert_allclose(static_block(f, jnp.arange(2)), expected, rtol=1e-6)
    np.testing.assert_allclose(static_diag(f), [0.5454545, 0.7272727], rtol=1e-6)


def test_single_precision_and_narrow_gradients():
    g = gradients(16, 50).astype(np.float32)
    f = static_factor(jnp.asarray(g), 1e-3)
    x = jnp.linspace(-1.0, 1.0, 50)
    expected = dense_inverse(g.astype(np.float64), 1e-3) @ np.asarray(x, np.float64)
    np.testing.assert_allclose(static_ihvp(f, x), expected, atol=2e-5 * np.abs(expected).max())
    narrow = static_factor(jnp.asarray(g, jnp.bfloat16), 1e-3)
    assert narrow.z.dtype == jnp.float32


def test_a_diagonal_that_rounding_makes_negative_is_clamped():
    # One direction with all of the curvature: 1 - z^2 is rounding and nothing else.
    f = static_factor(jnp.full((1, 1), 1e4), 1e-7)
    assert float(static_diag(f)[0]) > 0


def test_dead_coordinates_are_free_and_touch_nothing():
    g = gradients(4, 6).astype(np.float32)
    g[:, 2] = 0
    f = static_factor(jnp.asarray(g), 0.5)
    inverse = np.asarray(static_block(f, jnp.arange(6)))
    np.testing.assert_array_equal(inverse[2], [0, 0, 2, 0, 0, 0])


@pytest.mark.parametrize(
    ("shape", "damp", "method", "match"),
    [
        ((0, 3), 1.0, "cholesky", "m=0.*nearest: 1"),
        ((3,), 1.0, "cholesky", r"\(m, d\)"),
        ((2, 3), 0.0, "cholesky", "damp=0.0 must be positive"),
        ((2, 3), jnp.float32(-1.0), "cholesky", "static_factor: damp=-1.0 must be positive"),
        ((2, 3), jnp.inf, "cholesky", "damp=inf must be positive and finite"),
        ((2, 3), 1.0, "choleski", "did you mean 'cholesky'"),
    ],
)
def test_what_is_refused(shape, damp, method, match):
    with pytest.raises(ValueError, match=match):
        static_factor(jnp.ones(shape), damp, method=method)
    with pytest.raises(ValueError, match=r"\(4,\) must be of \(3,\)"):
        static_ihvp(static_factor(jnp.ones((2, 3)), 1.0), jnp.ones(4))
