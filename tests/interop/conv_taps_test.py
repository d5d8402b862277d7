"""Taps of flax's convolutions against windows that are written down."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.interop.flax_taps import tap_model, tapped_apply
from jaxlab.optim.mkor import Tap, init_taps

# By name: the settings of a convolution, and how its input is padded, of kernels of 3.
PLANE = {
    "same": ({}, lambda x: zeros(x, (1, 1), (1, 1))),
    "one": ({"padding": 1}, lambda x: zeros(x, (1, 1), (1, 1))),
    "each": ({"padding": (1, 0)}, lambda x: zeros(x, (1, 1), (0, 0))),
    "pairs": ({"padding": ((1, 0), (0, 2))}, lambda x: zeros(x, (1, 0), (0, 2))),
    "wrap": ({"padding": "CIRCULAR"}, lambda x: np.pad(x, PADS, mode="wrap")),
    "mirror": ({"padding": "REFLECT"}, lambda x: np.pad(x, PADS, mode="reflect")),
    "holes": ({"padding": 1, "input_dilation": 2}, lambda x: zeros(spread(x), (1, 1), (1, 1))),
    "strides": ({"padding": "VALID", "strides": 2}, lambda x: x),
    "wide": ({"padding": "VALID", "kernel_dilation": 2}, lambda x: x),
}
LINE = {
    "causal": ({"padding": "CAUSAL"}, lambda x: zeros(x, (2, 0))),
    "late": ({"padding": "CAUSAL", "kernel_dilation": 2}, lambda x: zeros(x, (4, 0))),
}
PADS = ((0, 0), (1, 1), (1, 1), (0, 0))


def zeros(x, *pads):
    return np.pad(x, ((0, 0), *pads, (0, 0)))


def spread(x):
    """Zeros between the entries."""
    wide = np.zeros((x.shape[0], 2 * x.shape[1] - 1, 2 * x.shape[2] - 1, x.shape[3]), x.dtype)
    wide[:, ::2, ::2] = x
    return wide


def windows(x, strides=1, dilation=1):
    """(rows, 3 * ... * channels), the windows of a padded input, read one by one."""
    space = x.shape[1:-1]
    counts = [(n - 2 * dilation - 1) // strides + 1 for n in space]
    found = []
    for place in np.ndindex(*counts):
        cut = (slice(p * strides, p * strides + 2 * dilation + 1, dilation) for p in place)
        found.append(x[(slice(None), *cut)].reshape(len(x), -1))
    return np.concatenate(found)


class Linen(nn.Module):
    cases: tuple

    @nn.compact
    def __call__(self, x):
        size = (3,) * (x.ndim - 2)
        layers = [nn.Conv(2, size, name=name, **how) for name, how in self.cases]
        return sum(jnp.mean(layer(x) ** 2) for layer in layers)


class Nnx(nnx.Module):
    def __init__(self, cases, ndim):
        for name, how in cases:
            setattr(self, name, nnx.Conv(2, 2, (3,) * ndim, rngs=nnx.Rngs(0), **how))

    def __call__(self, x):
        return sum(jnp.mean(layer(x) ** 2) for _, layer in nnx.iter_children(self))


def linen(cases, x):
    model = Linen(tuple(cases))
    return lambda params, taps: tapped_apply(model.apply, taps)({"params": params}, x)


def of_nnx(cases, x):
    graph, _ = nnx.split(Nnx(cases, x.ndim - 2))
    return lambda params, taps: tap_model(nnx.merge(graph, params), taps)(x)


@pytest.mark.parametrize("make", [linen, of_nnx])
@pytest.mark.parametrize("table", [PLANE, LINE])
def test_every_padding(make, table):
    rng, ndim = np.random.default_rng(0), 2 if table is PLANE else 1
    x = np.float32(rng.normal(size=(*(2, 6, 5)[: ndim + 1], 2)))
    kernel = np.float32(rng.normal(size=(3,) * ndim + (2, 2)))
    params = {name: {"kernel": kernel, "bias": np.float32([0.5, -1])} for name in table}
    spec = [(".*/kernel", ndim + 1, 1)]
    # Flax adds biases by rank promotion.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        loss = make([(name, how) for name, (how, _) in table.items()], x)
        grads, stats = jax.jit(jax.grad(loss, (0, 1)))(params, init_taps(params, spec))
    for name, (how, pad) in table.items():
        rows = windows(pad(x), how.get("strides", 1), how.get("kernel_dilation", 1))
        want = Tap(np.append(rows.sum(0), len(rows)), grads[name]["bias"])
        chex.assert_trees_all_close(stats[f"{name}/kernel"], want, rtol=1e-5, atol=1e-5)


class Stack(nn.Module):
    """One convolution for each of several inputs."""

    @nn.compact
    def __call__(self, x):
        each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.vmap(nn.Conv, **each)(2, (3, 3), padding="CIRCULAR", name="each")(x)


def test_a_stack_of_convolutions():
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 3, 4, 5, 2)))
    kernels = np.float32(rng.normal(size=(2, 3, 3, 2, 2)))
    params = {"each": {"kernel": kernels, "bias": np.zeros((2, 2), np.float32)}}

    def loss(params, taps):
        return jnp.mean(tapped_apply(Stack().apply, taps)({"params": params}, x) ** 2)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        taps = init_taps(params, [(".*/kernel", 3, 1)])
        grads, stats = jax.jit(jax.grad(loss, (0, 1)))(params, taps)
    # Every entry of a window that wraps around sees the whole image.
    whole = np.tile(x.sum((1, 2, 3)), (1, 9))
    want = Tap(np.concatenate([whole, np.full((2, 1), 60)], axis=1), grads["each"]["bias"])
    chex.assert_trees_all_close(stats["each/kernel"], want, rtol=1e-5, atol=1e-5)
