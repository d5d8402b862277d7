"""The phase `prune`: exact counts, gradual runs, and what becomes of masks and files."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.matrix import is_matrix
from jaxlab.methods.sparse import Sparse, SparsePacked
from jaxlab.optim.mfac.obs import obs_prune_step
from jaxlab.training.experiment import Experiment
from jaxlab.training.pruning import cubic_sparsity, living_counts, magnitude_step, prune
from jaxlab.training.run import Run
from jaxlab.training.surroundings import Surroundings


def surroundings():
    """A linear model of eight inputs; a batch is 8 rows, drawn from its step."""

    def batch(step):
        return jax.random.normal(jax.random.key(step), (8, 8))

    def loss(params, x):
        hidden = jnp.tanh(x @ params["first"]["kernel"])
        return jnp.mean(jnp.square(hidden @ params["second"]["kernel"] - x[:, :4]))

    return Surroundings(10, 3, loss, batch, lambda _: 1)


def params():
    keys = jax.random.split(jax.random.key(7))
    return {
        "first": {"kernel": jax.random.normal(keys[0], (8, 6)), "bias": jnp.ones(6)},
        "second": {"kernel": jax.random.normal(keys[1], (6, 4))},
    }


def pruned(old, **settings):
    settings = {"gradients": 6, "rows": 4, "block": 8, "recomputations": 2, **settings}
    return prune(run=surroundings(), **settings)(old, None, jax.random.key(0))[0]


def kernels_of(tree):
    return [w for w in jax.tree.leaves(tree, is_leaf=is_matrix) if is_matrix(w)]


def alive(new, *names):
    return sum(int(new[n]["kernel"].mask.sum()) for n in names or ("first", "second"))


def test_counts_are_exact_over_all_kernels_and_later_phases_go_on():
    once = pruned(params(), sparsity=0.5)
    assert alive(once) == 72 - 36
    assert isinstance(once["first"]["bias"], jax.Array)
    twice = pruned(once, sparsity=0.81)
    assert alive(twice) == 72 - round(72 * 0.81)
    for name in ("first", "second"):
        before, after = once[name]["kernel"], twice[name]["kernel"]
        assert not bool(jnp.any(after.mask & ~before.mask))
        assert not bool(jnp.any(jnp.where(after.mask, 0, after.weight)))
    with pytest.raises(ValueError, match="sparsity=0.3 is less than.*nearest: 0.5"):
        pruned(once, sparsity=0.3)


def test_one_pass_is_the_step_on_gradients_taken_by_hand():
    old, run = params(), surroundings()
    new = pruned(old, path="first/kernel", sparsity=0.25, gradients=3, recomputations=1, block=0)
    # Batches from the phase's step on, in parts of 4 rows; the fourth part is one too many, and
    # the start of the last batch is moved back over the second row.
    parts = [run.batch(3)[:4], run.batch(4)[:4], run.batch(4)[4:]]

    def loss(w, part):
        return run.loss({**old, "first": {"kernel": w}}, part)

    flat = lambda w: w.T.reshape(-1)  # noqa: E731
    grads = jnp.stack([flat(jax.grad(loss)(old["first"]["kernel"], part)) for part in parts])
    w = flat(old["first"]["kernel"])
    expected, mask = obs_prune_step(w, jnp.ones(48, bool), grads, 12, 1e-5, 0)
    np.testing.assert_array_equal(flat(new["first"]["kernel"].mask), mask)
    np.testing.assert_allclose(flat(new["first"]["kernel"].weight), expected, rtol=1e-3, atol=1e-4)
    assert new["second"]["kernel"] is old["second"]["kernel"]


def test_targets_by_path_are_pools_of_their_own():
    new = pruned(params(), targets=(("first/.*kernel", 0.25), (".*kernel", 0.5)))
    assert (alive(new, "first"), alive(new, "second")) == (36, 12)


@pytest.mark.parametrize("saliency", ["mfac", "magnitude"])
def test_groups_of_inputs_live_or_die_together(saliency):
    new = pruned(params(), sparsity=0.5, group=2, saliency=saliency)
    assert alive(new) == 36
    for name in ("first", "second"):
        mask = np.asarray(new[name]["kernel"].mask)
        np.testing.assert_array_equal(mask[0::2], mask[1::2])


@pytest.mark.parametrize("saliency", ["mfac", "magnitude"])
def test_groups_after_others_are_exact_or_refused_by_the_kernels_name(saliency):
    how = {"path": "first/kernel", "saliency": saliency}
    single = pruned(params(), sparsity=0.25, **how)
    with pytest.raises(ValueError, match=r"'first/kernel' has groups of 2 that.*group=1"):
        pruned(single, sparsity=0.5, group=2, **how)
    # What lives in pairs may go on by ones, not by fours.
    pairs = pruned(params(), sparsity=0.25, group=2, **how)
    for group in (1, 2):
        assert alive(pruned(pairs, sparsity=0.5, group=group, **how), "first") == 24
    with pytest.raises(ValueError, match=r"groups of 4 that live in part.*nearest: group=2"):
        pruned(pairs, sparsity=0.5, group=4, **how)


def test_magnitude_keeps_the_largest_of_all_kernels():
    old = params()
    new = pruned(old, sparsity=0.5, saliency="magnitude")
    sizes = np.concatenate([np.abs(old[n]["kernel"]).ravel() for n in ("first", "second")])
    masks = np.concatenate([np.asarray(new[n]["kernel"].mask).ravel() for n in old])
    assert sizes[masks].min() > sizes[~masks].max()
    w = jnp.array([2.0, -2.0, 1.0, 2.0])
    assert magnitude_step(w, jnp.ones(4, bool), 2)[1].tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="magnitude_step: mask has groups of 2 that live in part"):
        magnitude_step(w, jnp.arange(4) > 0, 2, 2)


def test_stacks_are_pruned_as_one():
    stack = jax.random.normal(jax.random.key(0), (3, 6, 4)) * jnp.array([1.0, 2, 9])[:, None, None]

    def loss(params, x):
        return jnp.mean(jax.vmap(lambda w: jnp.sum((x @ w) ** 2))(params["layers"]))

    run = surroundings()._replace(loss=loss, batch=lambda step: jnp.ones((2, 6)) * (step + 1))
    transform = prune(run=run, path="layers", sparsity=0.5, gradients=2, recomputations=1, damp=1.0)
    w = transform({"layers": stack}, None, jax.random.key(0))[0]["layers"]
    counts = np.asarray(w.mask).sum(axis=(1, 2))
    assert counts.sum() == 36
    final = w.finalize()
    np.testing.assert_array_equal(final.to_dense(), w.to_dense())


def test_shapes_are_known_before_there_is_data():
    run = surroundings()._replace(batch=None, loss=None)  # pyright: ignore
    transform = prune(run=run, sparsity=0.5)
    shapes = jax.eval_shape(lambda p: transform(p, None, jax.random.key(0))[0], params())
    assert jax.tree.structure(shapes) == jax.tree.structure(pruned(params()))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gradients": 0}, "gradients=0 must be 1 or more"),
        ({"sparsity": 1.0}, r"sparsity=1.0 must be in \[0, 1\)"),
        ({"group": 3}, "group=3 must divide block=8; nearest block: 9"),
        ({"group": 4}, r"group=4 must divide the inputs of 'second/kernel'.*nearest: 3"),
        ({"damp": -1.0}, "damp=-1.0 must be positive"),
        ({"rows": 9}, "rows=9 is more than a batch of 8; nearest: 8"),
        ({"path": "third/kernel"}, "matches no path"),
        ({"saliency": "size"}, "saliency='size'.*valid: magnitude, mfac"),
    ],
)
def test_what_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        pruned(params(), **settings)


def test_other_matrices_are_refused_by_name():
    old = jaxlab.compress(params(), [("first/kernel", "low_rank", {"rank": 2})])
    with pytest.raises(ValueError, match=r"'first/kernel' is a LowRank.*'densify'"):
        pruned(old)


def test_schedules_of_sparsities():
    assert living_counts(10, 10, 0.75, 1) == [2]
    assert living_counts(100, 50, 0.9, 1) == [10]
    counts = living_counts(10_000, 10_000, 0.9, 4)
    np.testing.assert_allclose(np.array(counts[1:]) / counts[:-1], 0.1**0.25, rtol=1e-3)
    assert living_counts(100, 100, 0.5, 2, group=4)[-1] == 4 * (25 - 12)
    assert [cubic_sparsity(t, 0.8, 0.2) for t in (0, 1)] == pytest.approx([0.2, 0.8])


def test_a_gradual_run_keeps_its_masks_resumes_and_packs(tmp_path):
    def run_of(folder):
        c = base_config("tiny.py")
        c.workdir = str(folder)
        c.steps, c.batch_size = 4, 16
        c.task.name, c.data.name = "classify", "digits"
        c.model.update(name="mlp", hidden=(32,))
        c.optim.update(lr=0.01, weight_decay=0.1)
        c.checkpoint.every, c.checkpoint.keep = 3, 9
        c.eval.every = 0
        shared = {"name": "prune", "gradients": 4, "recomputations": 2}
        c.phases.one = {"at": 0.25, "sparsity": 0.5, **shared}
        c.phases.two = {"at": 0.5, "sparsity": 0.9, **shared}
        run = Run(Experiment(c.to_dict()))
        return run, run.train()

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        run, summary = run_of(tmp_path / "whole")
        assert summary["metrics"]["trained"] == pytest.approx(summary["metrics"]["finalized"])
        final = jaxlab.load(tmp_path / "whole" / "model.safetensors")
        kernels = kernels_of(final)
        assert {type(w) for w in kernels} == {SparsePacked}
        total = sum(w.to_dense().size for w in kernels)
        nonzero = sum(int(jnp.sum(w.to_dense() != 0)) for w in kernels)
        assert nonzero == total - round(total * 0.9)
        assert summary["bytes"]["finalized"] < 0.3 * summary["bytes"]["dense"]
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / "4")
        (tmp_path / "broken" / "model.safetensors").unlink()
        run_of(tmp_path / "broken")
    for name in ("metrics.jsonl", "model.safetensors"):
        whole, broken = ((tmp_path / f / name).read_bytes() for f in ("whole", "broken"))
        assert whole == broken
    assert all(isinstance(w, Sparse) for w in kernels_of(run.experiment.structures[-1].params))
