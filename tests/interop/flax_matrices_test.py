"""Matrices in flax's own layers: what the same layers compute with the dense kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlab
from jaxlab.interop.flax_matrices import matrix_apply, matrix_model

RULES = [
    (".*up/kernel", "low_rank", {"rank": 3}),
    (".*down/kernel", "nm", {"n": 2, "m": 4}),
    (".*/(query|key|value|out)/kernel", "quantized", {"quant": "int8", "group": None}),
    (".*conv/kernel", "monarch", {"nblocks": 2}),
]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2, name="conv")(x).reshape(x.shape[0], -1, 8)
        x = x + nn.MultiHeadDotProductAttention(2, name="attn")(x, x)
        return nn.Dense(8, use_bias=False, name="down")(nn.relu(nn.Dense(16, name="up")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 8, (3, 3), strides=2, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x).reshape(x.shape[0], -1, 8)
        x = x + self.attn(x)
        return self.down(nnx.relu(self.up(x)))


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 4)), jnp.float32)


def two_axes(path, kernel):
    """A kernel with its inputs and its outputs flattened."""
    inputs = kernel.ndim - 1
    if path[-2] in ("query", "key", "value"):
        inputs = 1
    return kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1)


def matrices_of(params):
    def flat(path, leaf):
        names = [str(getattr(p, "key", p)) for p in path]
        return two_axes(names, leaf) if names[-1] == "kernel" else leaf

    made = jaxlab.compress(
        jax.tree_util.tree_map_with_path(flat, params), RULES, key=jax.random.key(0)
    )
    is_matrix = lambda w: isinstance(w, jaxlab.Matrix)  # noqa: E731
    # The dense kernels that they stand for.
    dense = jax.tree.map(
        lambda w, like: w.to_dense().reshape(like.shape) if is_matrix(w) else like,
        made,
        params,
        is_leaf=is_matrix,
    )
    return made, dense


def model_of(kind):
    """Its parameters, and a function of these and an input."""
    if kind == "linen":
        model = Linen()
        params = model.init(jax.random.key(1), X)["params"]
        return params, lambda p, x: matrix_apply(model.apply)({"params": p}, x)
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    return nnx.to_pure_dict(state), lambda p, x: matrix_model(nnx.merge(graph, p))(x)


def count(tree):
    leaves = jax.tree.leaves(tree, is_leaf=lambda w: isinstance(w, jaxlab.Matrix))
    return sum(isinstance(w, jaxlab.Matrix) for w in leaves)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("how", [jax.jit, lambda f: f])
def test_a_model_computes_what_it_does_with_the_dense_kernels(kind, how):
    params, apply = model_of(kind)
    made, dense = matrices_of(params)
    assert count(made) == 7
    got, expected = how(apply)(made, X), how(apply)(dense, X)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    # What is packed is multiplied by, too.
    np.testing.assert_allclose(how(apply)(jaxlab.finalize(made), X), got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_it_is_trained(kind):
    params, apply = model_of(kind)
    made, _ = matrices_of(params)
    trained, frozen = jaxlab.partition(made, jaxlab.trainable_mask(made))
    tx = optax.adam(1e-2)

    def loss(trained):
        return jnp.mean(jnp.square(apply(jaxlab.combine(trained, frozen), X) - 1.0))

    @jax.jit
    def step(trained, state):
        value, grads = jax.value_and_grad(loss)(trained)
        updates, state = tx.update(grads, state, trained)
        return optax.apply_updates(trained, updates), state, value

    state, values = tx.init(trained), []
    with jax.numpy_dtype_promotion("standard"):  # of optax
        for _ in range(30):
            trained, state, value = step(trained, state)
            values.append(float(value))
    assert values[-1] < 0.5 * values[0]


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        body = lambda layer, x, _: (nn.relu(layer(x)), None)  # noqa: E731
        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(nn.Dense(6, name="layer"), x, None)[0]


def test_a_stack_of_linen_layers_slices_its_matrices():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    model = Stacked()
    params = model.init(jax.random.key(0), x)["params"]
    made = jaxlab.compress(params, [("layer/kernel", "low_rank", {"rank": 2})])
    dense = {"layer": {**made["layer"], "kernel": made["layer"]["kernel"].to_dense()}}
    got = jax.jit(matrix_apply(model.apply))({"params": made}, x)
    np.testing.assert_allclose(got, model.apply({"params": dense}, x), rtol=1e-5, atol=1e-6)


def test_a_stack_of_nnx_layers_slices_its_matrices():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Linear(6, 6, rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return nnx.relu(layer(x))

    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    graph, state = nnx.split(make(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    made = jaxlab.compress(params, [("kernel", "low_rank", {"rank": 2})])
    dense = {**made, "kernel": made["kernel"].to_dense()}
    got = jax.jit(lambda p: forward(x, matrix_model(nnx.merge(graph, p))))(made)
    expected = forward(x, nnx.merge(graph, dense))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, None])
def test_a_layer_computes_in_its_dtype(dtype):
    x = jnp.ones((2, 8), jnp.bfloat16)
    made = {"kernel": low_rank((8, 4), jnp.ones)}
    apply = matrix_apply(nn.Dense(4, use_bias=False, dtype=dtype).apply)
    with jax.numpy_dtype_promotion("standard"):  # as flax does it without a dtype
        y = apply({"params": made}, x)
    assert y.dtype == (jnp.bfloat16 if dtype else jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), 8 * jnp.ones((2, 4)), rtol=1e-2)


def low_rank(shape, draw=lambda shape: jax.random.normal(jax.random.key(0), shape)):
    w = draw(shape)
    return jaxlab.compress({"w": w}, [("w", "low_rank", {"rank": 2})])["w"]


def test_what_a_matrix_does_not_do_is_said_by_path():
    images, rows = jnp.ones((1, 4, 4, 4)), jnp.ones((2, 8))
    linen = [
        (nn.Conv(8, (3, 3), feature_group_count=2), (18, 8), images, "groups, dilation"),
        (nn.Conv(8, (3, 3), kernel_dilation=2), (36, 8), images, "groups, dilation"),
        (nn.Conv(8, (3, 3), padding="CIRCULAR"), (36, 8), images, "padding='CIRCULAR'"),
        (nn.Dense(4), (8, 6), rows, r"is of \(8, 6\), and its layer needs \(8, 4\)"),
        (nn.DenseGeneral(4, batch_dims=(0,)), (8, 4), rows, "batch axes"),
    ]
    for layer, shape, x, says in linen:
        params = {"kernel": low_rank(shape), "bias": jnp.zeros(4)}
        with pytest.raises(ValueError, match=f"'kernel'.*{says}|kernel.*{says}"):
            matrix_apply(layer.apply)({"params": params}, x)
    graph, state = nnx.split(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    params = {**nnx.to_pure_dict(state), "kernel": low_rank((8, 6))}
    with pytest.raises(ValueError, match="'kernel' is of"):
        matrix_model(nnx.merge(graph, params))(rows)
    masked = nnx.Conv(4, 8, (3, 3), mask=jnp.ones((3, 3, 4, 8)), rngs=nnx.Rngs(0))
    graph, state = nnx.split(masked)
    params = {**nnx.to_pure_dict(state), "kernel": low_rank((36, 8))}
    with pytest.raises(ValueError, match="'kernel' has a mask"):
        matrix_model(nnx.merge(graph, params))


def test_a_bias_with_a_name_for_its_axis_is_added():
    layer = nn.Dense(4, bias_init=nn.with_partitioning(nn.initializers.ones, ("model",)))
    x = jnp.ones((2, 8))
    params = layer.init(jax.random.key(0), x)["params"]
    made = {**params, "kernel": low_rank((8, 4))}
    got = matrix_apply(layer.apply)({"params": made}, x)
    np.testing.assert_allclose(got, x @ made["kernel"] + 1.0, rtol=1e-6)


def test_a_kernel_of_three_axes_that_was_not_flattened_is_named():
    x = jnp.ones((2, 3, 8))
    model = nn.MultiHeadDotProductAttention(2)
    params = model.init(jax.random.key(0), x, x)["params"]
    made = jaxlab.compress(params, [("query/kernel", "low_rank", {"rank": 2})])
    with pytest.raises(ValueError, match=r"'query/kernel' is of \(8, 2, 4\).*reshape\(8, 8\)"):
        matrix_apply(model.apply)({"params": made}, x, x)


def test_a_layer_that_wants_an_array_is_told_what_multiplies():
    graph, state = nnx.split(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    params = {**nnx.to_pure_dict(state), "kernel": low_rank((8, 4))}
    for wants in (
        lambda: nnx.merge(graph, params)(jnp.ones((2, 8))),
        lambda: np.asarray(params["kernel"]),
        lambda: jnp.asarray(params["kernel"]),
    ):
        with pytest.raises(TypeError, match="LowRank is no array: multiply with x @ W.*flax"):
            wants()
    assert (np.ones((2, 8), np.float32) @ params["kernel"]).shape == (2, 4)


@pytest.mark.parametrize("axis", [(-1, -2), (1, 3), (2,), -1])
def test_general_layers_contract_their_axes_in_order(axis):
    layer, x = nn.DenseGeneral(5, axis=axis), X[..., :3, :3]
    params = layer.init(jax.random.key(0), x)["params"]
    flat = {**params, "kernel": params["kernel"].reshape(-1, 5)}
    made = jaxlab.compress(flat, [("kernel", "dense", {})])
    y = matrix_apply(layer.apply)({"params": made}, x)
    np.testing.assert_allclose(y, layer.apply({"params": params}, x), rtol=1e-5, atol=1e-5)


def test_parameters_that_say_how_they_are_split():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("a", "b"))
    layer, x = nn.Dense(8, kernel_init=init), X[..., 0]
    params = layer.init(jax.random.key(0), x)["params"]
    made = jaxlab.compress(params, [("kernel/value", "nm", {"n": 2, "m": 4})])
    y = matrix_apply(layer.apply)({"params": made}, x)
    expected = x @ jaxlab.to_dense(made["kernel"].value) + params["bias"][None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_table_of_parameters_beside_random_keys():
    params = {"layer": {"kernel": jnp.ones((8, 4))}, "key": jax.random.key(0)}
    made = jaxlab.compress(params, [(".*/kernel", "low_rank", {"rank": 2})])
    assert [row.path for row in jaxlab.parameter_table(made).rows] == ["key", "layer/kernel"]
