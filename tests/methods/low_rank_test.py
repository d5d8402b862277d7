"""Low rank: the Eckart-Young identity, exactness at full rank, sizes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.methods.low_rank import LowRank, rank_from_ratio, truncated_svd


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
        ({}, "one of rank=None"),
        ({"rank": 2, "ratio": 0.5}, "one of rank=2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowRank.from_dense(jnp.ones((12, 8)), **arguments)
