"""Ranks under a budget: against brute force, and within it in every case."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import jaxlab
from jaxlab.core.calibration import collect_gradient_grams, compress_calibrated
from jaxlab.methods.low_rank import allocate_ranks, breakeven_rank, low_rank_rules, rank_from_ratio


def spectra_of(seed, shapes):
    rng = np.random.default_rng(seed)
    draw = lambda k: np.sort(rng.lognormal(sigma=2, size=k))[::-1]  # noqa: E731
    return {path: draw(min(shape)) for path, shape in shapes.items()}


def cost(ranks, shapes):
    return sum(o * i if ranks[p] is None else ranks[p] * (o + i) for p, (o, i) in shapes.items())


def loss(ranks, spectra):
    return sum(0 if r is None else spectra[p][r:].sum() for p, r in ranks.items())


def brute_force(spectra, shapes, budget, choices):
    best = np.inf
    for ranks in itertools.product(choices, repeat=len(shapes)):
        ranks = dict(zip(shapes, ranks, strict=True))
        if cost(ranks, shapes) <= budget:
            best = min(best, loss(ranks, spectra))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_the_optimum(seed):
    # Break-even is 6.86, so that six ranks are legal, and dense.
    shapes = dict.fromkeys("abc", (12, 16))
    spectra, ones = spectra_of(seed, shapes), dict.fromkeys(shapes, 1.0)
    for budget in range(84, 500, 28):
        ranks = allocate_ranks(spectra, shapes, budget, weights=ones)
        assert cost(ranks, shapes) <= budget
        best = brute_force(spectra, shapes, budget, [1, 2, 3, 4, 5, 6])
        assert loss(ranks, spectra) <= best * (1 + 1e-9)
        exact = brute_force(spectra, shapes, budget, [1, 2, 3, 4, 5, 6, None])
        assert loss(ranks, spectra) >= exact * (1 - 1e-9)


@example("greedy", 1, 1.0, 0)
@example("greedy", 5, 1.0, 0)
@example("greedy", 5, 0.95, 0)
@given(
    st.sampled_from(["uniform", "energy", "greedy", "sensitivity"]),
    st.integers(1, 5),
    st.floats(0.0, 1.0),
    st.integers(0, 99),
)
def test_budget_break_even_and_alignment(method, align, share, seed):
    shapes = {"a": (24, 40), "b": (40, 24), "c": (16, 16), "d": (3, 30)}
    spectra = spectra_of(seed, shapes)
    least = sum(min(align * (o + i), o * i) for o, i in shapes.values())
    total = sum(o * i for o, i in shapes.values())
    budget = round(least + share * (total - least))

    def quality(path, ratio):
        return float(spectra[path][int(ratio * len(spectra[path])) :].sum())

    how = {"method": method, "align": align, "quality": quality}
    ranks = allocate_ranks(spectra, shapes, budget, **how)
    assert cost(ranks, shapes) <= budget
    for path, rank in ranks.items():
        assert rank is None or (rank % align == 0 and 0 < rank < breakeven_rank(*shapes[path]))
    if share == 1:
        assert set(ranks.values()) == {None}
    with pytest.raises(ValueError, match=rf"budget={least - 1} is below.*nearest: {least}"):
        allocate_ranks(spectra, shapes, least - 1, **how)


def test_what_each_method_equalises():
    shapes = {"flat": (40, 40), "steep": (40, 40)}
    spectra = {"flat": np.ones(40), "steep": 0.5 ** np.arange(40)}
    uniform = allocate_ranks(spectra, shapes, 1600, method="uniform")
    assert uniform == dict.fromkeys(shapes, rank_from_ratio(40, 40, 0.5))
    energy = allocate_ranks(spectra, shapes, 1600, method="energy")
    kept = {path: s[: energy[path]].sum() / s.sum() for path, s in spectra.items()}
    assert energy["flat"] > 3 * energy["steep"]
    assert 0 < kept["steep"] - kept["flat"] < 0.3
    # A stack counts as many times as it has layers, and has one rank.
    stacked = allocate_ranks({"x": np.ones((3, 40))}, {"x": (3, 40, 40)}, 2400, method="uniform")
    assert stacked == {"x": 10}
    heavy = allocate_ranks(spectra, shapes, 1600, weights={"flat": 1e-6, "steep": 1.0})
    assert heavy["steep"] == 19


def test_near_break_even_dense_pays():
    # Rank 9 of break-even 10 costs 360 of 400 and leaves more than half of the spectrum.
    shapes = {"flat": (20, 20), "steep": (20, 20)}
    spectra = {"flat": np.ones(20), "steep": np.array([1.0, *[1e-6] * 19])}
    ranks = allocate_ranks(spectra, shapes, 440, weights=dict.fromkeys(shapes, 1.0))
    assert ranks == {"flat": None, "steep": 1}


def test_refusals():
    shapes, spectra = {"a": (9, 9)}, {"a": np.ones(9)}
    with pytest.raises(ValueError, match="allocation='gredy' is unknown; did you mean 'greedy'"):
        allocate_ranks(spectra, shapes, 81, method="gredy")
    with pytest.raises(ValueError, match="align=0"):
        allocate_ranks(spectra, shapes, 81, align=0)
    with pytest.raises(ValueError, match="needs quality"):
        allocate_ranks(spectra, shapes, 81, method="sensitivity")
    with pytest.raises(ValueError, match=r"spectrum \(10,\) of 'a'"):
        allocate_ranks({"a": np.ones(10)}, shapes, 81)


def problem():
    """Two layers with a bias: the inputs of the first lie near a plane, those of the second not."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (64, 2)) @ jax.random.normal(keys[1], (2, 16)) + 1
    x += 0.01 * jax.random.normal(keys[2], x.shape)
    up, down = jax.random.normal(keys[3], (2, 16, 16)) / 4
    params = {name: {"kernel": w, "bias": jnp.ones(16)} for name, w in (("a", up), ("b", down))}

    def loss_fn(params, batch):
        for layer in params.values():
            batch = jnp.sin(3 * (batch @ layer["kernel"] + layer["bias"][None, :]))
        return jnp.mean(batch**2)

    return loss_fn, params, [x[:32], x[32:]], ["a/kernel", "b/kernel"]


def test_rules_follow_the_spectra():
    loss_fn, params, batches, paths = problem()
    rules = low_rank_rules(loss_fn, params, batches, paths, ratio=0.5, align=1, split="balanced")
    (_, _, first), (_, _, second) = rules
    assert first == {"rank": 2, "split": "balanced"}
    assert second["rank"] == 6
    made = compress_calibrated(loss_fn, params, rules, batches)
    assert made["a"]["kernel"].u.shape == (16, 2)
    rules = low_rank_rules(loss_fn, params, batches, paths, budget=64, align=2, skip=["b/.*"])
    assert rules == [("a/kernel", "low_rank", {"rank": 2}), ("b/kernel", "dense", {})]
    assert jaxlab.compress(params, rules)["b"]["kernel"].name == "dense"


def test_rules_by_the_loss():
    loss_fn, params, batches, paths = problem()
    slopes = collect_gradient_grams(loss_fn, params, batches, paths)
    weights = {p: float(jnp.trace(g.moment(center=False))) for p, g in slopes.items()}
    how = {"ratio": 0.5, "align": 1}
    named = low_rank_rules(loss_fn, params, batches, paths, weights="gradients", **how)
    assert named == low_rank_rules(loss_fn, params, batches, paths, weights=weights, **how)
    rules = low_rank_rules(loss_fn, params, batches, paths, allocation="sensitivity", **how)
    assert sum(256 if name == "dense" else 32 * h["rank"] for _, name, h in rules) <= 256
    with pytest.raises(ValueError, match="one of ratio=None and budget=None"):
        low_rank_rules(loss_fn, params, batches, paths)
    with pytest.raises(ValueError, match="ratio=1.5"):
        low_rank_rules(loss_fn, params, batches, paths, ratio=1.5)
    with pytest.raises(ValueError, match="low_rank_rules: paths='.*/kernel' must be a list"):
        low_rank_rules(loss_fn, params, batches, ".*/kernel", ratio=0.5)
    with pytest.raises(ValueError, match="low_rank_rules: skip='b/.*' must be a list; nearest"):
        low_rank_rules(loss_fn, params, batches, paths, ratio=0.5, skip="b/.*")


def test_greedy_is_never_worse_than_an_even_share():
    shapes = {"a": (8, 32), "b": (32, 8), "c": (12, 12)}
    for seed in range(20):
        spectra = spectra_of(seed, shapes)
        gains = {path: 1 / s.sum() for path, s in spectra.items()}
        for budget in (300, 450, 620, 656):
            found = {
                method: sum(
                    gains[path] * (0 if rank is None else spectra[path][rank:].sum())
                    for path, rank in allocate_ranks(
                        spectra, shapes, budget, method=method, align=2
                    ).items()
                )
                for method in ("greedy", "uniform")
            }
            assert found["greedy"] <= found["uniform"]


def test_a_spectrum_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="'a' is not finite"):
        allocate_ranks({"a": np.array([1.0, np.nan])}, {"a": (4, 4)}, 12)
    with pytest.raises(ValueError, match=r"weights\['a'\]=nan"):
        allocate_ranks({"a": np.ones(4)}, {"a": (4, 4)}, 12, weights={"a": float("nan")})
    zeros = allocate_ranks({"a": np.zeros(16)}, {"a": (16, 16)}, 200, method="energy")
    assert zeros == {"a": 1}
