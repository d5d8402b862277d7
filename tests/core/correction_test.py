"""What calibration does beyond the kernel: biases, gradients, and what earlier kernels changed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.calibration import collect_gradient_grams, collect_grams, compress_calibrated
from jaxlab.core.matrix import to_dense
from jaxlab.methods.low_rank import kfac_factorize, lord_factorize, merge_lowrank


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def net(*widths, bias=True):
    """Layers in the order of their names, and a model that returns every layer's output."""
    params = {}
    for k, (a, b) in enumerate(itertools.pairwise(widths)):
        params[f"l{k}"] = {"kernel": normal(k, a, b) / np.sqrt(a)}
        params[f"l{k}"] |= {"bias": normal(9 + k, b)} if bias else {}

    def model(params, x):
        seen = []
        for layer in params.values():
            x = x @ layer["kernel"]
            x = x + layer["bias"][None, :] if "bias" in layer else x
            seen.append(x)
            x = jnp.tanh(2 * x)
        return seen

    return params, model


PARAMS, MODEL = net(12, 10, 14)
BATCHES = [normal(20 + k, 30, 12) + 1 for k in range(2)]
X = jnp.concatenate(BATCHES)
PATHS = ["l0/kernel", "l1/kernel"]
# By method: rules for every kernel.
RULES = {
    "svd": ("low_rank", {"rank": 3, "decomposition": "svd"}),
    "lord": ("low_rank", {"rank": 3}),
    "nm": ("nm_packed", {"n": 1, "m": 2, "scores": "wanda"}),
}


@pytest.mark.parametrize(("name", "sequential"), [("svd", False), ("lord", True), ("nm", True)])
def test_the_mean_of_every_output_stays(name, sequential):
    rules = [("l./kernel", *RULES[name])]
    got = compress_calibrated(MODEL, PARAMS, rules, BATCHES, sequential=sequential)
    x = X
    for layer, y in zip(("l0", "l1"), MODEL(PARAMS, X), strict=True):
        small = got[layer]["kernel"]
        if sequential and name == "nm" and layer == "l1":
            # It knows the changed inputs alone, and keeps the mean on those.
            y = x @ PARAMS[layer]["kernel"] + PARAMS[layer]["bias"][None, :]
        output = x @ small + got[layer]["bias"][None, :]
        np.testing.assert_allclose(output.mean(0), y.mean(0), atol=2e-5)
        x = jnp.tanh(2 * (output if sequential else y))


def test_it_is_the_bias_of_the_centred_decomposition():
    got = compress_calibrated(MODEL, PARAMS, [("l./kernel", "low_rank", {"rank": 3})], BATCHES)
    grams = collect_grams(MODEL, PARAMS, BATCHES, PATHS)
    for layer in ("l0", "l1"):
        w, b = PARAMS[layer]["kernel"].T, PARAMS[layer]["bias"]
        params, _ = lord_factorize(w, b, grams[f"{layer}/kernel"], 3)
        merged, bias = merge_lowrank(params)
        np.testing.assert_allclose(got[layer]["kernel"].to_dense(), merged.T, atol=1e-5)
        np.testing.assert_allclose(got[layer]["bias"], bias, atol=1e-5)


def test_not_if_it_is_not_wanted():
    rules = [("l0/kernel", *RULES["nm"])]
    got = compress_calibrated(MODEL, PARAMS, rules, BATCHES, correct_bias=False)
    assert got["l0"]["bias"] is PARAMS["l0"]["bias"]


def test_without_a_bias_nothing_is_centred():
    params, model = net(12, 10, bias=False)
    got = compress_calibrated(model, params, [("l0/kernel", "low_rank", {"rank": 3})], BATCHES)
    gram = collect_grams(model, params, BATCHES, ["l0/kernel"])["l0/kernel"]
    made, _ = lord_factorize(params["l0"]["kernel"].T, None, gram, 3, center=False)
    np.testing.assert_allclose(got["l0"]["kernel"].to_dense(), merge_lowrank(made)[0].T, atol=1e-5)
    assert list(got["l0"]) == ["kernel"]


def test_stacks_and_narrow_parameters():
    stack = {"kernel": normal(0, 2, 12, 12) / 3, "bias": normal(1, 2, 12).astype(jnp.bfloat16)}

    def deep(params, x):
        def layer(x, own):
            y = x @ own["kernel"] + own["bias"][None, :].astype(jnp.float32)
            return jnp.tanh(2 * y), y

        return jax.lax.scan(layer, x, params)[1]

    got = compress_calibrated(deep, stack, [("kernel", "low_rank", {"rank": 3})], BATCHES)
    assert got["bias"].dtype == jnp.bfloat16
    x = X
    for k, y in enumerate(deep(stack, X)):
        output = x @ got["kernel"].to_dense()[k] + got["bias"][k].astype(jnp.float32)[None, :]
        np.testing.assert_allclose(output.mean(0), y.mean(0), atol=2e-2)
        x = jnp.tanh(2 * y)


def test_sequential_is_nearer_than_parallel():
    params, model = net(16, 16, 16, 16)
    batches = [normal(30 + k, 100, 16) + 0.5 for k in range(2)]
    rules = [("l./kernel", "low_rank", {"rank": 4})]
    x = jnp.concatenate(batches)

    def short(**how):
        got = compress_calibrated(model, params, rules, batches, **how)
        return float(jnp.mean((model(got, x)[-1] - model(params, x)[-1]) ** 2))

    assert short(sequential=True) < 0.9 * short()


def test_where_vectors_cannot_be_paired_the_changed_inputs_do():
    def mapped(params, x):
        return jax.vmap(lambda row: MODEL(params, row[None])[-1])(x)

    rules = [("l./kernel", "low_rank", {"rank": 3})]
    got = compress_calibrated(mapped, PARAMS, rules, BATCHES, sequential=True)
    x = jnp.tanh(2 * (X @ got["l0"]["kernel"] + got["l0"]["bias"][None, :]))
    acting = PARAMS | {"l0": {k: to_dense(v) for k, v in got["l0"].items()}}
    gram = collect_grams(MODEL, acting, BATCHES, ["l1/kernel"])["l1/kernel"]
    np.testing.assert_allclose(gram.mean, x.mean(0), atol=1e-5)
    w = PARAMS["l1"]["kernel"]
    made, _ = lord_factorize(w.T, None, gram, 3)
    np.testing.assert_allclose(got["l1"]["kernel"].to_dense(), merge_lowrank(made)[0].T, atol=1e-4)


def square_loss(params, x):
    return jnp.sum(jnp.sin(MODEL(params, x)[-1]) ** 2)


def test_gradients_at_the_outputs():
    got = collect_gradient_grams(square_loss, PARAMS, BATCHES, PATHS)
    hidden, last = MODEL(PARAMS, X)

    def tail(y):
        y = jnp.tanh(2 * y) @ PARAMS["l1"]["kernel"] + PARAMS["l1"]["bias"][None, :]
        return jnp.sum(jnp.sin(y) ** 2)

    for path, g in (("l0/kernel", jax.grad(tail)(hidden)), ("l1/kernel", jnp.sin(2 * last))):
        np.testing.assert_allclose(got[path].count, 60)
        expected = np.asarray(g.T @ g)
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(got[path].second_moment, expected, atol=atol)
    ones = collect_gradient_grams(
        square_loss, PARAMS, BATCHES, PATHS, weight=lambda b: jnp.arange(30) < 7
    )
    np.testing.assert_allclose(ones["l1/kernel"].count, 14)
    with pytest.raises(ValueError, match=r"returns float32\[30, 10\], .*nearest: the loss"):
        collect_gradient_grams(MODEL, PARAMS, BATCHES, PATHS)


def test_gradients_are_measured_for_those_that_need_them():
    rules = [("l1/kernel", "low_rank", {"rank": 3, "decomposition": "kfac"})]
    passes = []

    def shown(batches, label):
        passes.append(label)
        return batches

    got = compress_calibrated(square_loss, PARAMS, rules, BATCHES, progress=shown)
    assert passes == ["calibrate gradients", "calibrate inputs"]
    gram = collect_grams(square_loss, PARAMS, BATCHES, ["l1/kernel"])["l1/kernel"]
    slopes = collect_gradient_grams(square_loss, PARAMS, BATCHES, ["l1/kernel"])["l1/kernel"]
    made = kfac_factorize(PARAMS["l1"]["kernel"].T, gram, slopes, 3)
    np.testing.assert_allclose(got["l1"]["kernel"].to_dense(), merge_lowrank(made)[0].T, atol=1e-3)


def test_what_is_measured_no_rule_sets():
    for name in ("center", "cross", "gradient_gram"):
        rules = [("l0/kernel", "low_rank", {"rank": 3, name: True})]
        with pytest.raises(ValueError, match=f"{name!r} is set by the program.*calibrate"):
            compress_calibrated(MODEL, PARAMS, rules, BATCHES)
