"""Tapped products and convolutions against rows and windows that are written down."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core.convolution import Convolution
from jaxlab.core.matrix import matmul
from jaxlab.models.layers import Conv
from jaxlab.optim.mkor import (
    Tap,
    attach_taps,
    init_taps,
    tapped_conv,
    tapped_dense,
    value_grad_stats,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(a, b, rtol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=1e-6)


def convolution(padding):
    """A loss of a layer of this library, its parameters, its input, and the windows of that."""
    conv = Conv(2, 3, kernel_size=(3, 3), strides=(2, 2), padding=padding, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)
    x = normal(0, 2, 7, 6, 2)
    rows = Convolution((3, 3), (2, 2), padding).patches(x).reshape(-1, 18)
    loss = lambda params, x: jnp.sum(nnx.merge(graph, params)(x) ** 2)  # noqa: E731
    return loss, nnx.to_pure_dict(state), x, rows


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_see_patches(padding):
    loss, params, x, rows = convolution(padding)
    _, grads, stats = jax.jit(value_grad_stats(loss))(params, init_taps(params), x)
    close(stats["kernel"], Tap(jnp.append(rows.sum(0), rows.shape[0]), grads["bias"]))
    chex.assert_trees_all_equal(grads, jax.jit(jax.grad(loss))(params, x))


def test_windows_with_weights_and_of_two_batches():
    loss, params, x, rows = convolution("VALID")
    # With weights, here of images, windows are rows.
    weight, taps, pair = jnp.array([0.5, 0.0]), init_taps(params), jnp.stack([x, 2 * x])
    per_row = lambda taps: loss(attach_taps(params, taps, weight=weight), x)  # noqa: E731
    both = lambda taps: jnp.sum(jax.vmap(lambda x: loss(attach_taps(params, taps), x))(pair))  # noqa: E731
    weighted, twice = jax.jit(lambda taps: (jax.grad(per_row)(taps), jax.grad(both)(taps)))(taps)
    each = jnp.repeat(weight, rows.shape[0] // 2)
    close(weighted["kernel"].a, jnp.append((rows * each[:, None]).sum(0), each.sum()))
    # Two batches at once are the sum of both.
    close(twice["kernel"].a, jnp.append(3 * rows.sum(0), 2 * rows.shape[0]))


def test_pure_layers():
    w, b, x = normal(0, 3, 4), normal(1, 4), normal(2, 5, 3)
    step = jax.jit(jax.grad(lambda b, t: jnp.sum(jnp.sin(tapped_dense(x, w, b, t))), (0, 1)))
    slopes, stats = step(b, init_taps({"kernel": w})["kernel"])
    close(stats, Tap(np.append(x.sum(0), 5.0), slopes))
    close(tapped_dense(x, w, b, stats), x @ w + b[None])
    kernel, images = normal(3, 3, 2, 2, 4), normal(4, 2, 7, 6, 2)
    rows = Convolution((3, 2), (2, 1), "VALID").patches(images).reshape(-1, 12)

    @jax.jit
    def of_windows(b, t):
        def loss(b, t):
            y = tapped_conv(images, kernel, b, t, (2, 1), "VALID")
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, (0, 1), has_aux=True)(b, t)

    t = init_taps({"kernel": kernel}, [("kernel", 3, 1)])["kernel"]
    (slopes, stats), y = of_windows(b, t)
    close(stats, Tap(np.append(rows.sum(0), len(rows)), slopes))
    close(y.reshape(-1, 4), rows @ kernel.reshape(12, 4) + b[None])


def test_a_tapped_product_has_the_dtype_of_the_plain_one():
    x, w = normal(0, 4, 3).astype(jnp.bfloat16), normal(1, 3, 2)
    with jax.numpy_dtype_promotion("standard"):
        params = {"kernel": w}
        tapped = x @ attach_taps(params, init_taps(params))["kernel"]
        np.testing.assert_array_equal(tapped, x @ w)
        assert tapped.dtype == jnp.float32


def test_a_layer_that_casts_its_kernel_casts_a_tapped_one():
    """`core.matrix.matmul` is what layers call: bfloat16 models stay in bfloat16."""
    x, w = normal(0, 4, 3).astype(jnp.bfloat16), normal(1, 3, 2)
    params = {"kernel": w}
    y = matmul(x, attach_taps(params, init_taps(params))["kernel"])
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(matmul(x, w), np.float32))
