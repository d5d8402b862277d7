"""Packed N:M matrices: exact round trips, bytes, products and their gradients, shards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.packed import NMPacked, nm_matmul, nm_pack, nm_unpack
from jaxlab.methods.nm.quantized import NMQuantized

PATTERNS = [
    # Positions: by selects and by a scatter.
    NMPattern(2, 4),
    NMPattern(1, 4, -1),
    NMPattern(2, 128),
    NMPattern(6, 64),
    # Bitmasks: by selects, with a part of a byte left, and by a gather.
    NMPattern(4, 8, -1),
    NMPattern(3, 5),
    NMPattern(7, 12, -1),
    NMPattern(256, 256),
    # Blocks, of every kind.
    NMPattern(1, 4, -2, 16),
    NMPattern(5, 48, -1, 3),
    NMPattern(3, 4, -1, 2),
    NMPattern(8, 16, -2, 3),
]


def example(pattern, dtype=jnp.float32, groups=2, stack=(2,)):
    """A random weight and mask, made without compiling anything."""
    rng = np.random.default_rng(pattern.m)
    ranks = rng.permuted(np.tile(np.arange(pattern.m), (*stack, 3, groups, 1)), axis=-1)
    mask = np.repeat(ranks < pattern.n, pattern.block, -1).reshape(*stack, 3, -1)
    w = (20 * rng.standard_normal(mask.shape)).astype(dtype)
    turn = (lambda a: a.swapaxes(-1, -2)) if pattern.axis == -2 else (lambda a: a)
    return jnp.asarray(turn(w)), jnp.asarray(turn(mask))


def bits_of(x):
    x = np.asarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def loop_unpack(packed):
    """The format as it is documented, read group by group."""
    p = packed.pattern
    values = np.moveaxis(np.asarray(packed.values), p.axis, -1)
    index = np.moveaxis(np.asarray(packed.index), p.axis, -1)
    bits = np.unpackbits(index, axis=-1, bitorder="little")
    groups = values.shape[-1] // (p.n * p.block)
    dense = np.zeros((*values.shape[:-1], groups, p.m, p.block), values.dtype)
    values = values.reshape(*values.shape[:-1], groups, p.n, p.block)
    for where in np.ndindex(*values.shape[:-2]):
        *lead, g = where
        if p.stores_bitmask:
            positions = np.flatnonzero(bits[(*lead, slice(g * p.m, (g + 1) * p.m))])
        else:
            b = p.index_bits
            stored = bits[tuple(lead)][g * p.n * b : (g + 1) * p.n * b].reshape(p.n, b)
            positions = stored @ (1 << np.arange(b))
        dense[where][positions] = values[where]
    return np.moveaxis(dense.reshape(*dense.shape[:-3], -1), -1, p.axis)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_packing_is_exact_and_as_documented(pattern):
    w, mask = example(pattern)
    packed = nm_pack(w, mask, pattern)
    assert packed.shape == w.shape
    assert packed.pattern == pattern
    expected = np.where(mask, w, np.float32(0))
    np.testing.assert_array_equal(bits_of(nm_unpack(packed)), bits_of(expected))
    np.testing.assert_array_equal(bits_of(loop_unpack(packed)), bits_of(expected))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
@pytest.mark.parametrize("pattern", [NMPattern(2, 4), NMPattern(4, 8, -1)], ids=str)
def test_packing_is_exact_in_every_dtype(dtype, pattern):
    w, mask = example(pattern, dtype)
    packed = nm_pack(w, mask, pattern)
    chex.assert_type(packed.values, dtype)
    expected = np.where(mask, w, np.zeros_like(w))
    np.testing.assert_array_equal(bits_of(nm_unpack(packed)), bits_of(expected))


@pytest.mark.parametrize("pattern", [PATTERNS[i] for i in (0, 3, 4, 7)], ids=str)
def test_packing_keeps_the_bits_of_odd_values(pattern):
    w, mask = example(pattern, stack=())
    odd = np.array([0x80000000, 0x7FC01234, 0xFF800000, 0x00000001], np.uint32).view(np.float32)
    w = jnp.asarray(np.resize(odd, w.shape))
    expected = np.where(mask, np.asarray(w), np.float32(0))
    np.testing.assert_array_equal(bits_of(nm_unpack(nm_pack(w, mask, pattern))), bits_of(expected))


@pytest.mark.parametrize(
    ("n", "m", "bytes_per_weight"),
    [
        (2, 4, 1.125),
        (1, 4, 0.5625),
        (1, 8, 0.3125),
        (1, 16, 0.15625),
        (1, 32, 0.09375),
        (2, 128, 0.046875),
        (4, 8, 1.125),
        (8, 16, 1.125),
        (3, 4, 1.625),
    ],
)
def test_packed_bytes_equal_the_formula(n, m, bytes_per_weight):
    """Density (2 + b / 8) bytes for each 16-bit weight, or 2 density + 1 / 8 with a bitmask."""
    w = jax.ShapeDtypeStruct((1024, 8), jnp.bfloat16)
    packed = jax.eval_shape(lambda w: NMPacked.from_dense(w, n=n, m=m), w)
    assert packed.nbytes == bytes_per_weight * w.size
    pattern = packed.pattern
    with_index = n / m * (2 + pattern.index_bits / 8)
    assert bytes_per_weight == min(with_index, 2 * n / m + 1 / 8)
    blocks = jax.eval_shape(lambda w: NMPacked.from_dense(w, n=n, m=m, block=8), w)
    assert blocks.index.size == packed.index.size / 8


def test_quantised_bytes_equal_the_formula():
    w = jnp.zeros((1024, 8), jnp.bfloat16)
    pattern = NMPattern(2, 4)
    mask = nm_mask(w, pattern)
    for quant, bytes_per_weight in [("int4", 0.4375), ("int8", 0.6875)]:
        packed = nm_pack(w, mask, pattern, quant=quant)
        assert isinstance(packed, NMQuantized)
        assert packed.nbytes == bytes_per_weight * w.size


@pytest.mark.parametrize(
    ("pattern", "dtype", "tolerance"),
    [
        (NMPattern(2, 8), jnp.float32, 1e-5),
        (NMPattern(2, 8), jnp.bfloat16, 2e-2),
        (NMPattern(4, 8, -1), jnp.float32, 1e-5),
        (NMPattern(8, 16), jnp.float32, 1e-5),
        (NMPattern(5, 64), jnp.float32, 1e-5),
        (NMPattern(1, 2, -2, 4), jnp.bfloat16, 2e-2),
    ],
)
def test_matmul_and_its_gradients(pattern, dtype, tolerance):
    rng = np.random.default_rng(0)
    w, x, g = (rng.standard_normal(s).astype(dtype) for s in [(64, 24), (2, 3, 64), (2, 3, 24)])
    mask = nm_mask(np.abs(w), pattern)
    packed = nm_pack(jnp.asarray(w), mask, pattern)
    x, g = jnp.asarray(x), jnp.asarray(g)
    wx, wg, dense = (np.asarray(a, np.float64) for a in (x, g, np.where(mask, w, np.zeros_like(w))))
    full = np.einsum("abi,abo->io", wx, wg)
    kept = nm_pack(jnp.asarray(full, jnp.float32), mask, pattern).values
    y, pull = jax.vjp(jax.jit(nm_matmul), x, packed)
    dx, d_packed = pull(g)
    assert d_packed.index.dtype == jax.dtypes.float0
    yt, pull = jax.vjp(lambda g, packed: g @ packed.T, g, packed)
    dg, d_transposed = pull(x)
    for actual, expected in [
        (y, wx @ dense),
        (dx, wg @ dense.T),
        (d_packed.values, kept),
        (yt, wg @ dense.T),
        (dg, wx @ dense),
        (d_transposed.values, kept),
    ]:
        chex.assert_type(actual, dtype)
        expected = np.asarray(expected, np.float64)
        error = np.abs(np.asarray(actual, np.float64) - expected).max()
        assert error <= tolerance * np.abs(expected).max()


def test_the_backward_pass_keeps_the_packed_form_and_not_the_dense_one():
    packed = NMPacked.from_dense(jnp.ones((64, 64)), n=1, m=16)
    x = jnp.ones((2, 64))
    for product in (lambda x, w: x @ w, lambda x, w: x @ w.T):
        _, pull = jax.vjp(product, x, packed)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
        assert kept <= packed.nbytes + x.nbytes < packed.to_dense().nbytes


def test_gradients_of_a_stack_under_vmap_and_jit():
    pattern = NMPattern(4, 8)
    w, mask = example(pattern, stack=(3,))
    packed = nm_pack(w, mask, pattern)
    x = jax.random.normal(jax.random.key(1), (3, 5, w.shape[1]))

    def loss(values, x, index):
        return jnp.sum(jnp.sin(nm_matmul(x, NMPacked(values, index, pattern.n, pattern.m, -2))))

    step = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))
    values, dx = step(packed.values, x, packed.index)
    dense, dx_dense = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w)), (0, 1)))(
        packed.to_dense(), x
    )
    chex.assert_trees_all_close(values, nm_pack(dense, mask, pattern).values, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(dx, dx_dense, rtol=1e-4, atol=1e-4)
    # One input for all: its gradient is the sum over the stack.
    shared = jax.grad(lambda x: jnp.sum(jax.vmap(lambda p: x @ p)(packed)))(x[0])
    chex.assert_trees_all_close(
        shared, jnp.broadcast_to(packed.to_dense().sum((0, 2)), shared.shape), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (NMPattern(2, 4), 8),
        (NMPattern(3, 3), 24),
        (NMPattern(1, 4, -2, 16), 256),
    ],
)
def test_a_tile_is_a_whole_matrix_of_its_own(pattern, length):
    w, mask = example(pattern, groups=2 * length // (pattern.m * pattern.block), stack=())
    packed = nm_pack(w, mask, pattern)
    assert packed.tile == (length, 1)
    halves = jax.tree.map(lambda c: c.reshape(2, -1, 3), packed)
    np.testing.assert_array_equal(halves.to_dense().reshape(w.shape), packed.to_dense())


def test_cost_counts_stored_values():
    w = jnp.ones((64, 32))
    packed = NMPacked.from_dense(w, n=1, m=8)
    assert packed.cost(10).flops == 2 * 10 * packed.values.size
    assert packed.cost(10).bytes == packed.nbytes + 10 * (64 + 32) * 4


def test_masks_that_do_not_fit_are_refused():
    w = jnp.ones((8, 4))
    with pytest.raises(ValueError, match="8 to 8 entries and not n=2"):
        nm_pack(w, jnp.ones((8, 4), bool), NMPattern(2, 8))
    with pytest.raises(ValueError, match="parts of blocks of 2"):
        nm_pack(w, nm_mask(w, NMPattern(1, 4)), NMPattern(1, 2, block=2))
    with pytest.raises(ValueError, match="2 to 2 blocks and not n=1"):
        nm_pack(w, jnp.ones((8, 4), bool), NMPattern(1, 2, block=4))
    with pytest.raises(ValueError, match=r"mask of shape \(4,\)"):
        nm_pack(w, jnp.ones(4, bool), NMPattern(2, 4))
    with pytest.raises(ValueError, match="axis=-3 must be"):
        nm_pack(jnp.ones((4, 3, 3)), jnp.ones((4, 3, 3), bool), NMPattern(2, 4, -3))
