"""Taps against explicit means and sums, under every transformation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxlab
from jaxlab.core.lifecycle import at
from jaxlab.core.trainable import combine, partition, trainable_mask
from jaxlab.methods.low_rank import LowRank
from jaxlab.optim.mkor import (
    Tap,
    attach_taps,
    init_taps,
    second_order,
    stats_to_vectors,
    unused,
    value_grad_stats,
)
from jaxlab.training.sharding import make_mesh


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "up": {"kernel": normal(0, 3, 4), "bias": normal(1, 4)},
    "down": {"kernel": normal(2, 4, 2)},
}
X = normal(3, 6, 5, 3)


def model(params, x):
    h = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None, None, :])
    return h @ params["down"]["kernel"]


def loss_fn(params, x):
    return jnp.mean(jnp.sum(model(params, x) ** 2, axis=-1))


def expected(params, x):
    """The sums, by hand: inputs of both layers, and gradients at their outputs."""
    zero = lambda w: jnp.zeros((*x.shape[:-1], w.shape[-1]))  # noqa: E731
    up, down = params["up"], params["down"]

    def shifted(added):
        y = x @ up["kernel"] + up["bias"][None, None, :] + added[0]
        h = jnp.tanh(y)
        return jnp.mean(jnp.sum((h @ down["kernel"] + added[1]) ** 2, axis=-1)), h

    at_zero = [zero(up["kernel"]), zero(down["kernel"])]
    slopes, h = jax.grad(shifted, has_aux=True)(at_zero)
    found = {}
    for path, rows, dy in (("up/kernel", x, slopes[0]), ("down/kernel", h, slopes[1])):
        rows = rows.reshape(-1, rows.shape[-1])
        found[path] = Tap(jnp.append(rows.sum(0), rows.shape[0]), dy.sum((0, 1)))
    return found


STEP = value_grad_stats(loss_fn)
FIXED = [("down/kernel", "quantized", {"quant": "int8", "group": None})]
WANTED = jax.jit(expected)
JITTED = jax.jit(STEP)


def close(a, b, rtol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=1e-6)


def test_sums_and_nothing_else_changes(maybe_jit):
    value, grads, stats = maybe_jit(STEP)(PARAMS, init_taps(PARAMS), X)
    close(stats, WANTED(PARAMS, X))
    plain = maybe_jit(jax.value_and_grad(loss_fn))(PARAMS, X)
    chex.assert_trees_all_equal((value, grads), plain)
    # The gradient of the bias is the sum of the gradients at the outputs.
    close(stats["up/kernel"].g, grads["up"]["bias"])


def test_remat_vmap_and_two_devices():
    want = WANTED(PARAMS, X)
    taps = init_taps(PARAMS)
    remat = value_grad_stats(lambda p, x: jax.checkpoint(loss_fn)(p, x))
    close(jax.jit(remat)(PARAMS, taps, X)[2], want)

    def mapped(params, x):
        return jnp.mean(jax.vmap(lambda row: loss_fn(params, row[None]))(x))

    close(jax.jit(value_grad_stats(mapped))(PARAMS, taps, X)[2], want)
    mesh = make_mesh(2, 1)
    sharded = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    close(jax.jit(STEP)(PARAMS, taps, sharded)[2], want, rtol=1e-6)
    # Per example: taps have the mapped axis, too.
    each = jax.jit(jax.vmap(STEP, in_axes=(None, None, 0)))(PARAMS, taps, X[:, None])[2]
    np.testing.assert_array_equal(each["up/kernel"].a[:, -1], np.full(6, 5.0))
    close(jax.tree.map(lambda x: x.sum(0), each)["up/kernel"].a, want["up/kernel"].a)


def test_scanned_layers_and_a_layer_used_twice():
    stack = {"kernel": normal(0, 3, 4, 4), "bias": normal(1, 3, 4)}

    def layer(x, own):
        return jnp.tanh(x @ own["kernel"] + own["bias"][None, :])

    def scanned(params, x):
        return jnp.sum(jax.lax.scan(lambda x, own: (layer(x, own), None), x, params)[0] ** 2)

    x = normal(2, 7, 4)
    _, grads, stats = jax.jit(value_grad_stats(scanned))(stack, init_taps(stack), x)
    close(stats["kernel"].g, grads["bias"])
    for k in range(3):
        close(stats["kernel"].a[k], jnp.append(x.sum(0), 7.0))
        x = layer(x, jax.tree.map(lambda w, k=k: w[k], stack))
    own = jax.tree.map(lambda w: w[0], stack)
    x = normal(2, 7, 4)
    twice = value_grad_stats(lambda p, x: jnp.sum(layer(layer(x, p), p) ** 2))
    _, grads, stats = jax.jit(twice)(own, init_taps(own), x)
    close(stats["kernel"], Tap(jnp.append((x + layer(x, own)).sum(0), 14.0), grads["bias"]))


def test_factors_of_matrices_and_what_is_not_multiplied():
    u, v = normal(0, 3, 2), normal(1, 2, 4)
    params = {**PARAMS, "up": {**PARAMS["up"], "kernel": LowRank(u, v)}}
    params["unused"] = {"kernel": jnp.ones((2, 2))}
    taps = init_taps(params)
    assert sorted(taps) == ["down/kernel", "unused/kernel", "up/kernel/u", "up/kernel/v"]
    stats = JITTED(params, taps, X)[2]
    close(stats["up/kernel/u"].a, jnp.append(X.reshape(-1, 3).sum(0), 30.0))
    vectors = stats_to_vectors(stats)
    assert [bool(vectors[path][2]) for path in sorted(taps)] == [True, False, True, True]
    np.testing.assert_array_equal(vectors["unused/kernel"][0], np.zeros(2))


@pytest.mark.parametrize("name", ["sparse", "nm", "dense"])
def test_a_kernel_with_a_dense_master_is_tapped_by_its_own_path(name):
    how = {"sparse": {"sparsity": 0.5}, "nm": {"n": 1, "m": 3}, "dense": {}}[name]
    params = jaxlab.compress(PARAMS, [("up/kernel", name, how)])
    child = "array" if name == "dense" else "weight"
    taps = init_taps(params)
    assert sorted(taps) == ["down/kernel", "up/kernel"]
    assert second_order(params, ["up/.*"])["up/kernel"].array == f"up/kernel/{child}"
    trainable, frozen = partition(params, trainable_mask(params, ()))

    def loss(trainable, taps):
        now = at(combine(trainable, frozen), jnp.float32(0.5))
        return loss_fn(attach_taps(now, taps) if taps else now, X)

    # What is not trained is left out, and the paths are the same.
    assert sorted(init_taps(trainable)) == sorted(taps)
    grads, stats = jax.jit(jax.grad(loss, (0, 1)))(trainable, taps)
    chex.assert_trees_all_equal(grads, jax.jit(jax.grad(loss))(trainable, {}))
    close(stats["up/kernel"].a, jnp.append(X.reshape(-1, 3).sum(0), 30.0))
    close(stats["up/kernel"].g, grads["up"]["bias"])


def test_packed_values_are_no_kernel():
    params = jaxlab.compress(
        {"kernel": normal(0, 8, 4), "bias": jnp.ones(4)},
        [("kernel", "nm_packed", {"n": 2, "m": 4})],
    )
    assert init_taps(params) == init_taps(partition(params, trainable_mask(params, ()))[0]) == {}


def test_padding_is_left_out():
    mask = jnp.asarray([[1.0, 1.0, 0.0, 0.0, 0.0]] * 6)

    def loss(taps):
        params = attach_taps(PARAMS, taps, weight=mask)
        return jnp.sum(model(params, X) * mask[..., None])

    want = np.append(X[:, :2].reshape(-1, 3).sum(0), 12.0)
    close(jax.jit(jax.grad(loss))(init_taps(PARAMS))["up/kernel"].a, want)
    # Of a batch that brings its own weights.
    masked = lambda params, x, mask: jnp.sum(model(params, x) * mask[..., None])  # noqa: E731
    step = jax.jit(value_grad_stats(masked, weight=lambda x, mask: mask))
    close(step(PARAMS, init_taps(PARAMS), X, mask)[2]["up/kernel"].a, want)
    with pytest.raises(ValueError, match=r"weight of rows of \(6, 4\) does not fit .*\(6, 5, 3\)"):
        step(PARAMS, init_taps(PARAMS), X, mask[:, :4])


def test_means_are_clipped_and_infinities_skipped():
    stats = {
        "a": Tap(jnp.asarray([600.0, -2.0, 2.0]), jnp.asarray([-500.0])),
        "b": Tap(jnp.asarray([jnp.inf, 1.0, 2.0]), jnp.asarray([1.0])),
    }
    found = stats_to_vectors(stats)
    assert [v.tolist() for v in found["a"]] == [[100.0, -1.0], [-100.0], True]
    assert [v.tolist() for v in found["b"]] == [[0.0, 0.0], [0.0], False]


def test_paths_that_are_not_there():
    with pytest.raises(ValueError, match=r"mkor\.spec: pattern 'up/kernl' matches no path"):
        init_taps(PARAMS, ["up/kernl"])


def test_layers_that_nothing_reached_are_named():
    taps = init_taps({"a": {"kernel": jnp.ones((2, 3, 1))}, "b": {"kernel": jnp.ones((3, 1))}})
    stats = {path: t._replace(a=t.a + 1) for path, t in taps.items()}
    assert unused(stats) == []
    half = stats["a/kernel"]._replace(a=stats["a/kernel"].a.at[1].set(0))
    assert unused({**stats, "a/kernel": half}) == ["a/kernel"]


def test_beside_integers_that_are_not_trained_statistics_are_those_of_the_rest():
    params = jaxlab.compress(PARAMS, FIXED)
    trained, frozen = partition(params, trainable_mask(params))
    taps = init_taps(trained)
    assert set(taps) == {"up/kernel"}
    step = jax.jit(lambda t, f, taps, x: value_grad_stats(loss_fn, frozen=f)(t, taps, x))
    value, grads, stats = step(trained, frozen, taps, X)
    chex.assert_trees_all_close(value, loss_fn(params, X), rtol=1e-6)
    wanted = jax.grad(lambda t: loss_fn(combine(t, frozen), X))(trained)
    chex.assert_trees_all_equal_structs(grads, trained)
    chex.assert_trees_all_close(grads, wanted, rtol=1e-5)
    # The quantized kernel as an array: what the other one's statistics are by hand.
    dense = {**PARAMS, "down": {"kernel": params["down"]["kernel"].to_dense()}}
    close(stats["up/kernel"], expected(dense, X)["up/kernel"])


def test_a_kernel_without_inputs_has_its_rows_counted():
    params, x = {"kernel": jnp.zeros((0, 3))}, jnp.ones((2, 0))
    with_stats = value_grad_stats(lambda p, x: jnp.sum(x @ p["kernel"]))
    _, grads, _ = with_stats(params, init_taps(params), x)
    assert grads["kernel"].shape == (0, 3)
