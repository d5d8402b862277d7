"""Moments: sums that associate, keep their digits, and do not see what has no weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxlab.core.gram import (
    Gram,
    gram_allreduce,
    gram_init,
    gram_merge,
    gram_split,
    gram_update,
)


def draw(tokens=60, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(tokens, d)) + np.arange(d), jnp.float32)


def of(x, weight=None, dtype=jnp.float32):
    return gram_update(gram_init(x.shape[-1], dtype=dtype), x, weight)


def moments(x, weight=None):
    """Count, mean, m2 and mean size in float64."""
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64).reshape(-1)
    mean = weight @ x / weight.sum()
    m2 = (weight[:, None] * (x - mean)).T @ (x - mean)
    return weight.sum(), mean, m2, weight @ np.abs(x) / weight.sum()


def assert_equal(gram, expected, rtol=1e-6):
    count, mean, m2, absmean = expected
    np.testing.assert_allclose(gram.count, count, rtol=rtol)
    np.testing.assert_allclose(gram.mean, mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(gram.m2, m2, rtol=rtol, atol=rtol * np.abs(m2).max())
    np.testing.assert_allclose(gram.absmean, absmean, rtol=rtol)


def test_one_shot_and_properties(maybe_jit):
    x = draw()
    gram = maybe_jit(of)(x.reshape(3, 20, 5))
    assert_equal(gram, moments(x))
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(gram.second_moment, wide.T @ wide, rtol=1e-5)
    np.testing.assert_allclose(gram.norms, np.linalg.norm(wide, axis=0), rtol=1e-6)


def test_merge_is_associative_and_equals_one_shot():
    x = draw()
    a, b, c = (of(part) for part in jnp.split(x, (7, 40)))
    for gram in (gram_merge(gram_merge(a, b), c), gram_merge(a, gram_merge(b, c))):
        assert_equal(gram, moments(x))
    assert_equal(gram_update(gram_update(of(x[:7]), x[7:40]), x[40:]), moments(x))


def error_of_m2(gram, x):
    _, _, m2, _ = moments(x)
    return np.abs(np.asarray(gram.m2, np.float64) - m2).max() / np.abs(m2).max()


@pytest.mark.parametrize("parts", [1, 12])
def test_a_far_mean_leaves_the_digits(maybe_jit, parts):
    x = draw(tokens=600) + 1e4
    gram, update = gram_init(5), maybe_jit(gram_update)
    for part in jnp.split(x, parts):
        gram = update(gram, part)
    assert error_of_m2(gram, x) < 1e-6


def test_many_rows_far_away_are_centred_on_their_mean():
    x = draw(tokens=60000) + 1e4
    # What rounding does to a float32 sum of so many terms; about the naive mean it is far more.
    assert error_of_m2(of(x), x) < np.sqrt(60000) * np.finfo(np.float32).eps / 2


def test_nothing_is_neutral():
    gram, nothing = of(draw()), gram_init(5)
    for merged in (gram_merge(gram, nothing), gram_merge(nothing, gram)):
        jax.tree.map(np.testing.assert_array_equal, merged, gram)
    both = gram_update(gram_merge(nothing, nothing), jnp.zeros((0, 5)))
    assert all(np.all(np.asarray(leaf) == 0) for leaf in both)


def test_weights(maybe_jit):
    x, weight = draw().reshape(6, 10, 5), jnp.linspace(0.0, 2.0, 10)
    assert_equal(maybe_jit(of)(x, weight), moments(x, np.broadcast_to(np.asarray(weight), (6, 10))))
    padded = jnp.concatenate([x, jnp.full((6, 3, 5), jnp.nan)], axis=1)
    real = (jnp.arange(13) < 10)[None, :]
    assert_equal(of(padded, real), moments(x))


def test_narrow_inputs_are_widened_first():
    x = draw().astype(jnp.bfloat16)
    assert of(x).m2.dtype == jnp.float32
    assert_equal(of(x), moments(x))
    with jax.enable_x64(True):
        assert_equal(of(x, dtype=jnp.float64), moments(x), rtol=1e-13)


def test_allreduce_equals_the_merge():
    x = draw() + 100.0
    # One member has seen nothing.
    parts = [of(x), gram_init(5)], [of(x[:20]), of(x[20:])]
    mesh, spec = Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data")

    def reduce(gram):
        own = Gram(*(leaf[0] for leaf in gram))
        return jax.tree.map(lambda leaf: leaf[None], gram_allreduce(own, "data"))

    fn = jax.jit(jax.shard_map(reduce, mesh=mesh, in_specs=(spec,), out_specs=spec))
    for pair in parts:
        both = fn(Gram(*(jnp.stack(leaves) for leaves in zip(*pair, strict=True))))
        for member in range(2):
            assert_equal(Gram(*(leaf[member] for leaf in both)), moments(x))


def test_moments_of_pairs():
    x, y = draw(), draw(seed=1) - 3
    cross = gram_split(of(jnp.concatenate([x, y], axis=-1)))
    assert_equal(cross.gram, moments(y))
    wide = [np.asarray(z, np.float64) for z in (x, y)]
    np.testing.assert_allclose(cross.mean, wide[0].mean(0), rtol=1e-6)
    about = [z - z.mean(0) for z in wide]
    for center, (a, b) in ((True, about), (False, wide)):
        np.testing.assert_allclose(cross.moment(center=center), a.T @ b / 60, rtol=1e-5, atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="vectors of length 4"):
        gram_update(gram_init(4), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match=r"weight of shape \(4,\) does not broadcast .*\(3,\)"):
        gram_update(gram_init(5), jnp.ones((3, 5)), jnp.ones(4))
