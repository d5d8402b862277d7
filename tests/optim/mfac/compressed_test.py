"""Compressed rows: what is kept, error feedback, and the same algebra as of dense rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac import TopK, ihvp, scale_by_mfac
from jaxlab.optim.mfac.compressed import SparseRows, compress, dense_of


def gradients(steps, shape, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(steps)]


@pytest.mark.parametrize(
    ("size", "density", "block", "kept"),
    [(10, 0.3, 100, (1, 10, 3)), (10, 0.3, 4, (3, 4, 2)), (100, 1e-3, 64, (2, 64, 1))],
)
def test_a_row_keeps_the_largest_of_each_block(size, density, block, kept):
    topk = TopK(density, block)
    assert topk.kept(size) == kept
    (x,) = gradients(1, (size,))
    row = jax.jit(lambda x: compress(x, topk, jnp.float32))(x)
    expected = np.zeros(size)
    for start in range(0, size, block):
        part = np.asarray(x[start : start + block])
        largest = np.argsort(-np.abs(part))[: kept[2]]
        expected[start + largest] = part[largest]
    np.testing.assert_array_equal(dense_of(row), expected)
    assert row.index.dtype == jnp.int32


def test_products_with_sparse_rows_are_those_of_dense_ones():
    topk, shape = TopK(0.4, 4), (3, 3)
    rows = SparseRows.zeros(4, shape, topk, jnp.float32)
    for i, g in enumerate(gradients(3, shape)):
        rows = rows.written(compress(g, topk, jnp.float32), jnp.asarray(i))
    dense = np.stack([rows.combination(jnp.eye(4)[i]) for i in range(4)])
    (x,) = gradients(1, shape, 1)
    np.testing.assert_allclose(rows.products(x), np.einsum("mij,ij->m", dense, x), rtol=1e-5)
    weights = jnp.arange(1.0, 5.0)
    expected = np.einsum("m,mij->ij", weights, dense)
    np.testing.assert_allclose(rows.combination(weights), expected, rtol=1e-6)
    assert rows.shape == (4, 3, 3)
    assert not dense[3].any()


def test_keeping_everything_is_the_dense_window():
    like = jnp.zeros((4, 3))
    dense, sparse = (scale_by_mfac(3, 0.1, compression=c) for c in (None, TopK(1.0, 5)))
    states = dense.init(like), sparse.init(like)
    steps = jax.jit(dense.update), jax.jit(sparse.update)
    for g in gradients(5, like.shape):
        (u, one), (v, two) = (step(g, s) for step, s in zip(steps, states, strict=True))
        np.testing.assert_allclose(v, u, rtol=1e-5, atol=1e-6)
        states = one, two
    assert not np.asarray(states[1].error).any()
    x = jnp.ones((4, 3))
    a, b = (jax.jit(ihvp)(s.window, x, 0.1) for s in states)
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_is_left_out_comes_later():
    m, damp, topk = 3, 0.2, TopK(0.25, 6)
    tx = scale_by_mfac(m, damp, compression=topk)
    step, state = jax.jit(tx.update), tx.init(jnp.zeros(12))
    total, stored, window = 0.0, 0.0, np.zeros((m, 12))
    for i, g in enumerate(gradients(7, (12,))):
        u, state = step(g, state)
        total, stored_before = total + np.asarray(g, np.float64), stored
        window[i % m] = state.window.rows.combination(jnp.eye(m)[i % m])
        stored = stored_before + window[i % m]
        np.testing.assert_allclose(stored + state.error, total, rtol=0, atol=1e-5)
        assert np.count_nonzero(window[i % m]) == 4
        expected = np.linalg.solve(damp * np.eye(12) + window.T @ window / m, window[i % m])
        np.testing.assert_allclose(u, expected, rtol=2e-5, atol=2e-6)


def test_a_warm_up_with_compression_is_the_gradient():
    # Without what earlier rows have left out, which the window alone is owed.
    warm = 3
    tx = scale_by_mfac(4, 0.2, warmup_steps=warm, compression=TopK(0.25, 6))
    plain = scale_by_mfac(4, 0.2, compression=TopK(0.25, 6))
    step, bare, state, other = (
        jax.jit(tx.update),
        jax.jit(plain.update),
        *(t.init(jnp.zeros(12)) for t in (tx, plain)),
    )
    for i, g in enumerate(gradients(6, (12,))):
        (u, state), (v, other) = step(g, state), bare(g, other)
        np.testing.assert_array_equal(u, g if i < warm else v)
        assert np.asarray(state.error).any()


def test_a_window_of_one_percent_takes_a_fiftieth_of_the_memory():
    m, like = 8, jnp.zeros((64, 1600))
    shapes = jax.eval_shape(scale_by_mfac(m, compression=TopK(0.01, 1600)).init, like)
    rows = shapes.window.rows
    stored = sum(x.size * x.dtype.itemsize for x in (rows.index, rows.value))
    assert stored * 50 == m * like.size * 4
