"""The kernel class: orientation, stacks, starts, statistics of inputs, shards, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.core.calibration import compress_calibrated, gram_init, gram_update
from jaxlab.methods.monarch import (
    Monarch,
    monarch_shapes,
    monarch_to_dense,
    project_to_monarch,
)
from jaxlab.models.layers import Conv
from jaxlab.training.sharding import make_mesh, param_specs


def kernel(*shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def test_a_kernel_is_the_transpose_of_the_functions_matrix():
    w = kernel(10, 7)
    made = Monarch.from_dense(w)
    assert made.sizes == monarch_shapes(10, 7)
    params, residual = project_to_monarch(w.T, monarch_shapes(10, 7))
    np.testing.assert_allclose(
        made.to_dense(), monarch_to_dense(params, made.sizes).T, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(residual, jnp.linalg.norm(made.to_dense() - w), rtol=1e-5)


def test_product_never_forms_the_dense_matrix():
    w = Monarch.from_dense(kernel(64, 48), nblocks=4)
    for product, n in [(lambda x, w: x @ w, 64), (lambda x, w: x @ w.T, 48)]:
        text = jax.jit(product).lower(jnp.ones((5, n)), w).as_text()
        assert "64x48" not in text
        assert "48x64" not in text
    # (64 + 48) 48 / 4 parameters.
    assert w.cost(5).flops == 2 * 5 * 1344
    assert w.nbytes == 4 * 1344
    assert w.cost(5).bytes == w.nbytes + 4 * 5 * (64 + 2 * 48 + 48)


@pytest.mark.parametrize("init", ["project", "variance_preserving", "official", "mup"])
def test_every_start_has_the_same_structure_and_is_deterministic(init):
    w = kernel(3, 12, 10, dtype=jnp.bfloat16)

    def build(w):
        return Monarch.from_dense(w, k=3, l=2, rank=2, init=init, key=jax.random.key(1))

    shapes = jax.eval_shape(build, w)
    assert shapes.shape == (3, 12, 10)
    made, again = jax.jit(build)(w), jax.jit(build)(w)
    assert jax.tree.structure(made) == jax.tree.structure(shapes)
    assert made.w1.shape == (3, 3, 4, 4)
    assert made.w2.shape == (3, 2, 5, 6)
    assert made.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made.w1, again.w1)


def grams_of(*shape, seed=1):
    """Correlated inputs, with one that is always 0."""
    *stack, d = shape
    x = jax.random.normal(jax.random.key(seed), (*stack, 3 * d, d))
    x = x @ jax.random.normal(jax.random.key(seed + 1), (d, d))
    x = x.at[..., 0].set(0.0)
    update = lambda x: gram_update(gram_init(d), x)  # noqa: E731
    return x, (jax.vmap(update) if stack else update)(x)


def test_statistics_of_the_inputs_lower_the_error_of_the_outputs():
    w = kernel(2, 16, 16)
    x, gram = grams_of(2, 16)
    build = jax.jit(lambda w, gram: Monarch.from_dense(w, gram=gram))
    plain, weighted = build(w, None), build(w, gram)

    def output_error(made):
        return np.linalg.norm(np.asarray(x @ made.to_dense() - x @ w), axis=(1, 2))

    assert (output_error(weighted) < 0.9 * output_error(plain)).all()
    # A stack is its layers, each with its own inputs.
    second = jax.tree.map(lambda g: g[1], gram)
    single = Monarch.from_dense(w[1], gram=second)
    np.testing.assert_allclose(weighted.to_dense()[1], single.to_dense(), atol=1e-3)


def test_calibration_offers_them():
    params = {"up": {"kernel": kernel(16, 16)}}
    x, gram = grams_of(16)
    made = compress_calibrated(
        lambda params, x: x @ params["up"]["kernel"],
        params,
        [(".*/kernel", "monarch", {"nblocks": 4})],
        [x],
    )["up"]["kernel"]
    expected = Monarch.from_dense(params["up"]["kernel"], gram=gram)
    np.testing.assert_allclose(made.to_dense(), expected.to_dense(), atol=1e-3)


def test_shards_are_whole_blocks():
    w = Monarch.from_dense(kernel(16, 24), nblocks=4)
    assert w.tile == (4, 4)
    mesh = make_mesh(data=1, model=2)

    def specs(w, *spec):
        found = param_specs({"kernel": w}, [("kernel", spec)], mesh)["kernel"]
        return [tuple(s) for s in (found.w1, found.w2)]

    # Along the input both factors are split, so that only the outputs are summed over devices.
    assert specs(w, "model", None) == [("model", None, None), (None, None, "model")]
    assert specs(w, None, "model") == [(None, None, None), (None, "model", None)]
    for padded in (
        Monarch.from_dense(kernel(14, 22)),
        Monarch.from_dense(kernel(12, 10), nblocks=3),
    ):
        assert padded.tile[1] == 22 or padded.sizes.k == 3
        for spec in (("model", None), (None, "model")):
            for names, leaf in zip(specs(padded, *spec), (padded.w1, padded.w2), strict=True):
                sizes = [n for n, axis in zip(leaf.shape, names, strict=True) if axis]
                assert all(n % 2 == 0 for n in sizes)


def test_split_inputs_need_one_sum_over_devices():
    w, x = Monarch.from_dense(kernel(16, 24), nblocks=4), kernel(5, 16, seed=1)
    mesh = make_mesh(data=1, model=2)
    specs = param_specs({"kernel": w}, [("kernel", ("model", None))], mesh)["kernel"]
    place = lambda a, s: jax.device_put(a, jax.sharding.NamedSharding(mesh, s))  # noqa: E731
    placed = jax.tree.map(place, w, specs)
    x = place(x, jax.sharding.PartitionSpec(None, "model"))
    compiled = jax.jit(lambda x, w: x @ w).lower(x, placed).compile()
    text = compiled.as_text()
    assert text.count(" all-reduce(") == 1
    assert not any(name in text for name in ("all-gather(", "all-to-all(", "collective-permute("))
    np.testing.assert_allclose(compiled(x, placed), x @ w, atol=1e-5)


def test_a_convolution_multiplies_patches():
    assert not Monarch.dense_product
    from flax import nnx

    layer = Conv(4, 8, kernel_size=(2, 2), rngs=nnx.Rngs(0))
    x = kernel(2, 5, 5, 4, seed=2)
    dense = Monarch.from_dense(layer.kernel.get_value(), nblocks=2)
    layer.kernel = nnx.Param(dense)
    through_factors = layer(x)
    layer.kernel = nnx.Param(dense.to_dense())
    np.testing.assert_allclose(through_factors, layer(x), atol=1e-5)


def test_leaving_the_factors_keeps_the_function():
    """What a switch to dense training needs: the same outputs, the same each time."""
    w, x = Monarch.from_dense(kernel(64, 32)), kernel(9, 64, seed=1)
    factors, dense = jnp.sum((x @ w) ** 2), jnp.sum((x @ w.to_dense()) ** 2)
    assert abs(float(factors - dense)) < 1e-5 * float(dense)
    np.testing.assert_array_equal(w.to_dense(), w.to_dense())


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"init": "official"}, "init='official' needs a key"),
        ({"init": "projekt"}, "init='projekt' is not|did you mean 'project'"),
        ({"gain": 0.5}, "gain=0.5 is for random factors; nearest: 1.0"),
        ({"nblocks": 11}, r"nblocks=11 must be in \[1, 10\]"),
        ({"gram": gram_init(9)}, r"vectors of shape \(9,\).*nearest: \(12,\)"),
    ],
)
def test_refusals(hyper, message):
    with pytest.raises(ValueError, match=message):
        Monarch.from_dense(jnp.ones((12, 10)), **hyper)


def test_weights_that_are_no_kernels():
    with pytest.raises(TypeError, match="floating, not int32"):
        Monarch.from_dense(jnp.ones((8, 8), jnp.int32))
    with pytest.raises(ValueError, match="2 of 64 entries"):
        Monarch.from_dense(jnp.ones((8, 8)).at[0, :2].set(jnp.inf))
    with pytest.raises(ValueError, match="factors that may be matrices: none"):
        jaxlab.compress(
            {"kernel": kernel(8, 8)},
            [("kernel", "monarch", {}), ("kernel/w1", "low_rank", {"rank": 1})],
        )


@pytest.mark.parametrize(
    ("shape", "hyper"),
    [
        ((16, 24), {"nblocks": 4}),
        ((10, 7), {"nblocks": 4}),  # padded on both sides
        ((64, 64), {"k": 8, "l": 4, "rank": 2}),
    ],
)
def test_blocked_outputs_are_the_same_matrix_in_another_order(shape, hyper):
    w = jax.random.normal(jax.random.key(0), shape)
    blocked = Monarch.from_dense(w, blocked=True, **hyper)
    # Output t l + j of an interleaved matrix is output j s + t of a blocked one.
    blocks, s = blocked.sizes.l, blocked.sizes.s
    order = np.arange(blocks * s).reshape(blocks, s).T.ravel()
    padded = jnp.pad(w, ((0, 0), (0, blocks * s - shape[1])))
    plain = Monarch.from_dense(padded[:, order], **hyper).to_dense()
    back = np.zeros((shape[0], blocks * s), np.float32)
    back[:, order] = plain
    np.testing.assert_allclose(blocked.to_dense(), back[:, : shape[1]], atol=1e-5)
    x, y = jnp.ones((3, shape[0])), jnp.ones((3, shape[1]))
    np.testing.assert_allclose(x @ blocked, x @ blocked.to_dense(), atol=1e-4)
    np.testing.assert_allclose(y @ blocked.T, y @ blocked.to_dense().T, atol=1e-4)
    again = Monarch.from_dense(blocked.to_dense(), blocked=True, **hyper)
    np.testing.assert_allclose(again.to_dense(), blocked.to_dense(), atol=1e-5)


def test_blocked_gradients_are_those_of_the_dense_array():
    w = Monarch.from_dense(jax.random.normal(jax.random.key(0), (12, 18)), nblocks=3, blocked=True)
    x = jax.random.normal(jax.random.key(1), (5, 12))
    actual = jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w)), (0, 1))(w, x)
    expected = jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w.to_dense())), (0, 1))(w, x)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), actual, expected)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), w)
    np.testing.assert_allclose(jax.vmap(lambda w: x @ w)(stack)[0], x @ w, atol=1e-5)


def test_a_bias_that_takes_over_the_mean_leaves_the_factors_the_rest():
    """Inputs far from 0: what the bias cannot make up for is the covariance alone."""
    scale = jnp.linspace(0.1, 1.0, 16)[None, :]
    x = 100 + scale * jax.random.normal(jax.random.key(1), (200, 16))
    gram, w = gram_update(gram_init(16), x), kernel(16, 16)

    def error(**how):
        change = w - Monarch.from_dense(w, nblocks=4, **how).to_dense()
        return jnp.linalg.norm((x - jnp.mean(x, 0, keepdims=True)) @ change)

    best = error(gram=gram, center=True)
    assert best < 0.98 * error()
    assert best < 0.98 * error(gram=gram)


def test_statistics_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="seen no vectors"):
        Monarch.from_dense(kernel(16, 16), gram=gram_init(16))
    broken = gram_update(gram_init(16), jnp.full((2, 16), jnp.nan))
    with pytest.raises(ValueError, match="not finite"):
        Monarch.from_dense(kernel(16, 16), gram=broken)
