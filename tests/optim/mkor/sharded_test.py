"""Taps and MKOR inside `shard_map`, on two devices, against one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxlab.optim.mkor import (
    init_taps,
    mkor,
    scale_by_eva,
    scale_by_mkor,
    tapped_conv,
    tapped_dense,
    value_grad_stats,
)
from jaxlab.training.sharding import make_mesh, param_specs, put_tree, state_shardings
from jaxlab.training.state import init_state

ALL, ROWS = PartitionSpec(), PartitionSpec("data")
RNG = np.random.default_rng(0)
draw = lambda *shape: np.float32(RNG.normal(size=shape))  # noqa: E731
X = draw(4, 5, 2)
PARAMS = {"kernel": draw(2, 3), "bias": draw(3)}


def loss_fn(params, x):
    return jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"][None, None, :]) ** 2)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-6)


def sharded(f, specs, **how):
    mesh = make_mesh(2, 1)
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=ALL, **how))


def step(params, x, axes=()):
    """A step, all of it on each device; `axes` are those of its rows."""
    tx = mkor(0.1, optax.sgd, update_every=1)
    mean = lambda params, x: jax.lax.pmean(loss_fn(params, x), axes)  # noqa: E731
    _, grads, stats = value_grad_stats(mean)(params, init_taps(params), x)
    return tx.update(grads, tx.init(params), params, stats=stats)[0], stats


def test_a_step_of_two_devices_is_that_of_one():
    got = sharded(lambda params, x: step(params, x, "data"), (ALL, ROWS))(PARAMS, X)
    close(got, jax.jit(step)(PARAMS, X))


@pytest.mark.parametrize("checks", [True, False])
def test_gradients_from_outside(checks):
    def loss(params, x):
        each = lambda params, x: jax.lax.pmean(loss_fn(params, x), "data")  # noqa: E731
        return sharded(each, (ALL, ROWS), check_vma=checks)(params, x)

    taps = init_taps(PARAMS)
    stats = jax.jit(value_grad_stats(loss))(PARAMS, taps, X)[2]
    close(stats, jax.jit(value_grad_stats(loss_fn))(PARAMS, taps, X)[2])


def test_windows_and_sums_of_each_device():
    kernel = draw(3, 2, 2)
    taps = init_taps({"kernel": kernel}, [("kernel", 2, 1)])["kernel"]

    def stats(taps, x):
        loss = lambda t: jnp.sum(tapped_conv(x, kernel, None, t) ** 2)  # noqa: E731
        return jax.grad(loss)(taps)

    one = jax.jit(stats)(taps, X)
    close(sharded(stats, (ALL, ROWS))(taps, X), one)
    # Of a tap that differs between devices each has its own.
    pair = jax.tree.map(lambda x: np.stack([x, x]), taps)

    def own(pair, x):
        found = stats(jax.tree.map(lambda x: x[0], pair), x)
        return jax.tree.map(lambda x: jax.lax.psum(x, "data"), found)

    close(sharded(own, (ROWS, ROWS))(pair, X), one)


def test_rows_that_all_devices_share():
    taps, scale = init_taps(PARAMS)["kernel"], np.float32([0.25, 0.75])

    def loss(taps, scale):
        y = tapped_dense(X, PARAMS["kernel"], PARAMS["bias"], taps)
        return jnp.sum(y * scale[0])

    # Each device has its share of the loss: of the same rows there is one sum.
    each = lambda taps, scale: jax.lax.psum(loss(taps, scale), "data")  # noqa: E731
    close(sharded(jax.grad(each), (ALL, ROWS))(taps, scale), jax.grad(loss)(taps, [1.0]))


@pytest.mark.parametrize("rule", [scale_by_mkor, scale_by_eva])
def test_kernels_split_over_devices_have_whole_factors(rule):
    params = {"up": {"kernel": draw(2, 4), "bias": draw(4)}}
    tx, mesh = optax.chain(rule(), optax.sgd(0.1)), make_mesh(1, 2)

    def loss(params, x):
        return jnp.mean(
            jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None, None]) ** 2
        )

    @jax.jit
    def train(params, state, x):
        for _ in range(3):
            _, grads, stats = value_grad_stats(loss)(params, init_taps(params), x)
            updates, state = tx.update(grads, state, params, stats=stats)
            params = optax.apply_updates(params, updates)
        return params, state

    state = init_state(params, tx, freeze=(), ema=0.0)
    specs = param_specs(params, [("up/kernel", (None, "model"))], mesh)
    places = state_shardings(state, specs, mesh)
    put = put_tree(state, places)
    assert put.params["up"]["kernel"].sharding.spec == PartitionSpec(None, "model")
    wide = [x for x in jax.tree.leaves(put.opt) if x.ndim]
    assert wide
    assert all(x.sharding.is_fully_replicated for x in wide)
    close(train(put.params, put.opt, X), train(params, tx.init(params), X))
