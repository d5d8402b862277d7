"""Taps in a user's own NNX models, under its transformations, against explicit sums."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.interop.flax_taps import tap_model
from jaxlab.optim.mkor import Tap, init_taps, unused


@pytest.fixture(autouse=True)
def _loose():
    # Flax adds biases and multiplies flat arrays by rank promotion, and this library may not.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def normal(seed, *shape):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-5)


def split(make):
    """A model's graph and random parameters, nothing of which is computed."""
    graph, like = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    draw = lambda w: np.float32(rng.normal(size=w.shape))  # noqa: E731
    return graph, jax.tree.map(draw, nnx.to_pure_dict(like))


def observed(make, x, spec=None):
    """Parameters, their gradients, and the statistics."""
    graph, params = split(make)

    def loss(params, taps):
        return jnp.mean(tap_model(nnx.merge(graph, params), taps)(x) ** 2)

    return params, *jax.jit(jax.grad(loss, (0, 1)))(params, init_taps(params, spec))


def sums(rows, bias):
    """What is expected: of the rows, and the gradient of the bias beside the kernel."""
    rows = np.asarray(rows).reshape(-1, rows.shape[-1])
    return Tap(np.append(rows.sum(0), len(rows)), np.asarray(bias).reshape(-1))


def linear(rngs, n=4, o=4):
    return nnx.Linear(n, o, rngs=rngs)


class Stacks(nnx.Module):
    """A scan over layers, then one layer for each row, of which both kinds of stack are made."""

    def __init__(self):
        each = nnx.vmap(lambda key: linear(nnx.Rngs(key)))
        self.layers = each(jax.random.split(jax.random.key(0), 3))
        self.heads = each(jax.random.split(jax.random.key(0), 2))

    def __call__(self, x):
        @nnx.remat
        def layer(x, own):
            return jnp.tanh(own(x))

        x = nnx.scan(layer, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        axes = nnx.StateAxes({nnx.Param: 0, ...: None})
        return nnx.vmap(lambda own, x: own(x), in_axes=(axes, 0))(self.heads, x)


def test_every_layer_of_a_stack_has_its_own_row():
    x = normal(1, 2, 5, 4)
    params, grads, stats = observed(Stacks, x)
    assert stats["layers/kernel"].a.shape == (3, 5)
    for k in range(3):
        own = jax.tree.map(lambda w, k=k: w[k], params["layers"])
        row = jax.tree.map(lambda s, k=k: s[k], stats["layers/kernel"])
        close(row, sums(x, grads["layers"]["bias"][k]))
        x = np.tanh(x @ own["kernel"] + own["bias"])
    for k in range(2):
        row = jax.tree.map(lambda s, k=k: s[k], stats["heads/kernel"])
        close(row, sums(x[k], grads["heads"]["bias"][k]))


class Calls(nnx.Module):
    """Layers that are called in other ways than most, side by side."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.keyword = linear(rngs)
        self.jitted = linear(rngs)
        self.made = nnx.LinearGeneral(4, 4, dot_general_cls=lambda: scaled, rngs=rngs)
        self.axes = nnx.LinearGeneral((5, 4), (2, 3), axis=(-1, 1), rngs=rngs)
        self.batch = nnx.LinearGeneral(4, 2, batch_axis={0: 3}, rngs=rngs)
        self.rest = nnx.List([nnx.LoRALinear(4, 2, lora_rank=1, rngs=rngs)])
        self.attention = nnx.MultiHeadAttention(2, 4, 6, decode=False, rngs=rngs)

    def __call__(self, x):
        y = self.keyword(inputs=x), self.keyword(x**2), nnx.jit(lambda m, x: m(x))(self.jitted, x)
        z = self.made(x), self.axes(x), self.batch(x), self.rest[0](x)
        return sum(jnp.mean(y**2) for y in (*y, *z, self.attention(x)))


def scaled(x, w, dims, **kwargs):
    return 2 * jax.lax.dot_general(x, w, dims, **kwargs)


SPEC = [
    ("axes/kernel", 2, 2),
    ("attention/(query|key|value)/kernel", 1, 2),
    ("attention/out/kernel", 2, 1),
    ".*/kernel",
]


def test_layers_however_they_are_called():
    x = normal(2, 3, 5, 4)
    _, grads, stats = observed(Calls, x, SPEC)
    rows = {
        "keyword": np.stack([x, x**2]),
        "jitted": x,
        "made": x,
        "axes": x.reshape(3, 20),  # flax sorts the axes
        "rest/0": x,
        "attention/query": x,
    }
    for name, inputs in rows.items():
        beside = grads
        for part in name.split("/"):
            beside = beside[int(part) if part.isdigit() else part]
        close(stats[f"{name}/kernel"], sums(inputs, beside["bias"]))
    # What all keys have in common moves no softmax: its gradient is rounding of such terms as the
    # kernel's gradient is made of.
    key, terms = stats["attention/key/kernel"], grads["attention"]["key"]["kernel"]
    close(key.a, sums(x, key.g).a)
    assert np.max(np.abs(key.g)) < 1e-6 * np.max(np.abs(terms))
    for k in range(3):
        own = jax.tree.map(lambda s, k=k: s[k], stats["batch/kernel"])
        close(own, sums(x[k], grads["batch"]["bias"][k]))
    out = stats["attention/out/kernel"]
    assert out.a.shape == (7,)
    close((out.g, out.a[-1]), (grads["attention"]["out"]["bias"], 15.0))


def test_an_outer_vmap_and_a_model_that_was_tapped_before():
    x = normal(3, 2, 5, 4)
    make = lambda: linear(nnx.Rngs(0))  # noqa: E731
    params, _, want = observed(make, x)
    graph = split(make)[0]

    def each(taps):
        model = tap_model(tap_model(nnx.merge(graph, params), taps), taps)
        return jnp.mean(jax.vmap(model)(x) ** 2)

    close(jax.jit(jax.grad(each))(init_taps(params)), want)


class Mine(nnx.Module):
    def __init__(self, rngs):
        self.kernel = nnx.Param(jnp.ones((4, 2)))


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (partial(nnx.Einsum, "bi,io->bo", (4, 2)), None, "'0/kernel' belongs to Einsum, whose p"),
        (partial(nnx.ConvTranspose, 4, 2, (3,)), [(".*/kernel", 2, 1)], "to ConvTranspose, whose"),
        (partial(nnx.Conv, 4, 2, (3,), feature_group_count=2), None, "whose groups are no single"),
        (Mine, None, "Mine, whose product is not seen; .*; nearest: leave it out of the spec"),
        (partial(nnx.Embed, 4, 2), [".*/embedding"], "'0/embedding' belongs to Embed"),
        (
            partial(nnx.LinearGeneral, 4, (2, 3)),
            None,
            r"are \(4, 3\).*nearest: spec=\[\('0/k.*1, 2",
        ),
    ],
)
def test_what_no_tap_would_see_is_refused(make, spec, message):
    graph, params = split(lambda: nnx.List([make(rngs=nnx.Rngs(0))]))
    taps = init_taps(params, spec)
    with pytest.raises(ValueError, match=message):
        tap_model(nnx.merge(graph, params), taps)[0](jnp.ones((3, 4)))


def test_a_tap_of_nothing_and_a_layer_that_is_not_called():
    make = lambda: nnx.List([linear(nnx.Rngs(0)), linear(nnx.Rngs(0))])  # noqa: E731
    graph, params = split(make)
    taps = init_taps(params)
    with pytest.raises(ValueError, match="no parameter '2/kernel'; did you mean '"):
        tap_model(nnx.merge(graph, params), {"2/kernel": taps["0/kernel"]})
    loss = lambda taps: jnp.mean(tap_model(nnx.merge(graph, params), taps)[0](jnp.ones((3, 4))))  # noqa: E731
    assert unused(jax.jit(jax.grad(loss))(taps)) == ["1/kernel"]
