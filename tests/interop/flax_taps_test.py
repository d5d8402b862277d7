"""Taps in a user's own flax models, against explicit sums."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlab.core.convolution import Convolution
from jaxlab.interop.flax_taps import tap_model, tapped_apply
from jaxlab.optim.mkor import Tap, init_taps, mkor

SPEC = [("conv.*/kernel", 3, 1), ".*/kernel"]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(3, (3, 3), strides=2, name="conv")(x))
        return nn.Dense(2, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.conv(x)))


X = normal(0, 4, 6, 5, 2)
# Either library adds biases and multiplies flat arrays by rank promotion, and ours may not.
allow = jax.numpy_rank_promotion("allow")


def linen():
    model = Linen()
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]

    def loss(params, taps):
        return jnp.mean(tapped_apply(model.apply, taps)({"params": params}, X) ** 2)

    return params, loss


def of_nnx():
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))

    def loss(params, taps):
        return jnp.mean(tap_model(nnx.merge(graph, params), taps)(X) ** 2)

    return nnx.to_pure_dict(state), loss


@pytest.mark.parametrize("make", [linen, of_nnx])
def test_sums_of_convolutions_and_dense_layers(make):
    with allow, jax.numpy_dtype_promotion("standard"):
        params, loss = make()
        taps = init_taps(params, SPEC)
        grads, stats = jax.jit(jax.grad(loss, (0, 1)))(params, taps)
        rows = Convolution((3, 3), (2, 2), "SAME").patches(X)
        kernel = params["conv"]["kernel"].reshape(18, 3)
        h = jnp.tanh(rows @ kernel + params["conv"]["bias"]).reshape(-1, 3)
        untapped = jax.jit(jax.grad(loss))(params, {})
    chex.assert_trees_all_equal(grads, untapped)
    rows = rows.reshape(-1, 18)
    sums = {"conv": rows, "head": h}
    for name, x in sums.items():
        expected = Tap(jnp.append(x.sum(0), x.shape[0]), grads[name]["bias"])
        close(stats[f"{name}/kernel"], expected)
    assert rows.shape[0] == 4 * 3 * 3


def test_attention_of_linen_trains_with_mkor():
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    with allow, jax.numpy_dtype_promotion("standard"):
        x = normal(1, 3, 5, 4)
        params = jax.jit(model.init)(jax.random.key(0), x)["params"]
        spec = [("(query|key|value)/kernel", 1, 2), ("out/kernel", 2, 1)]

        def loss(params, taps):
            y = tapped_apply(model.apply, taps)({"params": params}, x)
            return jnp.mean((y - x) ** 2)

        tx = mkor(0.3, optax.sgd, spec=spec, update_every=1)
        state, taps, losses = tx.init(params), init_taps(params, spec), []

        @jax.jit
        def step(params, state):
            value, (grads, stats) = jax.value_and_grad(loss, (0, 1))(params, taps)
            updates, state = tx.update(grads, state, params, stats=stats)
            return optax.apply_updates(params, updates), state, value, grads, stats

        for _ in range(5):
            params, state, value, grads, stats = step(params, state)
            losses.append(float(value))
    close(stats["query/kernel"].a, jnp.append(x.reshape(-1, 4).sum(0), 15.0))
    # Heads side by side: the bias (2, 2) is the sum of the gradients at the outputs.
    close(stats["key/kernel"].g, grads["key"]["bias"].reshape(-1))
    assert stats["out/kernel"].a.shape == (5,)
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()
