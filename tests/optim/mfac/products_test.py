"""The forms of the products that GPUs may run, against numpy: every row shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac import products as module
from jaxlab.optim.mfac import window_init, window_push
from jaxlab.optim.mfac.products import (
    COMBINATIONS,
    PRODUCTS,
    _combined,
    _dotted,
    row_combination,
    row_products,
)


def draw(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("shape", [(5, 7), (8, 6, 4), (6, 2, 3, 4), (1, 9)])
def test_sums_are_the_dots(shape, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        rows, x, weights = (
            draw(0, shape, dtype),
            draw(1, shape[1:], dtype),
            draw(2, shape[:1], dtype),
        )
        tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
        wide = np.asarray(rows, np.float64), np.asarray(x, np.float64), np.asarray(weights, float)
        products = np.einsum("mi,i->m", wide[0].reshape(len(rows), -1), wide[1].reshape(-1))
        combined = np.einsum("m,mi->i", wide[2], wide[0].reshape(len(rows), -1)).reshape(x.shape)
        for form in (*PRODUCTS.values(), _dotted, row_products):
            got = jax.jit(form)(rows, x)
            assert got.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_allclose(got, products, rtol=tolerance, atol=tolerance)
        for form in (*COMBINATIONS.values(), _combined, row_combination):
            got = jax.jit(form)(weights, rows)
            assert got.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_allclose(got, combined, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 3, 0)])
def test_scalars_and_empty_leaves(shape):
    rows, x, weights = (draw(i, s, jnp.float32) for i, s in enumerate((shape, shape[1:], (4,))))
    expected = np.asarray(rows * x) if len(shape) == 1 else np.zeros(4)
    np.testing.assert_allclose(row_products(rows, x), expected, rtol=1e-6)
    got = row_combination(weights, rows)
    assert got.shape == shape[1:]
    np.testing.assert_allclose(got, np.tensordot(weights, rows, 1), rtol=1e-5)


@pytest.mark.parametrize("products", sorted(PRODUCTS))
@pytest.mark.parametrize("combination", sorted(COMBINATIONS))
def test_a_float32_vector_loses_nothing_to_rows_of_bfloat16(products, combination):
    rows, x = draw(0, (8, 5, 16), jnp.bfloat16), draw(1, (5, 16), jnp.float32)
    weights = draw(2, (8,), jnp.float32) * 1e3
    exact = np.tensordot(np.asarray(rows, np.float64), np.asarray(x, np.float64), 2)
    got = jax.jit(PRODUCTS[products])(rows, x)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-5)
    exact = np.tensordot(np.asarray(weights, np.float64), np.asarray(rows, np.float64), 1)
    got = jax.jit(COMBINATIONS[combination])(weights, rows)
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_gpu_runs_the_form_that_is_set_for_the_dtype(dtype, monkeypatch):
    assert set(module.ON_GPU) <= {"bfloat16", "float32"}
    for forms in module.ON_GPU.values():
        assert forms.products in PRODUCTS
        assert forms.combination in COMBINATIONS

    def text():
        rows, x = jnp.zeros((8, 5, 16), dtype), jnp.zeros((5, 16), dtype)
        both = lambda rows, x: row_combination(row_products(rows, x), rows)  # noqa: E731
        return jax.jit(both).trace(rows, x).lower(lowering_platforms=("cuda",)).as_text()

    monkeypatch.setitem(module.ON_GPU, dtype, module.Forms())
    assert "dot_general" not in text()
    monkeypatch.setitem(module.ON_GPU, dtype, module.Forms(combination="parts"))
    assert text().count("dot_general") == 1
    monkeypatch.setitem(module.ON_GPU, dtype, module.Forms("sums_stored"))
    assert text().count("optimization_barrier") == 2


def test_arrays_of_few_numbers_are_one_where_one_device_has_all(monkeypatch):
    like = {"bias": (3,), "kernel": (64, 512), "norm": (), "offset": (2, 1)}
    xs = {name: draw(i, shape, jnp.float32) for i, (name, shape) in enumerate(like.items())}
    pairs = [(jnp.stack([x, 2 * x]), x) for x in xs.values()]
    assert [x.shape for _, x in module.joined(pairs)] == list(like.values())  # there are two here
    monkeypatch.setattr(module, "on_one_device", lambda: True)
    rows, vectors = zip(*module.joined(pairs), strict=True)
    assert [x.shape for x in vectors] == [(64, 512), (6,)]
    assert [r.shape for r in rows] == [(2, 64, 512), (2, 6)]
    together = sum(row_products(*pair) for pair in zip(rows, vectors, strict=True))
    np.testing.assert_allclose(together, sum(row_products(*pair) for pair in pairs), rtol=1e-6)
    # Of many that are few each, too many numbers would be copied.
    assert len(module.joined(pairs[1:2] + 99 * pairs[:1])) == 2
    assert len(module.joined(pairs[1:2] + 999 * pairs[:1])) == 1000
    mixed = [(rows, x.astype(jnp.bfloat16) if x.ndim == 1 else x) for rows, x in pairs]
    assert len(module.joined(mixed)) == 4


def test_a_window_is_the_same_with_arrays_joined_inside_shard_map():
    grads = {"bias": draw(0, (6,), jnp.float32), "kernel": draw(1, (128, 512), jnp.float32)}
    grads["scale"] = draw(2, (4,), jnp.float32)
    win = window_init(3, grads)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row, of_window = jax.P("data"), jax.P(None, "data")
    specs = win._replace(
        rows=jax.tree.map(lambda _: of_window, grads), gram=jax.P(), head=jax.P(), count=jax.P()
    )
    push = jax.shard_map(
        lambda win, g: window_push(win, g, axis_name="data"),
        mesh=mesh,
        in_specs=(specs, by_row),
        out_specs=specs,
    )
    text = str(jax.make_jaxpr(push)(win, grads))
    assert "f32[3,5]" in text  # of a device: three of a bias' numbers, two of a scale's
    sharded, whole = jax.jit(push)(win, grads), window_push(win, grads)
    np.testing.assert_allclose(sharded.gram, whole.gram, rtol=1e-6)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, sharded.rows, whole.rows))


def test_on_a_gpu_the_largest_array_is_launched_before_the_others(monkeypatch):
    shapes = [(3,), (64, 2), (), (5,), (2, 2), (7,)]
    weights = draw(0, (4,), jnp.float32)
    arrays = [draw(i, (4, *shape), jnp.float32) for i, shape in enumerate(shapes)]

    def text(fn, arrays):
        return jax.jit(fn).trace(weights, arrays).lower(lowering_platforms=("cuda",)).as_text()

    def combined():  # another function each time: what was traced is not traced again
        return lambda weights, arrays: module.row_combinations(weights, arrays)

    assert "stablehlo.fft" not in text(combined(), arrays)  # there are two devices here
    monkeypatch.setattr(module, "on_one_device", lambda: True)
    whole = text(combined(), arrays)
    assert whole.count("stablehlo.fft") == 1
    assert whole.count("stablehlo.optimization_barrier") == 1
    assert "stablehlo.fft" not in text(combined(), arrays[:5])  # too few for a graph
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_columns = [jax.P(None, "data") if x.ndim == 3 else jax.P() for x in arrays]
    split = jax.shard_map(
        combined(),
        mesh=mesh,
        in_specs=(jax.P(), by_columns),
        out_specs=[jax.P(*spec[1:]) for spec in by_columns],
    )
    assert "stablehlo.fft" not in text(split, arrays)  # the weights would be each device's own
    for got, rows in zip(jax.jit(split)(weights, arrays), arrays, strict=True):
        np.testing.assert_allclose(got, np.tensordot(weights, rows, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("branch", ["cpu", "default"])
def test_a_gradient_is_written_alike_by_choice_and_by_branch(branch, monkeypatch):
    def named(*args, **branches):
        return branches[branch if branch in branches else "default"](*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", named)
    grads = {"a": draw(0, (4, 3), jnp.float32), "b": draw(1, (5,), jnp.float32)}
    win = window_push(window_push(window_init(2, grads), grads), jax.tree.map(jnp.sin, grads))
    np.testing.assert_array_equal(win.rows["a"], jnp.stack([grads["a"], jnp.sin(grads["a"])]))
    assert (int(win.head), int(win.count)) == (0, 2)
    skipped = window_push(win, {**grads, "b": grads["b"].at[2].set(jnp.inf)})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, skipped, win))


def test_what_decides_may_vary_over_axes_that_a_gradient_does_not():
    grads = {"a": draw(0, (4,), jnp.float32), "b": draw(1, (3,), jnp.float32)}
    win = window_init(2, grads)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def pushed(win, g, keep):
        found = window_push(win, g, keep=keep[0])
        return jax.tree.map(lambda rows: rows[None], found.rows)

    rows = jax.shard_map(
        pushed, mesh=mesh, in_specs=(jax.P(), jax.P(), jax.P("data")), out_specs=jax.P("data")
    )(win, grads, jnp.array([True, False]))
    for name, g in grads.items():
        np.testing.assert_array_equal(rows[name][0, 0], g)
        assert not jnp.any(rows[name][1])
