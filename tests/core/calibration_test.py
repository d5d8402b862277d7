"""Taps: kernels report their inputs through whatever JAX does to the model around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxlab
from jaxlab.core import collect
from jaxlab.core.calibration import Gram, collect_grams, gram_init, gram_update
from jaxlab.core.convolution import Convolution
from jaxlab.models.decoder import decoder
from jaxlab.models.mlp import mlp
from jaxlab.models.resnet import resnet


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


PATHS = ["up", "down"]
PARAMS = {"up": normal(0, 4, 6), "down": normal(1, 6, 4), "bias": jnp.ones(4)}


def model(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def assert_of(gram, x, weight=None, rtol=1e-5):
    """`gram` is that of the inputs `x`, computed apart."""
    expected = gram_update(gram_init(x.shape[-1]), x, weight)
    scale = float(jnp.max(jnp.abs(expected.m2)))
    np.testing.assert_allclose(gram.count, expected.count)
    np.testing.assert_allclose(gram.mean, expected.mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(gram.m2, expected.m2, rtol=rtol, atol=rtol * scale)


def test_inputs_of_every_kernel_over_batches():
    batches = [100 + normal(i, 8, 4) for i in range(3)]
    x = jnp.concatenate(batches)
    grams = collect_grams(model, PARAMS, iter(batches), PATHS)
    assert sorted(grams) == ["down", "up"]
    assert_of(grams["up"], x)
    assert_of(grams["down"], jax.nn.relu(x @ PARAMS["up"]))
    assert list(collect_grams(model, PARAMS, lambda: batches, ["down"])) == ["down"]


def scanned(params, x):
    # Ten uses of one kernel, by slices of the batch.
    def body(carry, row):
        return carry + jnp.sum(model(params, row[None])), None

    return jax.lax.scan(body, 0.0, x)[0]


def test_a_large_first_batch_far_away():
    x = normal(0, 60000, 4) + 1e4
    gram = collect_grams(lambda params, x: x @ params["up"], PARAMS, [x], ["up"])["up"]
    wide = np.asarray(x, np.float64)
    wide -= wide.mean(0)
    m2 = wide.T @ wide
    rounding = np.sqrt(60000) * np.finfo(np.float32).eps / 2
    assert np.abs(np.asarray(gram.m2, np.float64) - m2).max() < rounding * m2.max()


TRANSFORMED = {
    "jit": jax.jit(model),
    "remat": jax.checkpoint(model),
    "vmap": lambda params, x: jax.vmap(functools.partial(model, params))(x),
    "scan": scanned,
    "outputs": lambda params, x: {"aux": jnp.arange(3), "y": model(params, x).astype(jnp.bfloat16)},
}


@pytest.mark.parametrize("name", sorted(TRANSFORMED))
def test_through_transformations(name):
    x = normal(0, 10, 4)
    grams = collect_grams(TRANSFORMED[name], PARAMS, [x[:5], x[5:]], PATHS)
    assert_of(grams["up"], x)
    assert_of(grams["down"], jax.nn.relu(x @ PARAMS["up"]))


def test_all_uses_of_a_shared_kernel_and_none_of_its_transpose():
    def shared(params, x):
        w = params["up"]
        return jnp.sum((x @ w) @ w.T @ w)

    x = normal(0, 10, 4)
    seen = [x, x @ PARAMS["up"] @ PARAMS["up"].T]
    grams = collect_grams(shared, PARAMS, [x], ["up"])
    assert_of(grams["up"], jnp.concatenate(seen))


def test_stacks_are_stacks_of_statistics():
    params, x = {"kernel": normal(0, 3, 4, 4) / 2}, normal(1, 10, 4)

    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w)

    def deep(params, x):
        return jax.lax.scan(lambda x, w: (layer(x, w), None), x, params["kernel"])[0]

    grams = collect_grams(deep, params, [x], weight=lambda x: jnp.ones(len(x)))
    assert grams["kernel"].m2.shape == (3, 4, 4)
    for i, w in enumerate(params["kernel"]):
        assert_of(Gram(*(leaf[i] for leaf in grams["kernel"])), x)
        x = layer(x, w)


def test_factors_of_matrices():
    params = jaxlab.compress(PARAMS, [("up", "low_rank", {"rank": 2})])
    x = normal(0, 10, 4)
    grams = collect_grams(model, params, [x], ["up", "up/v", "up/u"])
    assert_of(grams["up"], x)
    assert_of(grams["up/u"], x)
    assert_of(grams["up/v"], x @ params["up"].u)


def test_sharded_batches_give_the_same_statistics():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    batches = [normal(i, 8, 4) for i in range(2)]
    spread = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in batches]
    expected = collect_grams(model, PARAMS, batches, PATHS)
    got = collect_grams(model, PARAMS, spread, PATHS)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, got, expected)


def test_weights_of_rows_and_of_tokens():
    x = normal(0, 4, 5, 4)
    rows, tokens = jnp.array([1.0, 0.0, 1.0, 2.0]), jnp.arange(20).reshape(4, 5) % 3
    batch = {"x": x.at[1].set(jnp.inf), "rows": rows, "tokens": tokens}
    fn = lambda params, batch: model(params, batch["x"])  # noqa: E731
    grams = collect_grams(fn, PARAMS, [batch], PATHS, weight=lambda b: b["rows"])
    assert_of(grams["up"], x, rows[:, None])
    grams = collect_grams(fn, PARAMS, [batch | {"x": x}], PATHS, weight=lambda b: b["tokens"])
    assert_of(grams["up"], x, tokens)
    flat = batch | {"x": x.reshape(20, 4)}
    with pytest.raises(ValueError, match=r"\(4, 5\) do not fit 'up', whose input .*\(20, 4\)"):
        collect_grams(fn, PARAMS, [flat], PATHS, weight=lambda b: b["tokens"])


def test_the_model_is_not_differentiated():
    d = 64
    params = {str(i): normal(i, d, d) / 8 for i in range(4)}
    x, traces = normal(9, 16, d), []

    def deep(params, x):
        traces.append(x.shape)
        return functools.reduce(lambda x, i: jnp.tanh(x @ params[i]), sorted(params), x)

    observer = collect.Observer(deep, params, ["3"], None)
    observer.collect(params, [x, x, x])
    # Once to find the uses, and once to compile, however many batches there are.
    assert len(traces) == 2
    compiled = observer.step.lower(
        collect.no_grams(params, ["3"]), jnp.bool(True), None, params, x
    ).compile()
    product, statistics = 2 * 16 * d * d, 2 * 16 * d * d
    flops = compiled.cost_analysis()["flops"]
    # Three products lead to the last kernel; a backward pass would add as many at least.
    assert flops < 3 * product + statistics + 10 * (d * d + 16 * d)


def built(make):
    """Parameters drawn in NumPy, which compiles nothing, and the model as a function of them."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype)  # noqa: E731
    params = jax.tree.map(draw, nnx.to_pure_dict(state))
    return params, lambda params, batch: nnx.merge(graphdef, params)(batch)


def test_models_of_this_library():
    images, shape = normal(0, 2, 8, 8, 3), {"image_shape": (8, 8, 3), "num_classes": 4}
    params, fn = built(lambda: mlp(**shape, hidden=(8,), rngs=nnx.Rngs(0)))
    grams = collect_grams(fn, params, [images])
    assert sorted(grams) == ["head/kernel", "layers/0/kernel"]
    assert_of(grams["layers/0/kernel"], images.reshape(2, -1))
    params, fn = built(lambda: resnet(**shape, depth=8, width=8, rngs=nnx.Rngs(0)))
    grams = collect_grams(fn, params, [images], ["stem/kernel"])
    assert_of(grams["stem/kernel"], Convolution((3, 3), (1, 1), "SAME").patches(images))


def test_decoders_unrolled_and_scanned():
    shape = {"vocab_size": 8, "seq_len": 4, "d_model": 8, "depth": 2, "heads": 2, "d_mlp": 12}
    tokens = jnp.array([[0, 3, 1, 7], [5, 5, 2, 0]])
    collect = functools.partial(collect_grams, batches=[tokens], weight=lambda b: b > 0)
    params, fn = built(lambda: decoder(**shape, remat=True, rngs=nnx.Rngs(0)))
    grams = collect(fn, params)
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), *params["layers"].values())
    _, fn = built(lambda: decoder(**shape, remat=True, scan_layers=True, rngs=nnx.Rngs(0)))
    stacked = collect(fn, params | {"layers": stack})
    assert len(grams) == 15
    assert float(grams["head/kernel"].count) == 6
    for name in ("attn/q/kernel", "attn/out/kernel", "mlp/down/kernel"):
        for i in range(2):
            got = jax.tree.map(lambda leaf, i=i: leaf[i], stacked[f"layers/{name}"])
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            jax.tree.map(close, got, grams[f"layers/{i}/{name}"])


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["upp"], "'upp' is no floating array.*did you mean 'up'"),
        (["bias"], "'bias' is no floating array"),
        ("up", r"collect_grams: paths='up' must be a list; nearest: \['up'\]"),
        (["idle"], "never multiplies 'idle'"),
        (["cut"], "nothing reached 'cut'.*differentiable"),
    ],
)
def test_refusals(paths, message):
    def fn(params, x):
        return model(params, x) + jax.lax.stop_gradient(x @ params["cut"])

    params = PARAMS | {"idle": jnp.ones((4, 4)), "cut": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=message):
        collect_grams(fn, params, [jnp.ones((2, 4))], paths)


def test_no_batches():
    with pytest.raises(ValueError, match="there are no batches"):
        collect_grams(model, PARAMS, [])
