"""Phases and frames: worked values, properties over all recipes, refused settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.recipes import RECIPES
from jaxlab.methods.nm.schedule import NMConfig, nm_frames, nm_phase

CUSTOM = ((0.1, 4, 8), (0.5, 1, 8))


def config(recipe, n=1, m=8, total_steps=100, dense_frac=0.1, finetune_frac=0.2, **more):
    more = {"frames": CUSTOM if recipe == "custom" else (), **more}
    return NMConfig(NMPattern(n, m), recipe, total_steps, dense_frac, finetune_frac, **more)


def shown(cfg, length=None):
    return [(start, f"{p.n}:{p.m}") for start, p in nm_frames(cfg, length)]


def test_worked_decays():
    linear = config("mdgf_linear", total_steps=1000, dense_frac=0, finetune_frac=0, beta_total=4.0)
    assert nm_phase(linear, 250).decay == 0  # beta 0.004 after 250 steps
    assert nm_phase(linear, 125).decay == 0.5
    exponential = config("mdgf_exp", total_steps=10**5, dense_frac=0, finetune_frac=0)
    np.testing.assert_allclose(nm_phase(exponential, 10_000).decay, 0.36788, atol=5e-6)
    by_default = config("mdgf_linear")
    assert [float(nm_phase(by_default, step).decay) for step in (9, 10, 45, 80)] == [1, 1, 0.5, 0]


def test_worked_frames():
    starts = (10, 27, 45, 62)
    cases = {
        "sdgf_stepwise": ("7:8", "4:8", "2:8", "1:8"),
        "sdgf_geometric": ("8:64", "4:32", "2:16", "1:8"),
        "sdgf_densify": ("1:64", "1:32", "1:16", "1:8"),
    }
    for recipe, patterns in cases.items():
        assert shown(config(recipe)) == list(zip(starts, patterns, strict=True))
    assert shown(config("custom")) == [(10, "4:8"), (50, "1:8")]
    steps = jnp.array([0, 26, 27, 45, 61, 62, 99])
    assert nm_phase(config("sdgf_stepwise"), steps).frame.tolist() == [0, 0, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("n", "m", "counts"),
    [
        (1, 16, [15, 8, 4, 2, 1]),
        (2, 128, [127, 64, 32, 16, 8, 4, 2]),
        (3, 8, [7, 4, 3]),  # no power of two: ends in the target all the same
        (2, 4, [3, 2]),
        (8, 8, [8]),
    ],
)
def test_stepwise_ends_in_the_target(n, m, counts):
    assert [p.n for _, p in nm_frames(config("sdgf_stepwise", n, m))] == counts


def test_groups_widen_only_to_what_divides_the_axis():
    cfg = config("sdgf_geometric", 1, 32)
    assert [p for _, p in shown(cfg, 128)] == ["4:128", "4:128", "2:64", "1:32"]
    assert [p for _, p in shown(cfg, 96)] == ["1:32"] * 4
    # 16:1024 is beyond what a position's byte can hold.
    assert [p for _, p in shown(config("sdgf_geometric", 2, 128))] == ["4:256"] * 3 + ["2:128"]


@given(
    st.sampled_from(sorted(RECIPES)),
    st.integers(20, 400),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
)
def test_phases_of_every_recipe(recipe, total, dense_frac, finetune_frac):
    cfg = config(recipe, 1, 8, total, dense_frac, finetune_frac)
    # One length for all totals: nothing is compiled anew.
    phase = nm_phase(cfg, jnp.minimum(jnp.arange(401), total))
    decay, frame = np.asarray(phase.decay), np.asarray(phase.frame)
    assert (np.diff(decay) <= 0).all()
    assert (np.diff(frame) >= 0).all()
    assert (decay[np.asarray(phase.is_dense)] == 1).all()
    assert (decay[np.asarray(phase.is_final)] == 0).all()
    assert not (phase.is_dense & phase.is_final).any()
    still = ~phase.is_dense & (frame == len(nm_frames(cfg)) - 1) & (decay == 0)
    assert (phase.is_final <= still).all()
    if RECIPES[recipe].prunes:
        assert phase.is_final[-1]
        assert nm_frames(cfg)[-1][1] == cfg.pattern
        assert frame[-1] == len(nm_frames(cfg)) - 1
    one_by_one = jnp.stack([nm_phase(cfg, s).decay for s in (0, total // 2, total)])
    # Vectorised exponentials round differently.
    np.testing.assert_allclose(one_by_one, decay[[0, total // 2, total]], rtol=1e-5)


def test_a_config_is_hashable_and_shows_what_differs():
    cfg = config("mdgf_exp")
    assert hash(cfg) == hash(config("mdgf_exp"))
    assert cfg != config("mdgf_linear")
    assert "dense_frac=0.1" in repr(cfg)
    assert "lam" not in repr(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "mdgf_expo"}, "did you mean 'mdgf_exp'"),
        ({"dense_frac": 0.5, "finetune_frac": 0.5}, "dense_frac=0.5 .* finetune_frac=0.5"),
        ({"dense_frac": -0.1}, "dense_frac=-0.1"),
        ({"beta_total": 0.0}, "beta_total=0.0 must be positive"),
        ({"beta_total": -1.0}, "beta_total=-1.0"),
        ({"total_steps": 0}, "needs total_steps"),
        ({"total_steps": -5}, "total_steps=-5"),
        ({"recipe": "ste", "total_steps": 0}, "needs total_steps"),
        ({"recipe": "one_shot", "total_steps": 0, "dense_frac": 0.0}, "needs total_steps"),
        ({"recipe": "ste", "beta_total": 5.0}, "beta_total=5.0 means nothing to recipe='ste'"),
        ({"frames": CUSTOM}, "frames=.* means nothing to recipe='mdgf_exp'"),
        ({"srste_mode": "decoupled"}, "srste_mode='decoupled' means nothing"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"grad_mode": "identity"}, "valid: ste, masked"),
        ({"srste_mode": "adam"}, "valid: grad, decoupled"),
        ({"mask_update_every": 0}, "mask_update_every=0"),
        ({"freeze_mask_at": 1.5}, "freeze_mask_at=1.5"),
        ({"recipe": "sdgf_stepwise", "freeze_mask_at": 30}, "begins at step 62.*nearest: 62"),
        ({"recipe": "asp", "mask_update_every": 2}, "mask_update_every=2 means nothing"),
        ({"dense_frac": 1.0}, "dense_frac=1.0"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"recipe": "custom", "m": 16}, "end at 1:8 and must end at the target, 1:16"),
    ],
)
def test_refused_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**{"recipe": "mdgf_exp", **changes})


def test_custom_frames_must_be_in_order():
    for frames in ((), ((0.5, 2, 8), (0.1, 1, 8)), ((-0.1, 1, 8),), (0.1, 1, 8), ((0.1, 1),)):
        with pytest.raises(ValueError, match="frames="):
            NMConfig(NMPattern(1, 8), "custom", 100, frames=frames)


def test_phases_under_jit_and_vmap():
    cfg = config("sdgf_stepwise")
    steps = jnp.arange(0, 101, 7)
    expected = nm_phase(cfg, steps)
    for traced in (jax.jit(lambda s: nm_phase(cfg, s)), jax.vmap(lambda s: nm_phase(cfg, s))):
        for actual, wanted in zip(traced(steps), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
