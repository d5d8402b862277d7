"""Taps in a user's own Linen models, under flax's transformations, against explicit sums."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.interop.flax_taps import tapped_apply, tapped_layers
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


def observed(model, x, spec=None):
    """Parameters, their gradients, and the statistics."""
    rng, like = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda w: np.float32(rng.normal(size=w.shape)), like["params"])

    def loss(params, taps):
        return jnp.mean(tapped_apply(model.apply, taps)({"params": params}, x) ** 2)

    return params, *jax.jit(jax.grad(loss, (0, 1)))(params, init_taps(params, spec))


def sums(rows, bias):
    """What is expected: of the rows, and the gradient of the bias beside the kernel."""
    rows = np.asarray(rows).reshape(-1, rows.shape[-1])
    return Tap(np.append(rows.sum(0), len(rows)), np.asarray(bias).reshape(-1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return jnp.tanh(nn.Dense(x.shape[-1], name="inside")(x)), None


class Stacks(nn.Module):
    """A scan over layers, then one layer for each row, of which both kinds of stack are made."""

    @nn.compact
    def __call__(self, x):
        each = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Layer), length=3, **each)(name="layers")(x, None)
        return nn.vmap(nn.Dense, in_axes=0, out_axes=0, **each)(2, name="heads")(x)


def test_every_layer_of_a_stack_has_its_own_row():
    x = normal(1, 2, 5, 4)
    params, grads, stats = observed(Stacks(), x)
    assert stats["layers/inside/kernel"].a.shape == (3, 5)
    for k in range(3):
        own = jax.tree.map(lambda w, k=k: w[k], (params, grads)[0]["layers"]["inside"])
        row = jax.tree.map(lambda s, k=k: s[k], stats["layers/inside/kernel"])
        close(row, sums(x, grads["layers"]["inside"]["bias"][k]))
        x = np.tanh(x @ own["kernel"] + own["bias"])
    for k in range(2):
        row = jax.tree.map(lambda s, k=k: s[k], stats["heads/kernel"])
        close(row, sums(x[k], grads["heads"]["bias"][k]))


class Own(nn.Dense):
    """A layer of a user's, above one of flax's."""

    @nn.compact
    def __call__(self, inputs):
        return super().__call__(2 * inputs)


class Product(nn.Module):
    """A product with a variable of its own."""

    @nn.compact
    def __call__(self, x, w, dims, precision=None):
        return jax.lax.dot_general(x, w, dims) * self.param("scale", nn.initializers.ones, ())


class Calls(nn.Module):
    """Layers that are called in other ways than most, side by side."""

    def setup(self):
        self.keyword = nn.Dense(2)
        self.own = Own(2)
        self.jitted = nn.jit(nn.Dense)(2)
        self.made = nn.Dense(2, dot_general_cls=Product)
        self.axes = nn.DenseGeneral((2, 3), axis=(-1, 1))
        self.batch = nn.DenseGeneral(2, axis=-1, batch_dims=(0,))
        self.cell = nn.RNN(nn.SimpleCell(2))

    def __call__(self, x):
        first = self.keyword(inputs=x), self.own(x), self.jitted(x), self.made(x), self.batch(x)
        second = self.keyword(inputs=x**2), self.axes(x), self.cell(x)
        return sum(jnp.mean(y**2) for y in (*first, *second))


def test_layers_however_they_are_called():
    x = normal(2, 3, 5, 4)
    spec = [("axes/kernel", 2, 2), ".*/kernel"]
    _, grads, stats = observed(Calls(), x, spec)
    rows = {
        "keyword": np.stack([x, x**2]),
        "own": 2 * x,
        "jitted": x,
        "made": x,
        "axes": x.reshape(3, 20),  # flax sorts the axes
        "cell/cell/i": x,
    }
    for name, inputs in rows.items():
        beside = grads
        for part in name.split("/"):
            beside = beside[part]
        close(stats[f"{name}/kernel"], sums(inputs, beside["bias"]))
    for k in range(3):
        own = jax.tree.map(lambda s, k=k: s[k], stats["batch/kernel"])
        close(own, sums(x[k], grads["batch"]["bias"][k]))
    # A cell that a scan over time shares adds up all steps: h W_h has no bias, but x W_i has.
    h = stats["cell/cell/h/kernel"]
    close((h.g, h.a[-1]), (grads["cell"]["cell"]["i"]["bias"], 15.0))


def test_an_outer_vmap_and_a_context():
    x, model = normal(3, 2, 5, 4), nn.Dense(3)
    params, want = observed(model, x)[::2]
    taps = init_taps(params)

    def each(taps):
        apply = partial(tapped_apply(model.apply, taps), {"params": params})
        return jnp.mean(jax.vmap(apply)(x) ** 2)

    def inside(taps):
        with tapped_layers(taps):
            return jnp.mean(model.apply({"params": params}, x) ** 2)

    close(jax.jit(jax.grad(each))(taps), want)
    close(jax.jit(jax.grad(inside))(taps), want)


class Refused(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


class Mine(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.ones, (4, 2))


@pytest.mark.parametrize(
    ("layer", "x", "spec", "message"),
    [
        (nn.Einsum((4, 2), "bi,io->bo"), (3, 4), None, "'layer/kernel' belongs to Einsum, whose p"),
        (nn.ConvTranspose(2, (3,)), (1, 5, 4), [(".*/kernel", 2, 1)], "belongs to ConvTranspose"),
        (nn.ConvLocal(2, (3,)), (1, 5, 4), None, "belongs to ConvLocal"),
        (nn.Conv(2, (3,), feature_group_count=2), (1, 5, 4), None, "whose groups are no single"),
        (Mine(), (3, 4), None, "Mine, whose product is not seen; .*; nearest: leave it out of the"),
        (nn.DenseGeneral((2, 3)), (3, 4), None, r"are \(4, 3\) .*nearest: spec=\[\('layer/k.*1, 2"),
    ],
)
def test_what_no_tap_would_see_is_refused(layer, x, spec, message):
    model, x = Refused(layer), jnp.ones(x)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda w: jnp.ones(w.shape), variables)
    taps = init_taps(variables["params"], spec)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tapped_apply(model.apply, taps), variables, x)


def test_a_tap_of_nothing_and_a_layer_that_is_not_called():
    model, x = Refused(nn.Dense(2)), jnp.ones((3, 4))
    params = {"layer": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match="no parameter 'layers/kernel'; did you mean 'layer/ker"):
        tapped_apply(model.apply, {"layers/kernel": init_taps(params)["layer/kernel"]})(
            {"params": params}, x
        )
    params["other"] = params["layer"]
    loss = lambda taps: jnp.mean(tapped_apply(model.apply, taps)({"params": params}, x))  # noqa: E731
    assert unused(jax.jit(jax.grad(loss))(init_taps(params))) == ["other/kernel"]


def test_a_stack_needs_the_form_that_slices_taps():
    params, x = {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))}, jnp.ones((2, 4))
    model = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(3)
    taps = init_taps(params)
    with tapped_layers(taps), pytest.raises(ValueError, match="tapped_apply where a scan or vmap"):
        model.apply({"params": params}, x)
