"""Layer-wise n: against every combination there is, and what a budget promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.core.gram import gram_init, gram_update
from jaxlab.methods.nm.layerwise import nm_layerwise, nm_layerwise_rules
from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.oneshot import wanda_scores

SHAPES = {"a": (8, 4), "b": (16, 4), "c": (8, 8), "stack": (2, 8, 2)}


def weights():
    rng = np.random.default_rng(0)
    return {
        path: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
        for (path, shape), scale in zip(SHAPES.items(), (0.2, 1.0, 0.5, 3.0), strict=True)
    }


def loss(w, n, m):
    return float(jnp.sum(jnp.where(nm_mask(jnp.abs(w), NMPattern(n, m)), 0.0, w) ** 2))


def kept(counts, m):
    return sum(np.prod(SHAPES[path]) * n / m for path, n in counts.items())


def test_equals_the_best_of_all_combinations():
    # Equal sizes and budgets of whole steps: there the greedy choice is the best one.
    ws = {path: w[:8, :4] for path, w in weights().items() if w.ndim == 2}
    for density in (10 / 12, 8 / 12, 7 / 12, 4 / 12, 3 / 12):
        chosen = nm_layerwise(ws, m=4, density=density)
        affordable = [
            counts
            for counts in itertools.product((4, 2, 1), repeat=3)
            if sum(counts) <= 12 * density + 1e-9
        ]
        best = min(sum(map(loss, ws.values(), c, (4, 4, 4))) for c in affordable)
        spent = sum(loss(ws[path], n, 4) for path, n in chosen.items())
        np.testing.assert_allclose(spent, best, rtol=1e-5)


@pytest.mark.parametrize("density", [0.13, 0.3, 0.5, 0.77, 1.0])
def test_meets_the_budget_and_could_not_keep_more(density):
    ws, m = weights(), 8
    counts = nm_layerwise(ws, m=m, density=density)
    total = sum(w.size for w in ws.values())
    assert kept(counts, m) <= density * total
    for path, n in counts.items():
        assert n == m or kept(counts | {path: 2 * n}, m) > density * total


def test_inputs_count_with_wanda():
    w = jnp.ones((8, 4))
    quiet, loud = (
        gram_update(gram_init(8), s * jax.random.normal(jax.random.key(0), (9, 8)))
        for s in (0.1, 10.0)
    )
    got = nm_layerwise(
        {"x": w, "y": w}, m=4, density=0.75, scores="wanda", grams={"x": loud, "y": quiet}
    )
    assert got == {"x": 4, "y": 2}
    assert float(wanda_scores(w, gram=loud).min()) > float(wanda_scores(w, gram=quiet).max())


def test_lowest_density_of_an_m_whose_inverse_rounds():
    assert nm_layerwise({"w": jnp.ones((49, 2))}, m=49, density=1 / 49) == {"w": 1}
    assert nm_layerwise({"w": jnp.ones((6, 2))}, m=6, density=0.5) == {"w": 3}


def test_rules_compress_the_same_layers():
    ws = {"up+": weights()["a"], "down": weights()["b"]}
    counts = nm_layerwise(ws, m=4, density=0.5)
    made = jaxlab.compress(ws, nm_layerwise_rules(counts, 4, recipe="ste"))
    assert {path: w.config.pattern.n for path, w in made.items()} == counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 0.1}, r"density=0.1 must be in \[0.25, 1\].*nearest: 0.25"),
        ({"density": 1.5}, "nearest: 1"),
        ({"m": 5}, "'up': nm: m=5 must divide.*nearest m: 2, 4"),
        ({"scores": "wander"}, "did you mean 'wanda'"),
        ({"scores": "wanda"}, "'up': nm: scores='wanda' needs the Gram"),
        ({"weights": {}}, "weights is empty"),
    ],
)
def test_refusals(arguments, message):
    legal = {"weights": {"up": jnp.ones((8, 2))}, "m": 4, "density": 0.5}
    with pytest.raises(ValueError, match=message):
        nm_layerwise(**(legal | arguments))
