"""Decompositions against the reference table, their identities, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.gram import gram_split
from jaxlab.methods.low_rank import (
    asvd_factorize,
    collect_grams,
    drift_corrected,
    gram_allreduce,
    gram_init,
    gram_merge,
    gram_update,
    kfac_factorize,
    lord_factorize,
    lord_spectrum,
    lowrank_apply,
    merge_lowrank,
    rank_from_ratio,
    svd_factorize,
    whiten_factorize,
)

# Relative errors of the outputs by rank, computed apart in float64: SVD, ASVD (alpha 0.5), LoRD
# about 0 and about the mean, and the basis about the mean without the correction of the bias.
TABLE = {
    2: (0.5485119340, 0.4884221915, 0.4660677423, 0.4416748802, 0.4661136997),
    4: (0.3709073168, 0.4094325158, 0.3240164243, 0.2879585429, 0.3241213680),
    6: (0.2695714947, 0.3459175094, 0.2339230643, 0.1821709278, 0.2351965400),
    8: (0.1543662889, 0.1532979451, 0.1218057568, 0.0150799278, 0.1495273956),
}
KEYS = ("w1", "w2", "bias")


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def reference():
    a, c, t = np.arange(24)[:, None], np.arange(16)[None, :], np.arange(200)[:, None]
    w = np.sin(0.37 * (a + 1) * (c + 1))
    x = np.cos(0.11 * t * (c + 1) + 0.3 * (c + 1)) / (c + 1) + 0.5
    return jnp.asarray(w), jnp.asarray(x)


@jax.jit
def gram_of(x):
    return gram_update(gram_init(x.shape[-1], dtype=x.dtype), x)


def error(params, w, x, b=None):
    """Relative error of the outputs; NumPy, which compiles nothing."""
    w1, w2, bias = (np.asarray(0 if p is None else p) for p in map(params.get, KEYS))
    w, x, b = (np.asarray(0 if p is None else p) for p in (w, x, b))
    got = (x @ w1.T) @ w2.T + bias
    return np.linalg.norm(got - x @ w.T - b) / np.linalg.norm(x @ w.T)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem(o, i, tokens=100):
    """W, bias and inputs with a mean and channels of different sizes."""
    x = draw(2, tokens, i) * jnp.linspace(0.2, 2.0, i)[None, :] + 1
    return draw(0, o, i), draw(1, o), x


def test_the_reference_table():
    w, x = reference()
    gram = gram_of(x)
    for rank, expected in TABLE.items():
        centred, _ = lord_factorize(w, None, gram, rank)
        got = (
            error(svd_factorize(w, rank), w, x),
            error(asvd_factorize(w, gram.absmean, rank), w, x),
            error(lord_factorize(w, None, gram, rank, center=False)[0], w, x),
            error(centred, w, x),
            error(centred | {"bias": None}, w, x),
        )
        # The sixth and seventh singular values of W agree to eight digits, so that the plain
        # decomposition at rank 6 is determined to five.
        atol = np.array([2e-5 if rank == 6 else 2e-9, *[2e-9] * 4])
        assert np.all(np.abs(np.subtract(got, expected)) < atol)
    # The scale of the statistics says nothing.
    again, _ = lord_factorize(w, None, gram._replace(m2=gram.m2 * 7, count=gram.count * 7), rank)
    np.testing.assert_allclose(error(again, w, x), expected[3], atol=1e-8)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_identities_of_lord(shape):
    w, b, x = problem(*shape)
    gram, k = gram_of(x), min(shape)
    lam, v = lord_spectrum(w, gram)
    y = np.asarray(x @ w.T)
    expected = np.linalg.eigvalsh(np.cov(y.T, bias=True))[::-1][:k]
    np.testing.assert_allclose(lam, expected, rtol=1e-9)
    np.testing.assert_allclose(v.T @ v, np.eye(k), atol=1e-12)
    before = np.inf
    for rank in (1, 3, k):
        params, tail = lord_factorize(w, b, gram, rank)
        residual = error(params, w, x, b) * np.linalg.norm(y)
        np.testing.assert_allclose(tail, lam[rank:].sum(), rtol=1e-12)
        np.testing.assert_allclose(residual**2 / len(x), tail, rtol=1e-8, atol=1e-20)
        others = (
            lord_factorize(w, b, gram, rank, center=False)[0],
            svd_factorize(w, rank, b=b),
            asvd_factorize(w, gram.absmean, rank, b=b),
        )
        errors = [residual, *(error(p, w, x, b) * np.linalg.norm(y) for p in others)]
        assert errors[0] <= errors[1] + 1e-9
        assert errors[1] <= min(errors[2:]) + 1e-9
        assert residual <= before
        before = residual
    # (1): the last was of full rank.
    assert residual < 1e-10 * np.linalg.norm(y)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_whitening_is_the_uncentred_one(shape):
    w, b, x = problem(*shape)
    gram = gram_of(x)
    for rank in (1, 3):
        lord, _ = lord_factorize(w, b, gram, rank, center=False)
        assert lord["bias"] is b
        expected, _ = merge_lowrank(lord)
        for root in ("eigh", "cholesky"):
            params = whiten_factorize(w, gram, rank, root)
            np.testing.assert_allclose(merge_lowrank(params)[0], expected, atol=1e-8)


def test_fewer_inputs_than_channels():
    w, _, x = problem(6, 9, tokens=5)
    gram = gram_of(x)
    for params in (lord_factorize(w, None, gram, 5)[0], whiten_factorize(w, gram, 5)):
        assert error(params, w, x) < 1e-7
    # Inputs that were not seen keep what W does to them, in both forms.
    lord, _ = lord_factorize(w, None, gram, 3, center=False)
    whitened = whiten_factorize(w, gram, 3)
    np.testing.assert_allclose(merge_lowrank(whitened)[0], merge_lowrank(lord)[0], atol=1e-8)
    with pytest.raises(ValueError, match="root='eigh'"):
        whiten_factorize(w, gram, 4, "cholesky")


def test_splits_have_one_product():
    w, b, x = problem(6, 9)
    gram, slopes = gram_of(x), gram_of(draw(5, 40, 6))
    made = [
        lambda split: svd_factorize(w, 3, split=split),
        lambda split: asvd_factorize(w, gram.absmean, 3, split=split),
        lambda split: whiten_factorize(w, gram, 3, split=split),
        lambda split: kfac_factorize(w, gram, slopes, 3, split=split),
        lambda split: lord_factorize(w, b, gram, 3, split=split)[0],
    ]
    for make in made:
        one, two = make("orthonormal"), make("balanced")
        np.testing.assert_allclose(merge_lowrank(one)[0], merge_lowrank(two)[0], atol=1e-10)
        np.testing.assert_allclose(one["w2"].T @ one["w2"], np.eye(3), atol=1e-10)
    merged, bias = merge_lowrank(one)
    expected = x @ merged.T + bias[None, :]
    np.testing.assert_allclose(lowrank_apply(one, x), expected, atol=1e-12)
    # Of the last, LoRD: both factors have the eigenvalues' fourth roots, w1 on the inputs.
    latent = (x - x.mean(0, keepdims=True)) @ two["w1"].T
    norms = np.linalg.norm(latent, axis=0) / np.sqrt(len(x))
    np.testing.assert_allclose(norms, np.linalg.norm(two["w2"], axis=0), rtol=1e-8)


def test_kfac_is_the_best_in_its_norm():
    w, _, x = problem(6, 9)
    gram, slopes = gram_of(x), gram_of(draw(5, 40, 6) * jnp.linspace(0.1, 3, 6)[None, :])
    h, g = (np.asarray(s.moment(center=False)) for s in (slopes, gram))

    def loss(params):
        d = np.asarray(w - merge_lowrank(params)[0])
        return np.trace(h @ d @ g @ d.T)

    best = loss(kfac_factorize(w, gram, slopes, 3, damp=0.0))
    s = np.linalg.svd(np.linalg.cholesky(h).T @ w @ np.linalg.cholesky(g), compute_uv=False)
    np.testing.assert_allclose(best, np.square(s[3:]).sum(), rtol=1e-8)
    assert best < loss(lord_factorize(w, None, gram, 3, center=False)[0])
    # An isotropic gradient leaves the whitened one.
    same = kfac_factorize(w, gram, gram_of(jnp.eye(6)), 3, damp=0.0)
    expected = whiten_factorize(w, gram, 3)
    np.testing.assert_allclose(merge_lowrank(same)[0], merge_lowrank(expected)[0], atol=1e-8)


def float32_kfac(w, rank, inputs, slopes, **how):
    """The product in float32 of statistics gathered in float32."""
    grams = [gram_of(jnp.asarray(x, jnp.float32)) for x in (inputs, slopes)]
    params = kfac_factorize(jnp.asarray(w, jnp.float32), *grams, rank, **how)
    return np.asarray(merge_lowrank(params)[0], np.float64)


def off(got, w):
    return np.linalg.norm(got - np.asarray(w)) / np.linalg.norm(w)


@pytest.mark.parametrize("split", ["orthonormal", "balanced"])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("tokens", [20, 400])
def test_kfac_of_full_rank_is_the_kernel_in_float32(shape, tokens, split):
    """Of anisotropic statistics, or of fewer vectors than channels."""
    o, i = shape
    w = draw(0, o, i)
    x = draw(2, tokens, i) * jnp.logspace(-4, 1, i)[None, :]
    slopes = draw(3, tokens, o) * jnp.logspace(-5, 0, o)[None, :]
    assert off(float32_kfac(w, min(shape), x, slopes, split=split), w) < 2e-3


def test_kfac_keeps_an_output_without_gradient():
    w, x = draw(0, 24, 32), draw(2, 400, 32)
    slopes = draw(3, 400, 24).at[:, 5].set(0.0)
    got = float32_kfac(w, 24, x, slopes)
    np.testing.assert_allclose(got[5], w[5], atol=5e-3)
    bare = float32_kfac(w, 24, x, slopes, damp=0.0)
    np.testing.assert_allclose(bare, w, atol=1e-2)


def test_changed_inputs_are_made_up_for():
    w, b, x = problem(6, 9)
    z = jnp.tanh(x) + 0.1 * draw(7, *x.shape)
    cross = gram_split(gram_of(jnp.concatenate([x, z], axis=-1)))
    gram, y = cross.gram, np.asarray(x @ w.T + b[None, :])
    one = np.concatenate([np.asarray(z), np.ones((len(z), 1))], axis=1)
    best = one @ np.linalg.lstsq(one, y, rcond=None)[0]
    full, tail = lord_factorize(w, b, gram, 6, cross=cross)
    np.testing.assert_allclose(np.asarray(lowrank_apply(full, z)), best, atol=1e-8)
    assert float(tail) < 1e-20
    for rank in (1, 3):
        params, tail = lord_factorize(w, b, gram, rank, cross=cross)
        short = np.square(lowrank_apply(params, z) - y).sum() / len(z)
        np.testing.assert_allclose(short, tail + np.square(best - y).sum() / len(z), rtol=1e-8)
        blind, _ = lord_factorize(w, b, gram, rank)
        assert short < np.square(lowrank_apply(blind, z) - y).sum() / len(z)
    # Unchanged inputs change nothing; where there were none, W stays.
    twice = gram_split(gram_of(jnp.concatenate([x, x], axis=-1)))
    np.testing.assert_allclose(drift_corrected(w, twice, center=True), w, atol=1e-10)


def test_stacks_jit_and_gradients():
    w, b, x = problem(6, 9)
    stack, grams = jnp.stack([w, 2 * w + 1]), [gram_of(x), gram_of(x[:50] - 3)]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grams)
    whole, tail = jax.jit(lord_factorize, static_argnums=3)(stack, jnp.stack([b, b]), both, 2)
    mapped = jax.vmap(lambda w, gram: whiten_factorize(w, gram, 2))(stack, both)
    for k in range(2):
        single, own = lord_factorize(stack[k], b, grams[k], 2)
        got = jax.tree.map(lambda leaf, k=k: leaf[k], whole)
        for a, e in zip(merge_lowrank(got), merge_lowrank(single), strict=True):
            np.testing.assert_allclose(a, e, atol=1e-9)
        np.testing.assert_allclose(tail[k], own, rtol=1e-9)
        got = jax.tree.map(lambda leaf, k=k: leaf[k], mapped)
        expected = whiten_factorize(stack[k], grams[k], 2)
        np.testing.assert_allclose(merge_lowrank(got)[0], merge_lowrank(expected)[0], atol=1e-9)
    slope = jax.grad(lambda w: jnp.sum(lord_factorize(w, None, grams[0], 2)[0]["w1"]))(w)
    assert float(jnp.abs(slope).max()) == 0


def test_statistics_in_parts_and_with_padding():
    w, b, x = problem(6, 9)
    whole, _ = lord_factorize(w, b, gram_of(x), 3)
    parts, _ = lord_factorize(w, b, gram_merge(gram_of(x[:30]), gram_of(x[30:])), 3)
    padded = jnp.concatenate([x, jnp.full((7, 9), jnp.nan)])
    alive, empty = jnp.arange(107) < 100, gram_init(9, dtype=x.dtype)
    weighted = gram_update(empty, padded, alive)
    masked = gram_update(empty, padded, mask=alive.astype(jnp.int32))
    both = gram_update(empty, padded, jnp.full(107, 3.0), mask=alive)
    found = [lord_factorize(w, b, gram, 3)[0] for gram in (weighted, masked, both)]
    assert (float(masked.count), float(both.count)) == (100, 300)
    for params in (parts, *found):
        for a, e in zip(merge_lowrank(params), merge_lowrank(whole), strict=True):
            np.testing.assert_allclose(a, e, atol=1e-10)


def test_statistics_are_gathered_from_here():
    """Whoever decomposes by hand finds what gathers statistics beside the decompositions."""
    w, _, x = problem(6, 9)
    got = collect_grams(lambda p, x: x @ p["kernel"], {"kernel": w.T}, [x])["kernel"]
    np.testing.assert_allclose(got.m2, gram_of(x).m2, rtol=1e-6)
    halves = jax.tree.map(lambda *leaves: jnp.stack(leaves), gram_of(x[:50]), gram_of(x[50:]))
    total = jax.vmap(lambda gram: gram_allreduce(gram, "data"), axis_name="data")(halves)
    np.testing.assert_allclose(total.m2[0], gram_of(x).m2, rtol=1e-9, atol=1e-9)


def test_refusals():
    w, b, x = problem(6, 9)
    gram = gram_of(x)
    for rank in (0, 7):
        with pytest.raises(ValueError, match=r"rank=\d must be in \[1, 6\].*nearest"):
            lord_factorize(w, b, gram, rank)
    with pytest.raises(ValueError, match=r"\(8,\) does not fit; nearest: \(9,\)"):
        whiten_factorize(w, gram_of(x[:, :8]), 2)
    with pytest.raises(ValueError, match=r"mask of shape \(7,\) does not broadcast"):
        gram_update(gram_init(9), x, mask=jnp.ones(7))
    with pytest.raises(ValueError, match="no vectors"):
        lord_spectrum(w, gram_init(9))
    with pytest.raises(ValueError, match="not finite"):
        lord_factorize(w, b, gram._replace(m2=gram.m2.at[0, 0].set(jnp.inf)), 2)
    for ratio in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"ratio=.* must be in \(0, 1\]"):
            rank_from_ratio(6, 9, ratio)
    with pytest.raises(ValueError, match=r"absmean of shape \(8,\)"):
        asvd_factorize(w, gram.absmean[:8], 2)
    with pytest.raises(ValueError, match="alpha=2"):
        asvd_factorize(w, gram.absmean, 2, 2.0)
    with pytest.raises(ValueError, match="root='qr' is unknown"):
        whiten_factorize(w, gram, 2, "qr")
    with pytest.raises(ValueError, match="split='left' is unknown"):
        lord_factorize(w, b, gram, 2, split="left")
