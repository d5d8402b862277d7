"""Low rank: the Eckart-Young identity, exactness at full rank, sizes, refusals."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.core.gram import gram_init, gram_update
from jaxlab.methods.low_rank import (
    LowRank,
    breakeven_rank,
    lord_factorize,
    merge_lowrank,
    rank_from_ratio,
    truncated_svd,
)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (3, 12, 8)])
def test_error_is_the_discarded_spectrum(shape, maybe_jit):
    w = jax.random.normal(jax.random.key(0), shape)
    s = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    for rank in (1, 3, 8):
        u, v = maybe_jit(lambda w, rank=rank: truncated_svd(w, rank))(w)
        assert u.shape == (*shape[:-1], rank)
        assert v.shape == (*shape[:-2], rank, shape[-1])
        error = np.square(np.asarray(u @ v) - np.asarray(w)).sum((-1, -2))
        np.testing.assert_allclose(error, np.square(s[..., rank:]).sum(-1), rtol=1e-4, atol=1e-9)


def test_factors_are_balanced():
    u, v = truncated_svd(jax.random.normal(jax.random.key(0), (12, 8)), 4)
    np.testing.assert_allclose(u.T @ u, v @ v.T, atol=1e-5)


def test_a_matrix_of_that_rank_is_exact():
    a, b = jax.random.normal(jax.random.key(0), (2, 10, 3))
    w = a @ b.T
    np.testing.assert_allclose(LowRank.from_dense(w, rank=3).to_dense(), w, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1.0))
def test_rank_from_ratio_stays_in_the_budget(d_in, d_out, ratio):
    rank = rank_from_ratio(d_in, d_out, ratio)
    assert 1 <= rank <= min(d_in, d_out)
    assert rank == 1 or rank * (d_in + d_out) <= ratio * d_in * d_out
    # One more would be too many.
    assert rank == min(d_in, d_out) or (rank + 1) * (d_in + d_out) > ratio * d_in * d_out


def test_ratio_buys_that_many_parameters():
    w = LowRank.from_dense(jnp.ones((64, 64), jnp.bfloat16), ratio=0.5)
    assert w.u.shape == (64, 16)
    assert w.nbytes * 2 == 64 * 64 * 2
    assert w.dtype == jnp.bfloat16


def test_product_never_forms_the_dense_matrix():
    w = LowRank.from_dense(jnp.ones((64, 48)), rank=2)
    text = jax.jit(lambda x, w: x @ w).lower(jnp.ones((5, 64)), w).as_text()
    assert "64x48" not in text
    assert w.cost(5).flops == 2 * 5 * 2 * (64 + 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 9}, "nearest: 8"),
        ({"rank": 0}, "nearest: 1"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({}, "rank=None and ratio=None; give one"),
        ({"rank": 2, "ratio": 0.5}, "rank=2 and ratio=0.5; give one"),
        ({"ratio": 0.5, "align": 0}, "align=0 must be 1 or more"),
        ({"rank": 2, "decomposition": "svdd"}, "did you mean 'svd'"),
        ({"rank": 2, "decomposition": "whiten"}, "needs gram.*calibrate.batches"),
        ({"rank": 2, "split": "left"}, "split='left' is unknown"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowRank.from_dense(jnp.ones((12, 8)), **arguments)


def test_ranks_of_known_layers():
    got = [breakeven_rank(*s) for s in ((6144, 24576), (4096, 4096), (384, 1536))]
    assert got == [4915.2, 2048, 307.2]
    assert rank_from_ratio(4096, 4096, 0.8) == 1638
    assert rank_from_ratio(4096, 11008, 0.8) == rank_from_ratio(11008, 4096, 0.8) == 2388
    assert rank_from_ratio(4096, 4096, 0.8, align=128) == 12 * 128
    # Not below one multiple, nor above the matrix.
    assert rank_from_ratio(64, 64, 0.1, align=8) == 8
    assert rank_from_ratio(6, 64, 0.1, align=8) == 6


def test_statistics_choose_the_decomposition():
    w, x = jax.random.normal(jax.random.key(0), (12, 8)), jnp.linspace(0.1, 3, 12)[None, :]
    x = x * jax.random.normal(jax.random.key(1), (40, 12)) + 1
    gram = gram_update(gram_init(12), x)
    y = x @ w

    def short(**how):
        change = y - x @ LowRank.from_dense(w, rank=3, **how)
        return float(jnp.sum(change**2)), float(jnp.sum((change - change.mean(0)[None, :]) ** 2))

    best = short(gram=gram)
    np.testing.assert_allclose(short(gram=gram, decomposition="lord"), best)
    np.testing.assert_allclose(short(gram=gram, decomposition="whiten")[0], best[0], rtol=1e-4)
    for blind in ({}, {"gram": gram, "decomposition": "asvd"}):
        assert best[0] < short(**blind)[0]
    # About the mean it is better still, once a bias has taken that over.
    centred = short(gram=gram, center=True)
    assert centred[1] < best[1]
    params, tail = lord_factorize(w.T, None, gram, 3)
    np.testing.assert_allclose(centred[1], tail * 40, rtol=1e-4)
    got = LowRank.from_dense(w, rank=3, gram=gram, center=True)
    np.testing.assert_allclose(got.to_dense(), merge_lowrank(params)[0].T, atol=1e-5)
    np.testing.assert_allclose(got.v @ got.v.T, np.eye(3), atol=1e-5)
    assert LowRank.needs({"decomposition": "kfac"}) == {"gradient_gram"}
    assert LowRank.needs({}) == {"cross"}
    assert LowRank.needs({"decomposition": "svd"}) == frozenset()


def test_a_rank_above_break_even_is_said(caplog):
    w = jnp.eye(8)
    with caplog.at_level(logging.WARNING):
        LowRank.from_dense(w, rank=4)
        assert not caplog.records
        assert LowRank.from_dense(w, rank=5).nbytes > w.nbytes
    assert "rank=5 of a 8 x 8 kernel stores more" in caplog.text
