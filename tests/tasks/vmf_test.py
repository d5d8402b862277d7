"""The task vmf: one step is the maximum-likelihood fit, many are EM, and its metrics."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from jaxlab.core import registry
from jaxlab.special.vmf import (
    VmfMixture,
    vmf_fit,
    vmf_kappa_from_r,
    vmf_log_prob,
    vmf_mixture_step,
)
from jaxlab.training.experiment import Experiment

DATA = {"name": "random_features", "source": {"name": "digits"}, "dim": 40}
ROOT = Path(__file__).parents[2]
KEY = jax.random.key(0)


def task(batch_size=300, seed=0, **section):
    return registry.build(
        "task", {"name": "vmf", **section}, data=DATA, seed=seed, batch_size=batch_size
    )


def step(task, params, batch, rate=1.0):
    grads, metrics = jax.jit(jax.grad(task.loss, has_aux=True))(params, batch, KEY)
    return jax.tree.map(lambda x, g: x - rate * g, params, grads), metrics


def of_class(params, c, p=40):
    """A class's mixture, from the expectations."""
    weights, moments = (np.asarray(params[name][c]) for name in ("weights", "moments"))
    length = np.linalg.norm(moments, axis=-1)
    kappa = vmf_kappa_from_r(p, length / weights)
    shares = jnp.log(weights / weights.sum())
    return VmfMixture(shares, jnp.asarray(moments / length[:, None]), kappa)


def test_one_step_is_the_fit_of_every_class():
    one = task()
    batch = one.batch(0)
    params, _ = step(one, jax.jit(one.init)(KEY), batch)
    for c in (0, 7):
        rows = batch["feature"][batch["label"] == c]
        found, (mu, kappa) = of_class(params, c), vmf_fit(rows)
        np.testing.assert_allclose(found.mu[0], mu, atol=1e-5)
        np.testing.assert_allclose(found.kappa[0], kappa, rtol=1e-4)
        assert float(params["weights"][c, 0]) == pytest.approx(len(rows) / 300, rel=1e-5)
    # It stays there: the gradient at the fit is 0.
    grads = jax.tree.map(jnp.subtract, params, step(one, params, batch)[0])
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads)) < 1e-6


def test_steps_with_components_are_em():
    many = task(components=2)
    batch = many.batch(0)
    params, _ = step(many, jax.jit(many.init)(KEY), batch)
    rows = batch["feature"][batch["label"] == 3]
    expected, _ = vmf_mixture_step(rows, of_class(params, 3))
    loss = jax.jit(many.loss)
    losses = [float(loss(params, batch, KEY)[0])]
    for _ in range(3):
        before, (params, _) = params, step(many, params, batch)
        losses.append(float(loss(params, batch, KEY)[0]))
        if len(losses) == 2:
            found = of_class(params, 3)
            np.testing.assert_allclose(found.log_weights, expected.log_weights, atol=1e-3)
            np.testing.assert_allclose(found.kappa, expected.kappa, rtol=1e-3)
    assert np.all(np.diff(losses) < 1e-4)
    assert jax.tree.structure(before) == jax.tree.structure(params)


def test_the_loss_is_the_joint_density_and_absent_classes_stay():
    one = task()
    batch = one.batch(0)
    params, _ = step(one, jax.jit(one.init)(KEY), batch)
    few = {name: x[:40] for name, x in batch.items()}
    few["label"] = np.where(few["label"] == 5, 4, few["label"])
    mixtures = [of_class(params, c) for c in few["label"]]
    priors = np.asarray(params["weights"])[few["label"], 0]
    mu = np.stack([m.mu[0] for m in mixtures])
    kappa = np.array([m.kappa[0] for m in mixtures])
    density = np.asarray(vmf_log_prob(few["feature"], mu, kappa)) + np.log(priors)
    loss, metrics = jax.jit(one.loss)(params, few, KEY)
    assert float(loss) == pytest.approx(-density.mean(), rel=1e-4)
    after, _ = step(one, params, few, rate=0.25)
    np.testing.assert_allclose(of_class(after, 5).kappa, of_class(params, 5).kappa, rtol=1e-4)
    np.testing.assert_allclose(after["weights"][5], 0.75 * params["weights"][5], rtol=1e-6)
    assert float(jnp.sum(after["weights"])) == pytest.approx(1, rel=1e-6)
    assert 0 < float(metrics["accuracy"]) <= 1


def test_products_with_features_are_of_the_highest_precision():
    one = task()
    batch, params = one.batch(0), jax.eval_shape(one.init, KEY)
    held_out = next(iter(one.eval_batches()))
    for fn, at in ((jax.grad(one.loss, has_aux=True), (batch, KEY)), (one.eval_sums, (held_out,))):
        lines = [line for line in str(jax.make_jaxpr(fn)(params, *at)).splitlines()]
        text = " ".join(line.strip() for line in lines)
        # All but the count of ordered pairs, which are 0, 1 / 2 and 1, have features in them.
        exact = text.count("precision=(Precision.HIGHEST, ")
        assert exact >= 2
        assert text.count("dot_general[") - exact == (2 if fn == one.eval_sums else 0)


def test_metrics_of_held_out_rows():
    one = task(batch_size=600)  # the 597 held-out images are one batch
    params, _ = step(one, jax.jit(one.init)(KEY), one.batch(0))
    (batch,) = one.eval_batches()
    found = one.eval_metrics(
        {k: float(v) for k, v in jax.jit(one.eval_sums)(params, batch).items()}
    )
    inside, outside = (
        jax.nn.logsumexp(jax.jit(one.log_joint)(params, batch[name][:597]), axis=(1, 2))
        for name in ("feature", "outside")
    )
    truth = np.repeat([1, 0], 597)
    auroc = sklearn.metrics.roc_auc_score(truth, np.concatenate([inside, outside]))
    assert found["outside_auroc"] == pytest.approx(auroc, abs=1e-5)
    assert found["log_likelihood"] == pytest.approx(float(jnp.mean(inside)), rel=1e-5)
    assert found["finite"] == 1
    assert found["accuracy"] > 0.6
    means = np.asarray(params["moments"])[:, 0]
    centroids = means / np.linalg.norm(means, axis=-1, keepdims=True)
    nearest = np.argmax(batch["feature"][:597] @ centroids.T, axis=-1)
    accuracy = np.mean(nearest == batch["label"][:597])
    assert found["centroid_accuracy"] == pytest.approx(accuracy, abs=2e-3)


def test_a_prior_holds_small_components_back():
    held = task(batch_size=40, components=8, prior=1.0)
    batch = held.batch(0)
    params = jax.jit(held.init)(KEY)
    for _ in range(3):
        params, _ = step(held, params, batch)
    joint = jax.jit(held.log_joint)(params, jnp.asarray(batch["feature"]))
    assert np.all(np.isfinite(joint))
    # Without it, a component of a single example would be as narrow as float32 can say.
    narrow = vmf_kappa_from_r(40, 1 - 1e-6)
    highest = jnp.max(joint - jnp.log(params["weights"] + 1e-30)[None])
    assert float(highest) < 20 * float(jnp.log(narrow)) / 2


def test_the_config_runs_and_bad_settings_are_named():
    get_config = runpy.run_path(str(ROOT / "configs" / "vmf_digits.py"))["get_config"]
    experiment = Experiment(get_config("smoke,components=2").to_dict())
    assert experiment.dense["moments"].shape == (10, 2, 64)
    with pytest.raises(ValueError, match="vmf: components=0; nearest: 1"):
        task(components=0)
    with pytest.raises(ValueError, match="vmf: prior=-1"):
        task(prior=-1.0)
    with pytest.raises(ValueError, match="data 'digits' has no features"):
        registry.build("task", {"name": "vmf"}, data={"name": "digits"}, seed=0, batch_size=4)
