"""Every registered method through one table: adding a method's file is enough to be tested here."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlab
from jaxlab.core import registry
from jaxlab.core.matrix import Matrix, is_matrix
from jaxlab.tasks.base import Quality
from jaxlab.training.checkpoint import Checkpoints
from jaxlab.training.sharding import make_mesh, param_specs

METHODS = registry.names("matrix")
DTYPES = [jnp.float32, jnp.bfloat16]
# Relative tolerance of a product against the product with the dense array.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}

method_and_dtype = pytest.mark.parametrize(
    ("method", "dtype"),
    list(itertools.product(METHODS, DTYPES)),
    ids=lambda p: p if isinstance(p, str) else jnp.dtype(p).name,
)
all_methods = pytest.mark.parametrize("method", METHODS)


def dense_kernel(method, dtype=jnp.float32, stack=(), seed=0):
    shape = (*stack, *registry.get("matrix", method).EXAMPLE.shape)
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def make(method, dtype=jnp.float32, stack=(), seed=0):
    cls = registry.get("matrix", method)
    w = dense_kernel(method, dtype, stack, seed)
    return cls.from_dense(w, key=jax.random.key(1), **cls.EXAMPLE.hyper)


def forms(method, dtype=jnp.float32):
    """The training form and, where it is another class, the finalized form."""
    w = make(method, dtype)
    final = w.finalize()
    return [w] if jax.tree.structure(final) == jax.tree.structure(w) else [w, final]


def rows(w, dtype, side="in", seed=2):
    length = w.shape[-2] if side == "in" else w.shape[-1]
    return jax.random.normal(jax.random.key(seed), (5, length), dtype)


def assert_close(actual, expected, dtype):
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_array_less(np.abs(actual - expected).max() / scale, TOLERANCE[dtype])


@method_and_dtype
def test_products_agree_with_the_dense_array(method, dtype, maybe_jit):
    for w in forms(method, dtype):
        d_in, d_out = w.shape
        dense = w.to_dense()
        chex.assert_shape(dense, (d_in, d_out))
        chex.assert_type(dense, dtype)
        assert w.dtype == dtype
        x, y = rows(w, dtype), rows(w, dtype, "out")
        exact = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)
        checks = [
            (lambda w, x: x @ w, (w, x), exact(x, dense)),
            (lambda w, x: x[0] @ w, (w, x), exact(x[0], dense)),
            (lambda w, x: x[None] @ w, (w, x), exact(x, dense)[None]),
            (lambda w, y: w @ y.T, (w, y), exact(dense, y.T)),
            (lambda w, y: w @ y[0], (w, y), exact(dense, y[0])),
            (lambda w, y: y @ w.T, (w, y), exact(y, dense.T)),
            (lambda w, x: w.T @ x[0], (w, x), exact(dense.T, x[0])),
        ]
        for product, operands, expected in checks:
            result = maybe_jit(product)(*operands)
            chex.assert_equal_shape([result, expected])
            chex.assert_type(result, dtype)
            assert_close(result, expected, dtype)
        assert w.T.shape == (d_out, d_in)
        assert w.T.T is w
        rows_taken = maybe_jit(lambda w: w.take(jnp.array([1, 0])))(w)
        assert_close(rows_taken, dense[jnp.array([1, 0])], dtype)


@all_methods
def test_gradients_agree_with_the_dense_array(method, maybe_jit):
    for w in forms(method):
        mask = jaxlab.trainable_mask(w)
        trainable, frozen = jaxlab.partition(w, mask)
        x = rows(w, jnp.float32)

        def through_product(t, x, frozen=frozen):
            return jnp.sum(jnp.sin(x @ jaxlab.combine(t, frozen)))

        def through_dense(t, x, frozen=frozen):
            dense = jaxlab.combine(t, frozen).to_dense()
            return jnp.sum(jnp.sin(jnp.matmul(x, dense, precision="highest")))

        actual = maybe_jit(jax.grad(through_product, (0, 1)))(trainable, x)
        expected = jax.grad(through_dense, (0, 1))(trainable, x)
        chex.assert_trees_all_equal_structs(actual, expected)
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert_close(a, e, jnp.float32)


@all_methods
def test_dtype_of_the_product_is_the_operands(method):
    w = make(method)
    x = rows(w, jnp.bfloat16)
    product = x @ w
    chex.assert_type(product, jnp.bfloat16)
    assert_close(product, x.astype(jnp.float32) @ w, jnp.bfloat16)


@all_methods
def test_numpy_operands_and_refused_ones(method):
    w = make(method)
    x = np.asarray(rows(w, jnp.float32))
    assert isinstance(x @ w, jax.Array)
    assert_close(x @ w, x @ np.asarray(w.to_dense()), jnp.float32)
    with pytest.raises(TypeError, match="cast it"):
        jnp.ones((2, w.shape[0]), jnp.int32) @ w
    with pytest.raises(ValueError, match="does not fit"):
        jnp.ones((2, w.shape[0] + 1)) @ w
    # Silent densification is the one thing that must never happen.
    with pytest.raises(TypeError):
        jnp.dot(x, w)
    with pytest.raises(TypeError, match="not indexable"):
        w[0]


@all_methods
def test_a_stack_works_under_vmap_and_scan(method):
    stack = make(method, stack=(3,))
    assert stack.shape[0] == 3
    assert stack.ndim == 3
    x = rows(make(method), jnp.float32)
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(3)]
    expected = jnp.stack([x @ w for w in singles])
    assert_close(jax.vmap(lambda w: x @ w)(stack), expected, jnp.float32)
    _, scanned = jax.lax.scan(lambda carry, w: (carry, x @ w), None, stack)
    assert_close(scanned, expected, jnp.float32)
    for form in (stack, stack.finalize()):
        chex.assert_equal(form.to_dense().shape, stack.shape)
        for i, w in enumerate(singles):
            assert_close(form.to_dense()[i], w.to_dense(), jnp.float32)
        assert_close(jax.vmap(lambda w: x @ w)(form), expected, jnp.float32)
    with pytest.raises(ValueError, match="vmap"):
        x @ stack


@all_methods
def test_from_dense_and_finalize_can_be_traced(method):
    cls = registry.get("matrix", method)
    w = dense_kernel(method)

    def build(w):
        return cls.from_dense(w, key=jax.random.key(1), **cls.EXAMPLE.hyper).finalize()

    chex.assert_trees_all_close(jax.jit(build)(w), build(w), rtol=1e-5, atol=1e-6)


@all_methods
def test_finalized_form(method):
    w = make(method).at(jnp.float32(1.0))
    final = w.finalize()
    x = rows(w, jnp.float32)
    assert type(final).name in METHODS
    assert final.nbytes <= w.nbytes
    assert_close(x @ final, x @ w, jnp.float32)
    np.testing.assert_array_equal(final.to_dense(), w.to_dense())
    chex.assert_trees_all_equal(final.finalize(), final)


@all_methods
def test_schedule_is_traced(method):
    w = make(method)
    traces = []

    def product(w, progress, x):
        traces.append(None)
        return x @ w.at(progress)

    fn = jax.jit(product)
    for progress in (0.0, 0.25, 1.0):
        chex.assert_tree_all_finite(fn(w, jnp.float32(progress), rows(w, jnp.float32)))
    assert len(traces) == 1


@all_methods
def test_bytes_and_cost_are_of_the_real_buffers(method):
    for w in forms(method):
        assert w.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(w))
        one, ten = w.cost(1), w.cost(10)
        assert ten.flops == 10 * one.flops > 0
        assert one.bytes >= w.nbytes
        (row,) = jaxlab.parameter_table({"kernel": w}).rows
        assert (row.nbytes, row.dense_nbytes) == (w.nbytes, w.to_dense().nbytes)


@all_methods
def test_trains_under_jit_with_donation(method):
    w = make(method)
    mask = jaxlab.trainable_mask(w)
    trainable, frozen = jaxlab.partition(w, mask)
    tx = optax.adamw(1e-2)
    x, target = rows(w, jnp.float32), rows(w, jnp.float32, "out")

    def loss_of(trainable):
        return jnp.mean((x @ jaxlab.combine(trainable, frozen) - target) ** 2)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(trainable, opt):
        loss, grads = jax.value_and_grad(loss_of)(trainable)
        updates, opt = tx.update(grads, opt, trainable)
        return optax.apply_updates(trainable, updates), opt, loss

    opt, losses = tx.init(trainable), []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        for _ in range(60):
            trainable, opt, loss = step(trainable, opt)
            losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


@all_methods
def test_sharded_over_two_devices(method):
    mesh = make_mesh(data=1, model=2)
    x = rows(make(method), jnp.float32)
    for w in forms(method):
        expected, split = x @ w, []
        for spec in [("model", None), (None, "model")]:
            specs = param_specs({"kernel": w}, [("kernel", spec)], mesh)["kernel"]
            placed = jax.tree.map(
                lambda leaf, s: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, s)), w, specs
            )
            result = jax.jit(lambda x, w: x @ w)(x, placed)
            np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
            split += [s for s in jax.tree.leaves(specs, is_leaf=_is_spec) if "model" in tuple(s)]
        # Both axes of every example divide by two, so some child must really be split.
        assert split


@all_methods
def test_checkpoint_and_artefact_round_trips_are_exact(method, tmp_path):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape_of(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    for number, w in enumerate(forms(method, jnp.bfloat16) + forms(method)):
        params = {"layer": {"kernel": w}}
        jaxlab.save(tmp_path / f"{number}.safetensors", params)
        loaded = jaxlab.load(tmp_path / f"{number}.safetensors")
        checkpoints = Checkpoints(tmp_path / str(number), Quality("loss", "min"))
        checkpoints.save(1, params)
        checkpoints.wait()
        restored = checkpoints.restore(1, jax.tree.map(shape_of, params))
        checkpoints.close()
        for copy in (loaded, restored):
            assert jax.tree.structure(copy) == jax.tree.structure(params)
            chex.assert_trees_all_equal_dtypes(copy, params)
            chex.assert_trees_all_equal(copy, params)


@all_methods
def test_bad_arguments_are_refused_with_the_path(method):
    cls = registry.get("matrix", method)
    params = {"enc": {"kernel": dense_kernel(method), "bias": jnp.ones(8)}}

    def compress(params, hyper, pattern="enc/kernel"):
        return jaxlab.compress(params, [(pattern, method, hyper)], key=jax.random.key(0))

    compress(params, cls.EXAMPLE.hyper)
    for bad in cls.EXAMPLE.bad:
        with pytest.raises(ValueError, match="enc/kernel|takes no|needs| is not "):
            compress(params, bad)
    with pytest.raises(ValueError, match="takes no 'surprise'"):
        compress(params, {**cls.EXAMPLE.hyper, "surprise": 1})
    with pytest.raises(ValueError, match=r"enc/bias.*\(8,\)"):
        compress(params, cls.EXAMPLE.hyper, "enc/bias")
    with pytest.raises(TypeError, match=r"enc/kernel.*int32"):
        compress({"enc": {"kernel": jnp.ones((8, 8), jnp.int32)}}, cls.EXAMPLE.hyper)


@all_methods
def test_documents_itself(method):
    cls = registry.get("matrix", method)
    assert cls.__doc__
    assert "to_dense()" in cls.__doc__
    assert cls.from_dense.__doc__
    assert ">>>" in cls.from_dense.__doc__
    assert set(cls.axes) == {
        f.name for f in cls.__dataclass_fields__.values() if not f.metadata.get("static")
    }
    assert method == "dense" or "title=" in jaxlab.cite(make(method))
    assert method in repr(make(method)).lower() or type(make(method)).__name__ in repr(make(method))


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(METHODS, METHODS)))
def test_two_methods_nest_or_refuse_with_a_reason(outer, inner, tmp_path):
    w, inner_cls = make(outer), registry.get("matrix", inner)
    for child in w.axes:
        rule = [(f"kernel/{child}", inner, inner_cls.EXAMPLE.hyper)]
        try:
            params = jaxlab.compress({"kernel": w}, rule, key=jax.random.key(0))
        except (ValueError, TypeError) as error:
            assert f"kernel/{child}" in str(error)  # noqa: PT017
            continue
        nested = params["kernel"]
        assert is_matrix(getattr(nested, child))
        assert nested.shape == w.shape
        x = rows(w, jnp.float32)
        for form in (nested, nested.finalize()):
            assert_close(jax.jit(lambda x, w: x @ w)(x, form), x @ nested.to_dense(), jnp.float32)
            assert_close(
                rows(w, jnp.float32, "out") @ form.T,
                rows(w, jnp.float32, "out") @ nested.to_dense().T,
                jnp.float32,
            )
        trainable, frozen = jaxlab.partition(nested, jaxlab.trainable_mask(nested))
        grads = jax.grad(lambda t, f, x: jnp.sum(x @ jaxlab.combine(t, f)))(trainable, frozen, x)
        chex.assert_tree_all_finite(grads)
        final = {"kernel": nested.finalize()}
        jaxlab.save(tmp_path / "nested.safetensors", final)
        chex.assert_trees_all_equal(jaxlab.load(tmp_path / "nested.safetensors"), final)


def test_some_pair_nests():
    """The test above could pass by refusing everything."""
    w = jaxlab.compress(
        {"kernel": dense_kernel("low_rank")},
        [("kernel", "low_rank", {"rank": 4}), ("kernel/u", "nm", {"n": 1, "m": 4})],
    )["kernel"]
    assert isinstance(w.u, Matrix)
    assert w.finalize().nbytes < w.nbytes


def _is_spec(x):
    return isinstance(x, jax.sharding.PartitionSpec)
