"""One-shot pruning against the algorithms written out column by column, in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.gram import Gram, gram_init, gram_update
from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.oneshot import nm_one_shot, sparsegpt_prune, wanda_scores


def sparsegpt_by_columns(w, h, n, m, damp=0.01):
    """The paper's loop with the explicit inverse; rows are inputs."""
    w, h = np.array(w, np.float64), np.array(h, np.float64)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[dead] = 0
    h += damp * np.diag(h).mean() * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    mask = np.zeros(w.shape, bool)
    for i in range(len(w)):
        if i % m == 0:
            score = (w[i : i + m] / np.diag(u)[i : i + m, None]) ** 2
            # A stable ascending sort: of equal scores the first is pruned first.
            kept = np.argsort(score, axis=0, kind="stable")[m - n :]
            np.put_along_axis(mask[i : i + m], kept, True, axis=0)
        new = np.where(mask[i], w[i], 0)
        error = (w[i] - new) / u[i, i]
        w[i + 1 :] -= u[i, i + 1 :, None] * error
        w[i] = new
    return w, mask


def correlated(rng, tokens, d):
    """Inputs whose neighbours are alike and whose scales differ."""
    mixing = rng.normal(size=(d, d)) / np.sqrt(d) + np.eye(d)
    return rng.normal(size=(tokens, d)) @ mixing * rng.lognormal(size=d)


def draw(seed=0, d_in=24, d_out=10, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = correlated(rng, 200, d_in)
    return jnp.asarray(rng.normal(size=(d_in, d_out)), dtype), jnp.asarray(x, dtype)


def test_equals_the_loop_in_float32():
    w, x = draw()
    got, mask = sparsegpt_prune(w, x.T @ x, NMPattern(2, 4), 8)
    expected, expected_mask = sparsegpt_by_columns(w, x.T @ x, 2, 4)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.dtype == w.dtype


@pytest.mark.parametrize(("n", "m", "blocks"), [(2, 4, (4, 16)), (1, 8, (16, 128))])
def test_equals_the_loop_in_float64(n, m, blocks):
    with jax.enable_x64(True):
        w, x = draw(1, dtype=np.float64)
        # Of 24 rows, blocks of 16 leave a last one that is shorter.
        results = [sparsegpt_prune(w, x.T @ x, NMPattern(n, m), block) for block in blocks]
        expected, expected_mask = sparsegpt_by_columns(w, x.T @ x, n, m)
        for got, mask in results:
            assert got.dtype == jnp.float64
            np.testing.assert_array_equal(mask, expected_mask)
            np.testing.assert_allclose(got, expected, atol=1e-10)


def test_n_counts_kept_weights_and_exactly_those():
    w, x = draw(2)
    for prune in ("magnitude", "wanda", "sparsegpt"):
        gram = gram_update(gram_init(24), x)
        got, mask = nm_one_shot(w, NMPattern(1, 8), scores=prune, gram=gram)
        np.testing.assert_array_equal(np.reshape(mask, (3, 8, 10)).sum(1), 1)
        np.testing.assert_array_equal(np.asarray(got)[~np.asarray(mask)], 0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 7.0])
def test_independent_inputs_leave_magnitude_bit_for_bit(scale):
    w, _ = draw(3)
    # Ties, and squares that would underflow.
    w = w.at[:4].set(1.0).at[4:8].multiply(1e-30)
    got, mask = sparsegpt_prune(w, scale * jnp.eye(24), NMPattern(2, 4), 8)
    expected = nm_mask(jnp.abs(w), NMPattern(2, 4))
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(got, jnp.where(expected, w, 0.0))


def test_unit_norms_make_wanda_magnitude():
    w, _ = draw(4)
    np.testing.assert_array_equal(wanda_scores(w, jnp.eye(24)), jnp.abs(w))


def test_wanda_of_inputs_and_of_their_statistics():
    w, x = draw(5)
    expected = np.abs(w) * np.linalg.norm(np.asarray(x, np.float64), axis=0)[:, None]
    np.testing.assert_allclose(wanda_scores(w, x.reshape(4, 50, 24)), expected, rtol=1e-5)
    gram = gram_update(gram_init(24), x)
    np.testing.assert_allclose(wanda_scores(w, gram=gram), expected, rtol=1e-5)


def test_the_more_a_method_knows_the_smaller_its_error():
    errors = {"sparsegpt": [], "wanda": [], "magnitude": []}
    for seed in range(20):
        w, x = draw(seed)
        gram = gram_update(gram_init(24), x)
        for name, found in errors.items():
            got, _ = nm_one_shot(w, NMPattern(2, 4), scores=name, gram=gram)
            found.append(np.linalg.norm(x @ (w - got)) / np.linalg.norm(x @ w))
    means = {name: np.mean(found) for name, found in errors.items()}
    assert means["sparsegpt"] < means["wanda"] < means["magnitude"], means


def test_inputs_that_were_always_zero():
    w, x = draw(6)
    x = x.at[:, jnp.array([0, 1, 2, 3, 9])].set(0.0)
    got, mask = sparsegpt_prune(w, x.T @ x, NMPattern(2, 4))
    expected, expected_mask = sparsegpt_by_columns(w, x.T @ x, 2, 4)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(got[:4], 0)


def test_stacks_and_low_precision():
    w, x = draw(7)
    stack, h = jnp.stack([w, -2 * w]), x.T @ x
    pattern = NMPattern(2, 4)
    both, masks = jax.jit(functools.partial(sparsegpt_prune, pattern=pattern))(stack, h)
    one, mask = sparsegpt_prune(w, h, pattern)
    np.testing.assert_array_equal(masks, jnp.stack([mask, mask]))
    np.testing.assert_allclose(both, jnp.stack([one, -2 * one]), atol=1e-5)
    # Each layer by its own inputs, and bfloat16 computed in float32 and rounded once.
    own = jnp.stack([jnp.eye(24), h])
    apart, _ = sparsegpt_prune(stack.astype(jnp.bfloat16), own, pattern)
    wide, _ = sparsegpt_prune(stack.astype(jnp.bfloat16).astype(jnp.float32), own, pattern)
    assert apart.dtype == jnp.bfloat16
    np.testing.assert_array_equal(apart, wide.astype(jnp.bfloat16))
    gram = gram_update(gram_init(24), x)
    grams = Gram(*(jnp.stack([leaf, leaf]) for leaf in gram))
    for scores in ("wanda", "sparsegpt"):
        got, _ = nm_one_shot(stack, pattern, scores=scores, gram=grams)
        expected, _ = nm_one_shot(w, pattern, scores=scores, gram=gram)
        np.testing.assert_allclose(got[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 6}, "block=6 must be a multiple of m=4; nearest: 8"),
        ({"block": 0}, "block=0 must be a multiple of m=4; nearest: 4"),
        ({"pattern": NMPattern(2, 4, -1)}, "axis=-1 must be -2"),
        ({"pattern": NMPattern(1, 2, block=4)}, "block=4 of the pattern must be 1"),
        ({"pattern": NMPattern(2, 5)}, "m=5 must divide.*nearest m: 4, 6"),
        ({"h": jnp.eye(8)}, r"\(8, 8\) does not fit .*nearest: \(24, 24\)"),
        ({"h": -jnp.eye(24)}, "not positive definite with damp=0.01"),
        ({"damp": -1.0}, "damp=-1.0 must be 0 or more"),
        ({"w": jnp.full((24, 2), jnp.nan)}, "48 of 48 entries .* not finite"),
    ],
)
def test_refusals_of_sparsegpt(arguments, message):
    legal = {"w": jnp.ones((24, 2)), "h": jnp.eye(24), "pattern": NMPattern(2, 4)}
    with pytest.raises(ValueError, match=message):
        sparsegpt_prune(**(legal | arguments))


def test_refusals_of_scores():
    w, pattern = jnp.ones((8, 2)), NMPattern(2, 4)
    with pytest.raises(ValueError, match="scores='wanda' needs the Gram of the layer's inputs: "):
        nm_one_shot(w, pattern, scores="wanda")
    with pytest.raises(ValueError, match="did you mean 'sparsegpt'"):
        nm_one_shot(w, pattern, scores="sparse_gpt")
    with pytest.raises(ValueError, match=r"shape \(4,\) does not fit .*nearest: \(8,\)"):
        nm_one_shot(w, pattern, scores="sparsegpt", gram=gram_init(4))
    with pytest.raises(ValueError, match="one of x and gram"):
        wanda_scores(w)
    with pytest.raises(ValueError, match="4 inputs do not fit"):
        wanda_scores(w, jnp.ones((3, 4)))
    with pytest.raises(TypeError, match="must be floating"):
        nm_one_shot(w.astype(jnp.int32), pattern)
