"""N:M matrices in the kernels' form: exactness, bytes, gradients, shards, what a GPU is given."""

import dataclasses
import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.kernels import dispatch, measured
from jaxlab.kernels.nm_matmul import nm_matmul as nm_matmul_of_arrays
from jaxlab.kernels.nm_matmul.shapes import Problem
from jaxlab.kernels.packing_nm import NM_LAYOUT_VERSION
from jaxlab.methods.nm import NM, NMPacked, NMPattern, NMPlanes, nm_mask, nm_matmul, nm_pack_planes
from jaxlab.methods.quantized import LARGEST, round_to_integers
from jaxlab.training.sharding import make_mesh, param_specs


def kernel(d_in, d_out=6, dtype=jnp.float32, stack=()):
    w = np.random.default_rng(d_in).normal(size=(*stack, d_in, d_out))
    return jnp.asarray(w, dtype)


def bits_of(x):
    x = np.asarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


# With an order of the kernels, of several tiles and of blocks; and one that only XLA reads.
PATTERNS = [
    (NMPattern(2, 4), 256),
    (NMPattern(1, 8), 512),
    (NMPattern(1, 4, block=16), 512),
    (NMPattern(3, 5), 60),
]


@pytest.mark.parametrize(("pattern", "d_in"), PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kept_values_come_back_bit_for_bit(pattern, d_in, dtype):
    w = kernel(d_in, dtype=dtype, stack=(2,))
    mask = nm_mask(jnp.abs(w), pattern)
    # After the choice: a negative zero, an infinity and what is no number are values like others.
    odd = jnp.resize(jnp.array([-0.0, jnp.inf, jnp.nan, 1.0], dtype), w.shape)
    for values in (w, odd):
        planes = nm_pack_planes(values, mask, pattern)
        assert (planes.shape, planes.dtype, planes.pattern) == (w.shape, dtype, pattern)
        expected = np.where(mask, np.asarray(values), np.zeros((), dtype))
        np.testing.assert_array_equal(bits_of(planes.to_dense()), bits_of(expected))


@pytest.mark.parametrize("store", ["packed", "planes"])
def test_a_trained_pattern_is_stored_as_it_is_told(store, tmp_path):
    w = kernel(128)
    recipe = {"recipe": "asp", "dense_frac": 0.5, "total_steps": 10}
    trained = NM.from_dense(w, n=2, m=4, store=store, **recipe).advance(jnp.float32(1.0))
    final = jax.jit(lambda w: w.finalize())(trained)
    assert isinstance(final, {"packed": NMPacked, "planes": NMPlanes}[store])
    np.testing.assert_array_equal(final.to_dense(), NMPacked.from_dense(w, n=2, m=4).to_dense())
    np.testing.assert_array_equal(
        trained.at(jnp.float32(1.0)).finalize().to_dense(), final.to_dense()
    )
    jaxlab.save(tmp_path / "w.safetensors", {"w": trained, "final": final})
    loaded = jaxlab.load(tmp_path / "w.safetensors")
    chex.assert_trees_all_equal(loaded, {"w": trained, "final": final})


@pytest.mark.parametrize(("quant", "group"), [("int4", 64), ("int8", None)])
@pytest.mark.parametrize("stack", [(), (2,)])
def test_kept_values_are_rounded_to_the_nearest(quant, group, stack):
    w = kernel(256, stack=stack)
    planes = NMPlanes.from_dense(w, n=2, m=4, quant=quant, group=group)
    pruned = NMPlanes.from_dense(w, n=2, m=4).to_dense()
    integers, scale = round_to_integers(pruned, LARGEST[quant], group or 256, -2)
    expected = np.asarray(integers) * np.repeat(np.asarray(scale), group or 256, axis=-2)
    np.testing.assert_array_equal(planes.scale, scale)
    np.testing.assert_array_equal(planes.to_dense(), expected)
    again = nm_pack_planes(planes.to_dense(), pruned != 0, planes.pattern, quant=quant, group=group)
    chex.assert_trees_all_equal(again, planes)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8), (1, 16), (1, 32), (2, 8)])
def test_no_byte_more_than_packed(n, m):
    w = jax.ShapeDtypeStruct((2048, 8), jnp.bfloat16)
    planes, packed = (
        jax.eval_shape(lambda w, cls=cls: cls.from_dense(w, n=n, m=m), w)
        for cls in (NMPlanes, NMPacked)
    )
    assert planes.nbytes == packed.nbytes


def test_bytes_of_integers():
    w = jax.ShapeDtypeStruct((4096, 8), jnp.bfloat16)
    made = jax.eval_shape(lambda w: NMPlanes.from_dense(w, n=2, m=4, quant="int4", group=128), w)
    # Half of 4 bits, a bit for each code's part, and a 128th of a scale of 16.
    assert made.nbytes * 8 / w.size == 2 + 1 + 16 / 128


@pytest.mark.parametrize(
    ("pattern", "d_in"), [PATTERNS[0], PATTERNS[2], PATTERNS[3]], ids=["2:4", "blocks", "3:5"]
)
def test_gradients_of_kept_values(pattern, d_in):
    w = kernel(d_in, stack=(2,))
    mask = nm_mask(jnp.abs(w), pattern)
    planes = nm_pack_planes(w, mask, pattern)
    x, g = kernel(d_in, 3, stack=(2,)).swapaxes(-1, -2), kernel(3, 6, stack=(2,))
    y, pull = jax.vjp(jax.jit(jax.vmap(lambda x, w: x @ w)), x, planes)
    dx, d_planes = pull(g)
    yt, pull = jax.vjp(jax.jit(jax.vmap(lambda g, w: g @ w.T)), g, planes)
    dg, d_turned = pull(x)
    dense, full = planes.to_dense(), jnp.einsum("sbi,sbo->sio", x, g)
    kept = nm_pack_planes(full, mask, pattern).values
    assert d_planes.code.dtype == jax.dtypes.float0
    for actual, expected in [
        (y, jnp.einsum("sbi,sio->sbo", x, dense)),
        (dx, jnp.einsum("sbo,sio->sbi", g, dense)),
        (d_planes.values, kept),
        (yt, jnp.einsum("sbo,sio->sbi", g, dense)),
        (dg, jnp.einsum("sbi,sio->sbo", x, dense)),
        (d_turned.values, kept),
    ]:
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_integers_get_no_gradient_and_scales_that_of_the_product():
    planes = NMPlanes.from_dense(kernel(256), n=2, m=4, quant="int4", group=64)
    x, g = kernel(256, 3).T, kernel(3, 6)
    y, pull = jax.vjp(nm_matmul, x, planes)
    _, d_planes = pull(g)
    assert d_planes.values.dtype == d_planes.code.dtype == jax.dtypes.float0
    # Linear in each scale: a step along one changes the product by so much.
    step = jnp.zeros_like(planes.scale).at[1, 2].set(1.0)
    change = jnp.sum((x @ dataclasses.replace(planes, scale=planes.scale + step) - y) * g)
    np.testing.assert_allclose(d_planes.scale[1, 2], change, rtol=1e-4)


@pytest.mark.parametrize("quant", [None, "int4"])
def test_the_backward_pass_keeps_no_dense_copy(quant):
    planes = NMPlanes.from_dense(jnp.ones((256, 64)), n=1, m=8, quant=quant)
    for rows, product in ((256, lambda x, w: x @ w), (64, lambda x, w: x @ w.T)):
        x = jnp.ones((2, rows))
        _, pull = jax.vjp(product, x, planes)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
        assert kept <= planes.nbytes + x.nbytes < 256 * 64 * 4


@pytest.mark.parametrize(
    ("hyper", "length"),
    [
        ({"n": 2, "m": 4}, 128),
        ({"n": 1, "m": 8, "quant": "int4", "group": 64}, 512),
        ({"n": 2, "m": 4, "quant": "int8", "group": 256}, 256),
        ({"n": 3, "m": 5}, 5),
    ],
)
def test_a_tile_is_a_whole_matrix_of_its_own(hyper, length):
    w = kernel(2 * length, 4)
    planes = NMPlanes.from_dense(w, **hyper)
    assert planes.tile == (length, 1)

    def half(i):
        def of(child, axis):
            size = child.shape[axis] // 2
            return jax.lax.slice_in_dim(child, i * size, (i + 1) * size, axis=axis)

        scale = None if planes.scale is None else of(planes.scale, 0)
        values, code = of(planes.values, 1), of(planes.code, 1)
        parts = {"values": values, "code": code, "scale": scale, "d_in": length}
        return dataclasses.replace(planes, **parts)

    parts = [half(i).to_dense() for i in range(2)]
    np.testing.assert_array_equal(jnp.concatenate(parts), planes.to_dense())


def test_integers_on_two_devices_and_in_a_file(tmp_path):
    planes = NMPlanes.from_dense(kernel(256), n=2, m=4, quant="int4", group=64)
    jaxlab.save(tmp_path / "w.safetensors", planes)
    loaded = jaxlab.load(tmp_path / "w.safetensors")
    chex.assert_trees_all_equal(loaded, planes)
    assert jax.tree.structure(loaded) == jax.tree.structure(planes)
    mesh, x = make_mesh(data=1, model=2), kernel(256, 3).T
    for spec, axis in ((("model", None), 1), ((None, "model"), 0)):
        specs = param_specs({"w": planes}, [("w", spec)], mesh)["w"]
        # Words and codes run along (out, in), scales along (in, out).
        assert [s.index("model") for s in (specs.values, specs.code)] == [axis, axis]
        assert specs.scale.index("model") == 1 - axis
        placed = jax.tree.map(
            lambda leaf, s: jax.device_put(leaf, jax.sharding.NamedSharding(mesh, s)), planes, specs
        )
        actual = jax.jit(lambda x, w: x @ w)(x, placed)
        np.testing.assert_allclose(actual, x @ planes, rtol=1e-6, atol=1e-5)


def test_another_layout_is_refused():
    planes = NMPlanes.from_dense(kernel(128), n=2, m=4, quant="int8")
    codes, integers = planes.layout
    for layout in ((codes - 1, integers), (codes, integers + 1)):
        old = dataclasses.replace(planes, layout=layout)
        for use in (lambda w: jnp.ones((1, 128)) @ w, lambda w: w.to_dense()):
            with pytest.raises(ValueError, match="is another layout"):
                use(old)


@pytest.mark.parametrize("hyper", [{}, {"quant": "int4", "group": 128}], ids=["exact", "int4"])
def test_a_gpu_is_given_the_kernel_where_it_won(on_an_h100, monkeypatch, hyper):
    w = jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16)
    planes = jax.eval_shape(lambda w: NMPlanes.from_dense(w, n=2, m=4, **hyper), w)
    of = functools.partial(
        Problem, n_out=256, k=1024, n=2, m=4, block=1, kind=hyper.get("quant", "")
    )
    won = {
        of(rows=rows, scaled=hyper.get("group", 0)).key: {"implementation": name}
        for rows, name in ((16, "mosaic_gpu"), (32, "xla"))
    }
    table = {"jax": "0.10", "layout": NM_LAYOUT_VERSION, "entries": won}
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)
    monkeypatch.setattr(dispatch, "_found", {})
    for rows, taken in ((16, 1), (32, 0), (64, 0)):
        x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16)
        with on_an_h100():
            traced = jax.jit(lambda x, w: x @ w).trace(x, planes)
            text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert text.count("mosaic_gpu_v2") == taken


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"n": 8, "m": 16}, "take 32 bits, more than 16; nearest: n=4"),
        ({"n": 2, "m": 4, "axis": -1}, "nearest: axis=-2"),
        ({"n": 2, "m": 4, "quant": "int4", "group": 50}, "divides d_in=128; nearest: 64"),
        ({"n": 2, "m": 4, "quant": "fp4"}, "quant='fp4'"),
        ({"n": 1, "m": 3}, "m=3 must divide"),
    ],
)
def test_bad_arguments(hyper, message):
    with pytest.raises(ValueError, match=message):
        NMPlanes.from_dense(kernel(128), **hyper)


def test_masks_and_kernels_that_do_not_fit_are_refused():
    w, pattern = kernel(128), NMPattern(2, 4)
    with pytest.raises(ValueError, match="nm_pack_planes: groups of the mask hold 4 to 4 entries"):
        nm_pack_planes(w, jnp.ones(w.shape, bool), pattern)
    with pytest.raises(
        ValueError, match="nm_planes: group=7 shares scales, .* group=None, or quant"
    ):
        nm_pack_planes(w, nm_mask(w, pattern), pattern, group=7)
    with pytest.raises(ValueError, match="nm_pack_planes: the mask of shape"):
        nm_pack_planes(w, jnp.ones(4, bool), pattern)
    with pytest.raises(ValueError, match="1 of .* not finite"):
        NMPlanes.from_dense(w.at[3, 1].set(jnp.inf), n=2, m=4, quant="int8")
    # A pruned infinity does no harm.
    mask = nm_mask(w, pattern)
    packed = nm_pack_planes(jnp.where(mask, w, jnp.inf), mask, pattern, quant="int8")
    chex.assert_tree_all_finite(packed.to_dense())
    with pytest.raises(ValueError, match="store='plane'; did you mean 'planes'"):
        NM.from_dense(w, n=2, m=4, store="plane")
    with pytest.raises(ValueError, match="nearest: axis=-2"):
        NM.from_dense(w, n=2, m=4, axis=-1, store="planes")


def test_the_two_products_cannot_be_mixed_up():
    planes = NMPlanes.from_dense(kernel(128, 128), n=2, m=4)
    x = jnp.ones((2, 128))
    np.testing.assert_array_equal(nm_matmul(x, planes), nm_matmul_of_arrays(x, planes.packed))
    with pytest.raises(TypeError, match="packed is a PackedNM.*jaxlab.kernels.nm_matmul"):
        nm_matmul(x, planes.packed)


@pytest.mark.gpu
@pytest.mark.skipif(os.environ.get("JAXLAB_TEST_PLATFORMS") != "cuda", reason="compiles for a GPU")
@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(
    "hyper",
    [{"n": 2, "m": 4}, {"n": 1, "m": 8}, {"n": 2, "m": 4, "quant": "int4", "group": 128}],
    ids=["2:4", "1:8", "2:4 int4"],
)
def test_the_compiled_kernel_multiplies_by_the_dense_array(monkeypatch, hyper, rows):
    monkeypatch.setenv(dispatch.EVERYWHERE, "mosaic_gpu")
    planes = NMPlanes.from_dense(kernel(4096, 512, jnp.bfloat16), **hyper)
    x = kernel(4096, rows, jnp.bfloat16).T
    expected = np.asarray(x, np.float64) @ np.asarray(planes.to_dense(), np.float64)
    actual = np.asarray(jax.jit(lambda x, w: x @ w)(x, planes), np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2**-7 * np.abs(expected).max())
