"""Block-diagonal matrices: the projection, the shuffle, the variance, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.block_diagonal import (
    BlockDiagonal,
    block_diagonal_to_dense,
    diagonal_blocks,
    shuffle_channels,
)


def shuffled(d, k):
    """The order in which a shuffle reads d channels, by definition."""
    return np.array([g * (d // k) + j for j in range(d // k) for g in range(k)])


def test_the_shuffle_is_a_transpose_and_the_other_count_undoes_it():
    x = jnp.arange(24)
    np.testing.assert_array_equal(shuffle_channels(x, 4), shuffled(24, 4))
    np.testing.assert_array_equal(shuffle_channels(shuffle_channels(x, 4), 6), x)


@pytest.mark.parametrize("shuffle", [False, True])
def test_projection_keeps_the_entries_on_the_blocks_and_no_other(shuffle):
    w = jax.random.normal(jax.random.key(0), (3, 12, 8))
    dense = np.asarray(BlockDiagonal.from_dense(w, nblocks=4, shuffle=shuffle).to_dense())
    order = shuffled(12, 4) if shuffle else np.arange(12)
    on = np.zeros((12, 8), bool)
    on[order] = np.kron(np.eye(4), np.ones((3, 2))) > 0
    np.testing.assert_array_equal(dense, np.where(on, w, 0))


def test_products_are_those_of_shuffled_parts():
    blocks = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    x = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    parts = x[:, shuffled(12, 4)].reshape(5, 4, 3)
    expected = np.concatenate([parts[:, i] @ blocks[i] for i in range(4)], axis=-1)
    product = x @ BlockDiagonal(jnp.asarray(blocks), shuffle=True)
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-6)


def test_a_block_diagonal_matrix_is_exact_and_one_block_is_the_matrix():
    w = jax.random.normal(jax.random.key(0), (12, 8))
    once = BlockDiagonal.from_dense(w, nblocks=2).to_dense()
    np.testing.assert_array_equal(BlockDiagonal.from_dense(once, nblocks=2).to_dense(), once)
    np.testing.assert_array_equal(
        BlockDiagonal.from_dense(w, nblocks=1, shuffle=True).to_dense(), w
    )
    np.testing.assert_array_equal(block_diagonal_to_dense(diagonal_blocks(once, 2)), once)


def test_other_blocks_values_do_not_leak():
    blocks = jnp.ones((2, 2, 2)).at[0, 0, 0].set(jnp.inf)
    assert np.isfinite(np.asarray(block_diagonal_to_dense(blocks))).sum() == 15


@pytest.mark.parametrize(("shuffle", "reached"), [(False, 4), (True, 16)])
def test_two_shuffled_layers_connect_every_input_with_every_output(shuffle, reached):
    layer = BlockDiagonal(jnp.ones((4, 4, 4)), shuffle=shuffle)
    paths = np.asarray(jnp.eye(16) @ layer @ layer)
    np.testing.assert_array_equal((paths > 0).sum(axis=1), reached)


def test_a_drawn_layer_preserves_the_variance():
    w = BlockDiagonal.from_dense(
        jnp.zeros((2, 512, 256)), nblocks=4, init="variance_preserving", key=jax.random.key(0)
    )
    # 131072 uniform entries: the relative error of a variance is sqrt(0.8 / 131072) = 0.0025.
    np.testing.assert_allclose(jnp.var(w.blocks), 4 / 512, rtol=0.02)
    x = jax.random.normal(jax.random.key(1), (512, 512))
    y = x @ jax.tree.map(lambda leaf: leaf[0], w)
    np.testing.assert_allclose(jnp.mean(y**2), 1.0, rtol=0.03)


def test_product_never_forms_the_dense_matrix_and_stores_a_kth():
    w = BlockDiagonal.from_dense(jnp.ones((64, 48)), nblocks=4, shuffle=True)
    text = jax.jit(lambda x, w: x @ w).lower(jnp.ones((5, 64)), w).as_text()
    assert "64x48" not in text
    assert w.cost(5).flops * 4 == 2 * 5 * 64 * 48
    assert w.nbytes * 4 == 64 * 48 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nblocks": 5}, "nblocks=5 .* nearest: 4"),
        ({"nblocks": 0}, "nearest: 1"),
        ({"nblocks": 99}, "nearest: 4"),
        ({"init": "projekt"}, "did you mean 'project'"),
        ({"init": "variance_preserving"}, "needs a key"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BlockDiagonal.from_dense(jnp.ones((12, 8)), **arguments)


def test_no_rows_are_no_rows():
    W = BlockDiagonal.from_dense(jnp.ones((16, 8)), nblocks=4, shuffle=True)
    assert (jnp.ones((0, 16)) @ W).shape == (0, 8)
    assert W.tmatmul(jnp.ones((0, 8))).shape == (0, 16)
