"""Sizes of Monarch factors by both rules, what is counted from them, and random factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.methods.monarch import (
    MonarchShape,
    init_monarch,
    monarch_apply,
    monarch_flops,
    monarch_lr_mults,
    monarch_param_count,
    monarch_shapes,
    monarch_to_dense,
)


@pytest.mark.parametrize(
    ("sizes", "w1", "w2", "saving"),
    [
        ((768, 3072), (4, 192, 192), (4, 768, 192), 0.3125),
        ((10, 7), (4, 2, 3), (4, 2, 2), 40 / 70),
        ((16, 24), (4, 4, 4), (4, 6, 4), 0.41667),
        ((24, 16), (4, 4, 6), (4, 4, 4), 0.41667),
    ],
)
def test_shapes_of_the_authors_layer(sizes, w1, w2, saving):
    shape = monarch_shapes(*sizes, nblocks=4)
    assert shape == monarch_shapes(*sizes)
    assert (shape.k, shape.q, shape.p) == w1
    assert (shape.l, shape.s, shape.r) == w2
    assert shape.saving == pytest.approx(saving, abs=5e-6)
    assert shape.is_padded == (sizes == (10, 7))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(1, 6))
def test_both_rules_cover_the_matrix_and_no_more_than_a_block_each(n_in, n_out, k, l):  # noqa: E741
    k, l = min(k, n_in), min(l, n_out)  # noqa: E741
    blocks = min(k, l)
    found = [
        monarch_shapes(n_in, n_out, nblocks=blocks),
        monarch_shapes(n_in, n_out, k=k, l=l, rank=1),
    ]
    for shape in found:
        assert 0 <= shape.k * shape.p - n_in < shape.k
        assert 0 <= shape.s * shape.l - n_out < shape.l
        ranks = shape.block_ranks
        assert ranks.shape == (shape.l, shape.k)
        assert (ranks.sum(0) == shape.q).all()
        assert (ranks.sum(1) == shape.r).all()
        assert ranks.max() - ranks.min() <= 1
    assert (found[1].block_ranks == 1).all()
    assert monarch_param_count(found[1]) == l * k * found[1].p + k * l * found[1].s


def test_families_of_the_paper():
    square = monarch_shapes(64, 64, k=8, l=8, rank=1)
    assert square == monarch_shapes(64, 64, nblocks=8)
    assert monarch_param_count(square) == 2 * 64**1.5
    assert monarch_flops(square, 3) == 4 * 3 * 64**1.5
    b = MonarchShape(k=16, q=4, p=4, l=4, s=16, r=16, n_in=64, n_out=64)
    assert b == monarch_shapes(64, 64, k=16, l=4, rank=1)
    assert monarch_param_count(b) == 64 * 4 + 64**2 / 4


def test_uneven_ranks():
    shape = MonarchShape(k=4, q=6, p=16, l=4, s=16, r=6, n_in=64, n_out=64)
    assert shape.block_ranks.tolist() == [[2, 1, 2, 1], [2, 1, 2, 1], [1, 2, 1, 2], [1, 2, 1, 2]]


def test_padding_is_counted_by_what_gets_a_gradient():
    shape = monarch_shapes(10, 7)
    params = init_monarch(jax.random.key(0), shape)
    x = jax.random.normal(jax.random.key(1), (20, 10))
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(monarch_apply(p, x, shape))))(params)
    reached = sum(int((np.asarray(g) != 0).sum()) for g in grads.values())
    assert reached == monarch_param_count(shape, padding=False) == 34


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nblocks": 0}, r"nblocks=0 must be in \[1, 7\].*nearest: 1"),
        ({"nblocks": -2}, "nblocks=-2"),
        ({"nblocks": 8}, r"nblocks=8 must be in \[1, 7\].*nearest: 7"),
        ({"k": 2, "l": 2}, "all of k=2, l=2 and rank=None"),
        ({"nblocks": 2, "rank": 1}, "nblocks=2, or all"),
        ({"k": 11, "l": 2, "rank": 1}, r"k=11 must be in \[1, 10\].*nearest: 10"),
        ({"k": 2, "l": 0, "rank": 1}, r"l=0 must be in \[1, 7\].*nearest: 1"),
        ({"k": 2, "l": 2, "rank": 0}, "q=0 must be 1 or more"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        monarch_shapes(10, 7, **arguments)


def test_factors_that_do_not_meet():
    with pytest.raises(ValueError, match="2 x 3 = 6, but l r = 2 x 4 = 8"):
        MonarchShape(k=2, q=3, p=2, l=2, s=2, r=4, n_in=4, n_out=4)
    with pytest.raises(ValueError, match="n_in=5 is more than the blocks hold, 4"):
        MonarchShape(k=2, q=2, p=2, l=2, s=2, r=2, n_in=5, n_out=4)


def test_a_rank_beyond_the_slices_is_a_warning():
    with pytest.warns(UserWarning, match="rank=4 is more than slices of 4 x 3.*nearest: 3"):
        shape = monarch_shapes(6, 8, k=2, l=2, rank=4)
    assert (shape.q, shape.r) == (8, 8)


@pytest.mark.parametrize(
    ("init", "low", "high"),
    [("variance_preserving", 0.95, 1.05), ("official", 0.32, 0.345), ("mup", 0.95, 1.05)],
)
def test_scale_of_the_outputs(init, low, high):
    shape = monarch_shapes(1024, 1024)
    x = jax.random.normal(jax.random.key(1), (256, 1024))
    params = init_monarch(jax.random.key(0), shape, init=init, gain=0.5)
    ratio = jnp.std(monarch_apply(params, x)) / jnp.sqrt(jnp.mean(x**2))
    assert low < 2 * float(ratio) < high


def test_variance_of_the_entries():
    shape = monarch_shapes(256, 256, nblocks=4)
    for init, expected in [("variance_preserving", 1 / 256), ("official", 1 / (9 * 256))]:
        dense = monarch_to_dense(init_monarch(jax.random.key(2), shape, init=init))
        np.testing.assert_allclose(np.var(dense), expected, rtol=0.05)


def test_inits_are_deterministic_and_checked():
    shape = monarch_shapes(8, 4, nblocks=2)
    first, second = (init_monarch(jax.random.key(0), shape, dtype=jnp.bfloat16) for _ in "12")
    np.testing.assert_array_equal(first["w1"], second["w1"])
    assert first["w2"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="init='offical' is unknown; did you mean 'official'"):
        init_monarch(jax.random.key(0), shape, init="offical")


def test_learning_rates_reach_their_factors():
    mults = monarch_lr_mults(monarch_shapes(64, 256, nblocks=4))
    assert mults == {"w1": 2.0, "w2": 2.0}
    wide = monarch_lr_mults(monarch_shapes(64, 16, nblocks=4))
    assert wide == {"w1": 2.0, "w2": 8.0}
    tx = optax.multi_transform({n: optax.scale(-m) for n, m in wide.items()}, {n: n for n in wide})
    grads = {"w1": jnp.ones(2), "w2": jnp.ones(3)}
    updates, _ = tx.update(grads, tx.init(grads))
    assert (updates["w1"].tolist(), updates["w2"].tolist()) == ([-2.0] * 2, [-8.0] * 3)
