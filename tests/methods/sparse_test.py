"""Masks by size, packed storage, and what a mask is worth while the master is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlab
from jaxlab.methods.sparse import Sparse, SparsePacked, magnitude_mask, pack_sparse


def test_every_matrix_of_a_stack_keeps_its_own_largest():
    w = jax.random.normal(jax.random.key(0), (3, 4, 5))
    mask = np.asarray(magnitude_mask(w * jnp.array([1.0, 10.0, 100.0])[:, None, None], 0.7))
    assert mask.sum(axis=(1, 2)).tolist() == [6, 6, 6]
    for matrix, kept in zip(np.abs(np.asarray(w)), mask, strict=True):
        assert matrix[kept].min() > matrix[~kept].max()


@pytest.mark.parametrize("columns", [8, 9])
def test_packed_values_are_where_their_bits_are(columns):
    w = jax.random.normal(jax.random.key(1), (5, columns))
    mask = magnitude_mask(w, 0.6)
    packed = pack_sparse(w, mask, int(mask.sum()))
    np.testing.assert_array_equal(packed.values, np.asarray(w)[np.asarray(mask)])
    bits = np.unpackbits(np.asarray(packed.bitmap), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :columns] != 0, mask)
    np.testing.assert_array_equal(packed.to_dense(), jnp.where(mask, w, 0))
    assert packed.nbytes == 4 * int(mask.sum()) + 5 * -(-columns // 8)


def test_a_stack_stores_as_much_as_its_fullest_needs():
    w = jnp.arange(1.0, 33.0).reshape(2, 4, 4)
    mask = (w > 12) & (w < 27)
    packed = Sparse(w, mask).finalize()
    assert isinstance(packed, SparsePacked)
    assert packed.values.shape == (2, 10)
    assert packed.values[0].tolist() == [13, 14, 15, 16] + [0] * 6
    np.testing.assert_array_equal(packed.to_dense(), jnp.where(mask, w, 0))


def test_finalize_takes_the_smaller_form():
    w = jax.random.normal(jax.random.key(0), (16, 64))
    sizes = {}
    for sparsity in (0.0, 0.03, 0.04):
        final = Sparse.from_dense(w, sparsity=sparsity).finalize()
        sizes[sparsity] = (type(final).__name__, final.nbytes)
    # A bitmap is 1/32 of a float32 array: below that sparsity it costs more than it saves.
    assert sizes == {
        0.0: ("Dense", 4096),
        0.03: ("Dense", 4096),
        0.04: ("SparsePacked", 983 * 4 + 128),
    }
    empty = Sparse(w, jnp.zeros(w.shape, bool)).finalize()
    assert empty.nbytes == 128
    assert not jnp.any(empty.to_dense())


def test_a_mask_of_unknown_count_waits_for_values():
    w = jax.random.normal(jax.random.key(0), (8, 8))
    unknown = Sparse(w, magnitude_mask(w, 0.75))
    traced = jax.jit(jaxlab.finalize)({"kernel": unknown})["kernel"]
    assert isinstance(traced, Sparse)
    final = traced.finalize()
    assert isinstance(final, SparsePacked)
    np.testing.assert_array_equal(final.to_dense(), unknown.to_dense())


def test_training_moves_what_lives_and_nothing_else():
    w = Sparse.from_dense(jax.random.normal(jax.random.key(0), (6, 5)), sparsity=0.5)
    # Noise where the mask is not must neither act nor stay.
    noisy = Sparse(w.weight + 1.0, w.mask)
    x = jax.random.normal(jax.random.key(1), (4, 6))
    grad = jax.grad(lambda v: jnp.sum((x @ Sparse(v, w.mask)) ** 2))(noisy.weight)
    assert bool(jnp.all((grad != 0) == w.mask))
    params = {"kernel": noisy}
    trainable, frozen = jaxlab.partition(params, jaxlab.trainable_mask(params))
    tx = optax.sgd(0.1)
    updates, _ = tx.update({"kernel": Sparse(grad, None)}, tx.init(trainable), trainable)  # pyright: ignore
    after = jaxlab.combine(optax.apply_updates(trainable, updates), frozen)
    after = jaxlab.advance(after, 0.5)["kernel"]
    assert bool(jnp.all(jnp.where(w.mask, after.weight != noisy.weight, after.weight == 0)))
    np.testing.assert_array_equal(after.support(jnp.float32(0.5))["weight"], w.mask)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"sparsity=1.2 must be in \[0, 1\); nearest: 0.99"):
        Sparse.from_dense(jnp.ones((4, 4)), sparsity=1.2)
    with pytest.raises(ValueError, match="sparse_packed.*nearest: 0.0"):
        SparsePacked.from_dense(jnp.ones((4, 4)), sparsity=-0.5)
