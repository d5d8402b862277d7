"""Quantised packed matrices: against a float64 quantiser, fixed points, layout, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.packed import nm_matmul, nm_pack, nm_unpack
from jaxlab.methods.nm.quantized import NMQuantized, dequantize, quantize

LARGEST = {"int8": 127, "int4": 7}


def loop_quantize(values, quant, group):
    """In float64 along the last axis: (integers, scales, dequantised), one group at a time."""
    largest, dtype = LARGEST[quant], values.dtype
    wide = np.asarray(values, np.float64).reshape(*values.shape[:-1], -1, group)
    integers, scales = np.zeros(wide.shape, np.int64), np.zeros(wide.shape[:-1])
    for where in np.ndindex(*wide.shape[:-1]):
        # Rounded to the dtype before it divides anything; 1 where it is 0.
        scale = np.float64(dtype.type(np.abs(wide[where]).max() / largest)) or 1.0
        scales[where] = scale
        integers[where] = np.clip(np.round(wide[where] / scale), -largest, largest)
    product = (integers * scales[..., None]).reshape(values.shape)
    return integers.reshape(values.shape), scales, product.astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_equals_the_quantiser_in_float64(quant, dtype):
    # Rows of very different size, a zero group, and (for float16) scales below the normal range.
    size = 10.0 ** jnp.arange(-6.0, 3.0)[:, None]
    values = (size * jax.random.normal(jax.random.key(0), (9, 64))).astype(dtype).at[4, :16].set(0)
    integers, scale = quantize(values, quant, 16, -1)
    chex.assert_type(scale, dtype)
    expected, scales, dense = loop_quantize(np.asarray(values), quant, 16)
    np.testing.assert_array_equal(np.asarray(scale, np.float64), scales)
    stored = np.asarray(integers)
    if quant == "int4":
        low, high = stored & 15, stored >> 4
        stored = np.stack([low, high], -1).reshape(9, 64).astype(np.int64)
        stored = np.where(stored > 7, stored - 16, stored)
    np.testing.assert_array_equal(stored, expected)
    result = np.asarray(dequantize(integers, scale, -1))
    np.testing.assert_array_equal(result, dense)
    assert result.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantising_again_changes_nothing(quant, dtype):
    """Over all fractions of a scale in bfloat16, and many of the others."""
    largest = jnp.linspace(1.0, 2.0, 513)[:, None].astype(dtype)
    others = jax.random.uniform(jax.random.key(0), (513, 15), minval=-1.0).astype(dtype)
    first = quantize(jnp.concatenate([largest, others], 1), quant, 16, -1)
    again = quantize(dequantize(*first, -1), quant, 16, -1)
    chex.assert_trees_all_equal(again, first)


@pytest.mark.parametrize(
    ("pattern", "group"),
    [(NMPattern(2, 4), 8), (NMPattern(4, 8, -1), 16), (NMPattern(1, 2, -2, 16), 16)],
)
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_packed_and_quantised(pattern, group, quant):
    w = jax.random.normal(jax.random.key(0), (2, 64, 64), jnp.bfloat16)
    mask = nm_mask(jnp.abs(w), pattern)
    packed = nm_pack(w, mask, pattern, quant=quant, group=group)
    assert isinstance(packed, NMQuantized)
    assert (packed.shape, packed.group, packed.pattern) == (w.shape, group, pattern)
    dense = nm_unpack(packed)
    chex.assert_type(dense, jnp.bfloat16)
    kept = np.moveaxis(np.asarray(nm_pack(w, mask, pattern).values), pattern.axis, -1)
    _, _, expected = loop_quantize(kept, quant, group)
    actual = np.moveaxis(np.asarray(nm_pack(dense, mask, pattern).values), pattern.axis, -1)
    np.testing.assert_array_equal(actual, expected)
    assert not np.asarray(dense)[~np.asarray(mask)].any()
    again = nm_pack(dense, mask, pattern, quant=quant, group=group)
    chex.assert_trees_all_equal(again, packed)


def test_stacks_and_vmap_agree_bit_for_bit():
    values = jax.random.normal(jax.random.key(0), (3, 64, 2))
    together = quantize(values, "int8", 8, -2)
    mapped = jax.vmap(lambda v: quantize(v, "int8", 8, -2))(values)
    chex.assert_trees_all_equal(mapped, together)
    scanned = jax.lax.map(lambda v: quantize(v, "int8", 8, -2), values)
    chex.assert_trees_all_equal(scanned, together)


def test_only_scales_get_a_gradient_and_it_is_that_of_the_product():
    w = jax.random.normal(jax.random.key(0), (32, 6))
    packed = NMQuantized.from_dense(w, n=2, m=4, group=8)
    x, g = jnp.ones((3, 32)), jax.random.normal(jax.random.key(1), (3, 6))
    y, pull = jax.vjp(nm_matmul, x, packed)
    _, d_packed = pull(g)
    assert d_packed.values.dtype == d_packed.index.dtype == jax.dtypes.float0
    # Linear in the scales: the derivative along themselves is the product itself.
    np.testing.assert_allclose(jnp.sum(d_packed.scale * packed.scale), jnp.sum(y * g), rtol=1e-5)
    step = jnp.zeros_like(packed.scale).at[1, 2].set(1.0)
    moved = packed.__class__(packed.values, packed.scale + step, packed.index, 2, 4, -2)
    change = jnp.sum((x @ moved - y) * g)
    np.testing.assert_allclose(d_packed.scale[1, 2], change, rtol=1e-4)


def test_a_tile_is_a_whole_matrix_of_its_own():
    w = jax.random.normal(jax.random.key(0), (96, 4))
    for hyper, length in [
        ({"n": 3, "m": 4, "group": 12, "quant": "int8"}, 16),
        # A byte holds the positions of eight groups, of two blocks of six rows each.
        ({"n": 1, "m": 2, "block": 6, "group": 4}, 96),
    ]:
        packed = NMQuantized.from_dense(w, **hyper)
        assert packed.tile == (length, 1)
        parts = jax.tree.map(lambda c, k=96 // length: c.reshape(k, -1, 4), packed)
        whole = parts.to_dense().reshape(96, 4)
        np.testing.assert_array_equal(whole, packed.to_dense())


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        (
            {"group": 12},
            "group=12 must divide the 32 kept values.*nearest group: 8, 16",
        ),
        ({"group": 1}, "group=1 must divide.*and be even; nearest group: 2, 4"),
        ({"group": 0}, "group=0 must be a whole number"),
        ({"quant": "fp4"}, "quant='fp4'; valid: int8, int4"),
        ({"axis": -3}, "axis=-3 must be -2"),
    ],
)
def test_bad_arguments(hyper, message):
    with pytest.raises(ValueError, match=message):
        NMQuantized.from_dense(jnp.ones((64, 8)), n=2, m=4, **hyper)


def test_kernels_without_a_scale_are_refused():
    pattern = NMPattern(2, 4)
    mask = jnp.tile(jnp.array([[False], [False], [True], [True]]), (8, 4))
    with pytest.raises(TypeError, match="int8"):
        nm_pack(jnp.ones((32, 4), jnp.int8), mask, pattern, quant="int4")
    with pytest.raises(ValueError, match="not all finite"):
        nm_pack(jnp.full((32, 4), jnp.inf), mask, pattern, quant="int4")
    # A pruned infinity does no harm.
    w = jnp.where(mask, 1.0, jnp.inf)
    chex.assert_tree_all_finite(nm_pack(w, mask, pattern, quant="int4").to_dense())
