"""N:M: worked values, gradients of the recipes, refused arguments."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import jaxlab
from jaxlab.methods.nm import (
    NM,
    NMConfig,
    NMPattern,
    nm_diagnostics,
    nm_effective,
    nm_finalize,
    nm_mask,
    nm_prune,
)
from jaxlab.methods.nm.recipes import RECIPES

KERNEL = jax.random.normal(jax.random.key(3), (64, 6))


class EffectiveTest(chex.TestCase):
    """The effective weight and its derivatives, with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        (0.25, "ste", [4, -3, 0.5, 0.25], [1, 1, 1, 1]),
        (0.25, "masked", [4, -3, 0.5, 0.25], [1, 1, 0.25, 0.25]),
        (1.0, "ste", [4, -3, 2, 1], [1, 1, 1, 1]),
        (1.0, "masked", [4, -3, 2, 1], [1, 1, 1, 1]),
        (0.0, "ste", [4, -3, 0, 0], [1, 1, 1, 1]),
        (0.0, "masked", [4, -3, 0, 0], [1, 1, 0, 0]),
    )
    def test_worked_values(self, decay, grad_mode, value, gradient):
        w = jnp.array([[4.0, -3.0, 2.0, 1.0]])
        mask = nm_mask(jnp.abs(w), NMPattern(2, 4, -1))
        fn = self.variant(lambda w, decay: nm_effective(w, mask, decay, grad_mode))
        chex.assert_trees_all_equal(fn(w, decay), jnp.array([value], jnp.float32))
        actual = self.variant(jax.grad(lambda w: jnp.sum(fn(w, decay))))(w)
        chex.assert_trees_all_equal(actual, jnp.array([gradient], jnp.float32))
        # Forward mode agrees: the rule is a derivative rule and not a gradient rule.
        _, tangent = jax.jvp(lambda w: fn(w, decay), (w,), (jnp.ones_like(w),))
        chex.assert_trees_all_equal(tangent, jnp.array([gradient], jnp.float32))

    @chex.variants(with_jit=True, without_jit=True)
    def test_srste_adds_lambda_times_the_pruned_weight(self):
        w = NM.from_dense(jnp.array([[4.0], [-3.0], [2.0], [1.0]]), n=2, m=4, recipe="srste")
        gradient = self.variant(jax.grad(lambda w: jnp.sum(w.to_dense())))(w)
        expected = jnp.array([[1.0], [1.0], [1.0004], [1.0002]])
        np.testing.assert_allclose(gradient.weight, expected, rtol=1e-7)

    @chex.variants(with_jit=True, without_jit=True)
    def test_srste_is_ste_on_the_regularised_loss(self):
        weight = jax.random.normal(jax.random.key(0), (16, 4))
        lam = 0.3

        def loss(w):
            return jnp.sum(jnp.sin(w.to_dense()))

        def regularised(w):
            pruned = jnp.where(w.at(jnp.float32(1.0)).mask, 0.0, w.weight)
            return loss(w) + lam / 2 * jnp.sum(pruned**2)

        srste = NM.from_dense(weight, n=1, m=4, recipe="srste", lam=lam)
        ste = NM.from_dense(weight, n=1, m=4, recipe="ste")
        actual = self.variant(jax.grad(loss))(srste).weight
        expected = self.variant(jax.grad(regularised))(ste).weight
        chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_pruned_infinity_is_zero_and_not_nan():
    w, mask = jnp.array([jnp.inf, -2.0]), jnp.array([False, True])
    for mode in ("ste", "masked"):
        value = nm_effective(w, mask, 0.0, mode)
        assert value.tolist() == [0.0, -2.0]
        assert not np.signbit(value[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0, "m": 4}, "n=0, m=4"),
        ({"n": 5, "m": 4}, "n=5, m=4"),
        ({"n": 1, "m": 512}, "m=512"),
        ({"n": 1, "m": 5}, "nearest m: 2, 4"),
        ({"n": 1, "m": 4, "axis": 0}, "axis=0"),
        ({"n": 1, "m": 4, "axis": -3}, "axis=-3"),
        ({"n": 1, "m": 4, "block": 3}, "block=3"),
        ({"n": 1, "m": 4, "recipe": "sr-ste"}, "did you mean 'srste'"),
        ({"n": 1, "m": 4, "recipe": "mdgf_exp"}, "total_steps"),
        ({"n": 1, "m": 4, "lam": float("nan")}, "lam=nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NM.from_dense(jnp.ones((64, 8)), **arguments)


def test_nan_kernel_is_refused():
    with pytest.raises(ValueError, match="nm: 16 of 16 entries .* not finite"):
        NM.from_dense(jnp.full((4, 4), jnp.nan), n=2, m=4)


def hyper_of(recipe):
    frames = ((0.1, 3, 8), (0.5, 1, 8)) if recipe == "custom" else ()
    settings = {"n": 1, "m": 8, "total_steps": 100, "dense_frac": 0.1, "frames": frames}
    return {**settings, "recipe": recipe}


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_ends_where_it_finalizes(recipe, tmp_path):
    w = NM.from_dense(KERNEL, **hyper_of(recipe))
    at = jax.jit(lambda w, progress: w.at(progress).to_dense())
    np.testing.assert_array_equal(at(w, jnp.float32(0.05)), KERNEL)  # the dense phase
    final = w.finalize()
    np.testing.assert_array_equal(at(w, jnp.float32(1.0)), final.to_dense())
    np.testing.assert_array_equal(w.to_dense(), final.to_dense())
    for now in (0.05, 0.4, 1.0):  # evaluations in the middle of a run are of the target pattern
        np.testing.assert_array_equal(w.at(jnp.float32(now)).finalize().to_dense(), w.to_dense())
    jaxlab.save(tmp_path / "nm.safetensors", {"w": w})
    loaded = jaxlab.load(tmp_path / "nm.safetensors")["w"]
    assert loaded.config == w.config
    chex.assert_trees_all_equal(loaded, w)


@pytest.mark.parametrize("recipe", ["mdgf_exp", "sdgf_geometric", "srste"])
def test_a_scheduled_stack_scans_and_vmaps(recipe):
    stack = NM.from_dense(jnp.stack([KERNEL, 2 * KERNEL, -KERNEL]), **hyper_of(recipe))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    now = stack.at(jnp.float32(0.4))
    expected = jnp.stack([x @ w for w in now.to_dense()])
    _, scanned = jax.lax.scan(lambda carry, w: (carry, x @ w), None, now)
    tolerance = 2e-6 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(scanned, expected, rtol=0, atol=tolerance)
    mapped = jax.vmap(lambda w: x @ w.at(jnp.float32(0.4)))(stack)
    np.testing.assert_allclose(mapped, expected, rtol=0, atol=tolerance)


def test_masks_of_sharded_groups_need_no_communication():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model", None))
    w = jax.device_put(jax.random.normal(jax.random.key(0), (256, 4)), sharding)

    def acting(w, progress):
        return NM.from_dense(w, **hyper_of("sdgf_geometric")).at(progress).to_dense()

    step = jax.jit(acting, out_shardings=sharding).lower(w, jnp.float32(0.5)).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in step


def test_stored_masks_are_kept_for_as_long_as_asked():
    every = NM.from_dense(KERNEL, n=1, m=8, recipe="ste", total_steps=100, mask_update_every=4)
    moved = jaxlab.advance({"w": dataclasses.replace(every, weight=-KERNEL[::-1])}, 0.03)["w"]
    np.testing.assert_array_equal(moved.mask, every.mask)  # step 3
    fresh = nm_mask(jnp.abs(KERNEL[::-1]), NMPattern(1, 8))
    np.testing.assert_array_equal(moved.advance(0.04).mask, fresh)
    frozen = NM.from_dense(KERNEL, n=1, m=8, recipe="ste", total_steps=100, freeze_mask_at=3)
    changed = dataclasses.replace(frozen, weight=KERNEL[::-1])
    np.testing.assert_array_equal(changed.advance(0.03).mask, fresh)
    np.testing.assert_array_equal(changed.advance(0.04).mask, frozen.mask)
    # What is packed is what acted, however stale the mask.
    np.testing.assert_array_equal(changed.finalize().to_dense() != 0, frozen.mask)


def test_a_stored_mask_begins_with_the_frame_of_its_first_step():
    stepwise = {"n": 1, "m": 8, "recipe": "sdgf_stepwise", "total_steps": 100, "first_step": 60}
    stored = NM.from_dense(KERNEL, mask_update_every=10, **stepwise)
    np.testing.assert_array_equal(stored.mask, nm_mask(jnp.abs(KERNEL), NMPattern(2, 8)))


def test_a_fixed_mask_without_a_schedule_stays():
    w = NM.from_dense(KERNEL, n=1, m=8, recipe="asp")
    moved = dataclasses.replace(w, weight=KERNEL[::-1]).advance(0.5)
    np.testing.assert_array_equal(moved.mask, w.mask)


def test_frames_that_do_not_divide_are_refused_and_tiles_hold_all_groups():
    custom = {"recipe": "custom", "total_steps": 100}
    with pytest.raises(ValueError, match="m=5 must divide"):
        NM.from_dense(KERNEL, n=1, m=8, frames=((0.0, 1, 5), (0.5, 1, 8)), **custom)
    w = NM.from_dense(jnp.ones((36, 2)), n=1, m=4, frames=((0.0, 3, 6), (0.5, 1, 4)), **custom)
    assert w.tile == (12, 1)


def test_a_fixed_mask_holds_weights_at_zero():
    w = NM.from_dense(KERNEL, n=1, m=8, recipe="asp", total_steps=100, dense_frac=0.5)
    np.testing.assert_array_equal(w.advance(0.49).weight, KERNEL)
    assert w.support(0.49)["weight"].all()
    pruned = w.advance(0.5)
    mask = nm_mask(jnp.abs(KERNEL), NMPattern(1, 8))
    np.testing.assert_array_equal(pruned.weight, jnp.where(mask, KERNEL, 0.0))
    np.testing.assert_array_equal(pruned.support(0.5)["weight"], mask)
    revived = dataclasses.replace(pruned, weight=pruned.weight + 1.0).advance(0.51)
    np.testing.assert_array_equal(revived.mask, mask)
    assert (revived.weight[~mask] == 0).all()


def test_prune_and_finalize_of_a_plain_tree():
    params = {
        "mlp": {"up": {"kernel": KERNEL, "bias": jnp.ones(6)}, "down": {"kernel": KERNEL.T}},
        "head": {"kernel": KERNEL},
    }
    cfg = NMConfig(NMPattern(1, 8), "ste", overrides=((".*down/kernel", NMPattern(1, 2, axis=-2)),))
    pruned, masks = nm_prune(params, cfg)
    assert masks["head"]["kernel"] is None
    assert masks["mlp"]["up"]["bias"] is None
    assert int(masks["mlp"]["up"]["kernel"].sum()) == KERNEL.size // 8
    assert int(masks["mlp"]["down"]["kernel"].sum()) == KERNEL.size // 2
    np.testing.assert_array_equal(pruned["head"]["kernel"], KERNEL)
    chex.assert_trees_all_equal(nm_finalize(params, cfg), pruned)
    chex.assert_trees_all_equal(jax.jit(lambda p: nm_finalize(p, cfg))(params), pruned)
    plain = NMConfig(NMPattern(1, 8), "ste")
    with pytest.raises(ValueError, match="matches no path"):
        nm_prune(params, NMConfig(NMPattern(1, 8), "ste", include=("mlp/gate/kernel",)))
    with pytest.raises(ValueError, match=r"'mlp/down/kernel' \(6, 64\).*m=8"):
        nm_prune(params, plain)
    with pytest.raises(TypeError, match="mlp/up/kernel.*int32"):
        nm_prune({"mlp": {"up": {"kernel": jnp.ones((8, 8), jnp.int32)}}}, plain)
    with pytest.raises(ValueError, match="64 of 64 entries .* not finite"):
        nm_prune({"mlp": {"up": {"kernel": jnp.full((8, 8), jnp.nan)}}}, plain)


def test_diagnostics_are_the_means_over_both_sets():
    mask = nm_mask(jnp.abs(KERNEL), NMPattern(2, 8))
    values = jax.random.uniform(jax.random.key(0), KERNEL.shape)
    found = nm_diagnostics(mask, {"grad_var": values, "nu": values**2}, previous=~mask)
    host, kept = np.asarray(values, np.float64), np.asarray(mask)
    expected = {
        "grad_var_kept": host[kept].mean(),
        "grad_var_pruned": host[~kept].mean(),
        "nu_kept": (host[kept] ** 2).mean(),
        "nu_pruned": (host[~kept] ** 2).mean(),
        "noise_ratio": host[~kept].mean() / host[kept].mean(),
        "flip_rate": 1.0,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
