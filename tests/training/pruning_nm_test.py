"""The phase `prune_nm`: exact groups, sub-steps, and what becomes of masks and files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.matrix import is_matrix
from jaxlab.methods.nm import NM, NMPacked, NMPattern, NMPlanes, nm_mask
from jaxlab.optim.mfac.obs_nm import obs_nm_step
from jaxlab.training.experiment import Experiment
from jaxlab.training.pruning_nm import living_of_group, prune_nm
from jaxlab.training.run import Run
from jaxlab.training.surroundings import Surroundings

OLD = {
    "first": {"kernel": jax.random.normal(jax.random.key(1), (8, 6)), "bias": jnp.ones(6)},
    "second": {"kernel": jax.random.normal(jax.random.key(2), (6, 4))},
}


def batch(step):
    return jax.random.normal(jax.random.key(step), (8, 8))


def loss(params, x):
    hidden = jnp.tanh(x @ params["first"]["kernel"])
    return jnp.mean(jnp.square(hidden @ params["second"]["kernel"] - x[:, :4]))


def pruned(old=OLD, **settings):
    run = Surroundings(10, 3, loss, batch, lambda _: 1)
    settings = {"n": 2, "m": 4, "gradients": 4, "block": 8, "path": "first/kernel", **settings}
    return prune_nm(run=run, **settings)(old, None, jax.random.key(0))[0]


def test_one_sub_step_is_the_function_on_gradients_taken_by_hand():
    new = pruned(gradients=2, recomputations=1, damp=1e-3)
    grads = [jax.grad(loss)(OLD, batch(3 + i))["first"]["kernel"].T.reshape(-1) for i in range(2)]
    w = OLD["first"]["kernel"].T.reshape(-1)
    expected, mask = obs_nm_step(w, jnp.stack(grads), 2, 4, 1e-3, 8)
    kernel = new["first"]["kernel"]
    np.testing.assert_array_equal(kernel.mask.T.reshape(-1), mask)
    np.testing.assert_allclose(kernel.weight.T.reshape(-1), expected, rtol=1e-4, atol=1e-5)
    assert new["second"]["kernel"] is OLD["second"]["kernel"]


def test_sub_steps_end_in_the_pattern_and_pack():
    kernel = pruned(n=1, m=8, recomputations=16)["first"]["kernel"]
    assert isinstance(kernel, NM)
    np.testing.assert_array_equal(kernel.mask.sum(0), np.ones(6))
    assert not bool(jnp.any(jnp.where(kernel.mask, 0, kernel.weight)))
    packed = kernel.finalize()
    assert isinstance(packed, NMPacked)
    np.testing.assert_array_equal(packed.to_dense(), kernel.to_dense())
    planes = pruned(n=1, m=8, recomputations=16, store="planes")["first"]["kernel"].finalize()
    assert isinstance(planes, NMPlanes)
    np.testing.assert_array_equal(planes.to_dense(), packed.to_dense())
    # A step of the optimizer may move them all: the mask stays, and what is pruned is 0 again.
    moved = NM(kernel.weight + 1, kernel.mask, kernel.config).advance(jnp.float32(0.5))
    np.testing.assert_array_equal(moved.mask, kernel.mask)
    np.testing.assert_array_equal(moved.to_dense() == 0, ~kernel.mask)


def test_a_later_sub_step_never_brings_a_weight_back():
    w = jax.random.normal(jax.random.key(0), (16,))
    grads = jax.random.normal(jax.random.key(1), (6, 16))
    some, first = obs_nm_step(w, grads, 5, 8, 1e-2, 0)
    new, mask = obs_nm_step(some, grads, 2, 8, 1e-2, 0, mask=first, living=5)
    assert not bool(jnp.any(mask & ~first))
    np.testing.assert_array_equal(mask.reshape(2, 8).sum(1), [2, 2])
    assert not bool(jnp.any(jnp.where(mask, 0, new)))


def test_a_quadratic_loss_rises_less_than_by_magnitude():
    x = jax.random.normal(jax.random.key(5), (64, 8)) @ jax.random.normal(jax.random.key(6), (8, 8))
    w = jax.random.normal(jax.random.key(7), (8, 1))

    def rise(new):
        return float(jnp.mean(jnp.square(x @ (new - w))))

    # Rows of x, scaled, are gradients whose Fisher matrix is the Hessian x^T x / 64.
    new, _ = obs_nm_step(w[:, 0], x, 2, 4, 1e-6, 0)
    left, _ = obs_nm_step(w[:, 0], x, 2, 4, 1e-6, 0, update=False)
    by_size = jnp.where(nm_mask(jnp.abs(w), NMPattern(2, 4)), w, 0)
    assert rise(new[:, None]) < min(rise(left[:, None]), rise(by_size))


def test_shapes_are_known_before_there_is_data():
    run = Surroundings(10, 3, None, None, None)  # pyright: ignore
    transform = prune_nm(run=run, n=2, m=4, path="first/kernel")
    shapes = jax.eval_shape(lambda p: transform(p, None, jax.random.key(0))[0], OLD)
    assert jax.tree.structure(shapes) == jax.tree.structure(pruned())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gradients": 0}, "prune_nm: gradients=0 must be 1 or more"),
        ({"n": 4}, "n=4 must be less than m=4; nearest: 3"),
        ({"m": 3, "block": 9}, "m=3 must divide the inputs of 'first/kernel'.*nearest: 2"),
        ({"m": 3}, "m=3 must divide block=8; nearest block: 9"),
        ({"damp": 0.0}, "damp=0.0 must be positive"),
        ({"rows": 9}, "prune_nm: rows=9 is more than a batch of 8; nearest: 8"),
        ({"path": "third/kernel"}, "matches no path"),
        (
            {"n": 8, "m": 16, "block": 16, "recomputations": 1},
            "compares 12870 sets.*nearest: 4 at once",
        ),
    ],
)
def test_what_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        pruned(**settings)


def test_other_matrices_are_refused_by_name():
    for rule in (("low_rank", {"rank": 2}), ("sparse", {"sparsity": 0.5})):
        old = jaxlab.compress(OLD, [("first/kernel", *rule)])
        with pytest.raises(ValueError, match=r"'first/kernel' is a (LowRank|Sparse).*'densify'"):
            pruned(old)


def test_counts_of_sub_steps():
    assert living_of_group(8, 16, 16) == list(range(15, 7, -1))
    assert living_of_group(2, 16, 3) == [8, 4, 2]
    assert living_of_group(3, 4, 1) == [3]


def test_a_run_prunes_trains_on_and_packs(tmp_path):
    c = base_config("tiny.py")
    c.workdir = str(tmp_path / "run")
    c.steps, c.batch_size, c.eval.every = 4, 16, 0
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(32,))
    c.optim.update(lr=0.01, weight_decay=0.1)
    shared = {"name": "prune_nm", "gradients": 4, "recomputations": 2}
    c.phases.half = {"at": 0.5, "n": 2, "m": 4, **shared}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        summary = Run(Experiment(c.to_dict())).train()
        final = jaxlab.load(tmp_path / "run" / "model.safetensors")
    assert summary["metrics"]["trained"] == pytest.approx(summary["metrics"]["finalized"])
    kernels = [w for w in jax.tree.leaves(final, is_leaf=is_matrix) if is_matrix(w)]
    assert {type(w) for w in kernels} == {NMPacked}
    for w in kernels:
        assert np.count_nonzero(w.to_dense()) == w.to_dense().size / 2
