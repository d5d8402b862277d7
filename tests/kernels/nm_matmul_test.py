"""Products with packed N:M weights: against float64, by every implementation, with gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.layout_nm import PIECE, layout_of
from jaxlab.kernels.nm_matmul import (
    dequantize_nm,
    nm_matmul,
    operations,
    ordering,
    registers,
    shapes,
)
from jaxlab.kernels.packing_nm import dense_lanes, pack_nm
from jaxlab.kernels.plan import Config


def problem(n, m, n_out, k, rows, *, block=1, kind=None, groups=1, dtype=jnp.bfloat16):
    """x, packed weights, their scales and the exact product."""
    rng = np.random.default_rng(n_out + k + rows)
    blocks = rng.random((n_out, k // (m * block), m)).argsort(-1) < n
    mask = np.repeat(blocks.reshape(n_out, -1), block, 1)
    drawn = rng.normal(size=(n_out, k)) if kind is None else rng.integers(-7, 8, (n_out, k))
    w = jnp.asarray(drawn * mask, dtype if kind is None else jnp.int8)
    x = jnp.asarray(rng.normal(size=(rows, k)), dtype)
    scale = None if kind is None else jnp.asarray(rng.uniform(0.5, 1.5, (groups, n_out)), dtype)
    pack = jax.jit(lambda w, mask: pack_nm(w, mask, n, m, block=block, kind=kind))
    packed = pack(w, jnp.asarray(mask))
    dense = np.asarray(w, np.float64)
    if scale is not None:
        dense = dense * np.repeat(np.asarray(scale, np.float64).T, k // groups, 1)
    return x, packed, scale, np.asarray(x, np.float64) @ dense.T


@pytest.mark.parametrize(
    ("n", "m", "block", "kind", "groups"),
    [(2, 4, 1, None, 1), (1, 8, 1, None, 1), (2, 4, 8, None, 1), (2, 4, 1, "int4", 4)],
)
def test_xla_is_right(n, m, block, kind, groups):
    # 192 is no whole number of tiles: groups are stored one after another.
    x, packed, scale, exact = problem(
        n, m, 24, 192, 5, block=block, kind=kind, groups=groups, dtype=jnp.float32
    )
    y = jax.jit(nm_matmul)(x.reshape(5, 1, -1), packed, scale)
    np.testing.assert_allclose(np.asarray(y)[:, 0], exact, rtol=1e-5, atol=1e-4)
    assert nm_matmul(x[:0], packed, scale).shape == (0, 24)


@pytest.mark.parametrize(
    ("n", "m", "block"),
    [(2, 4, 1), (1, 4, 1), (1, 8, 1), (2, 8, 1), (1, 16, 1), (2, 4, 2), (1, 8, 4), (2, 4, 16)],
)
def test_registers_hold_the_dense_weights_in_the_order_of_x(n, m, block):
    layout, tiles = layout_of(n, m, block, 8192), 2
    rng, k = np.random.default_rng(m), tiles * layout.tile
    # Of tiles that are all alike: the second, and all that a group or a word of codes can span.
    pieces = sorted({0, 1, layout.tile // PIECE - 1})
    mask = np.repeat(rng.random((64, k // (m * block), m)).argsort(-1) < n, block, -1)
    mask = mask.reshape(64, k)
    w = np.where(mask, rng.normal(size=mask.shape), 0)
    w[0] = np.where(mask[0], np.inf, 0)
    w = jnp.asarray(w, jnp.bfloat16)

    @jax.jit
    def rebuilt(w, mask):
        packed = pack_nm(w, mask, n, m, block=block)
        assert isinstance(packed.values, jax.Array)
        return [
            registers.piece_of(layout, [packed.values], packed.code, (1, 1), piece, compiled=False)
            for piece in pieces
        ]

    expected = np.asarray(dense_lanes(w, layout)).view(np.uint16)
    for piece, got in zip(pieces, rebuilt(w, jnp.asarray(mask)), strict=True):
        at = layout.tile + piece * PIECE
        got = np.asarray(got).view(np.uint16)
        np.testing.assert_array_equal(got, expected[:, at : at + PIECE])


@pytest.mark.parametrize("m", [4, 8])
def test_the_order_of_x_in_shared_memory_is_that_of_xla(m):
    # A pattern whose groups have pairs the other way round, and one without.
    layout = layout_of(2, m, 1, 8192)
    x = np.arange(16 * 128, dtype=np.uint16).reshape(16, 128)

    def swizzled(x):
        # As tiles of (8, 64), of whose rows chunk c of row r is at c ^ r.
        tiles = x.reshape(2, 8, 2, 8, 8).swapaxes(1, 2)
        rows = np.arange(8)[:, None]
        return tiles[:, :, rows, np.arange(8) ^ rows].reshape(-1)

    memory = swizzled(x).view(np.uint32).copy()
    do = operations.Emulated()
    sources, targets = ordering.chunks(do, jnp.arange(16 * 2 * 2, dtype=jnp.uint32))

    def words(place):
        return [np.asarray(place) // 4 + i for i in range(4)]

    pairs = [[jnp.asarray(memory[at]) for at in words(place)] for place in sources]
    for place, chunk in zip(targets, ordering.transposed(do, layout, pairs), strict=True):
        for at, pair in zip(words(place), chunk, strict=True):
            memory[at] = np.asarray(pair)
    expected = swizzled(np.asarray(dense_lanes(jnp.asarray(x), layout)))
    np.testing.assert_array_equal(memory, expected.view(np.uint32))


def test_selectors_pick_the_kept_values_of_every_pair_of_places():
    # As PTX has `prmt`: four numbers of three bits, and beyond the first register are zeros.
    source = [10, 11, 20, 21, 0, 0, 0, 0]
    for kept in [(a, b) for b in range(4) for a in range(b)]:
        pruned = [place not in kept for place in range(4)]
        # In the order of the registers: 0 and 1, 3 and 2.
        dense = []
        for (first, factor, both), (near, far) in zip(
            registers._PAIRS, ((0, 1), (3, 2)), strict=True
        ):
            code = (pruned[near] << first) | (pruned[far] << (first + 8))
            selector = code * factor + both
            dense += [source[(selector >> (4 * at)) & 7] for at in range(4)]
        values = dict(zip(kept, ((10, 11), (20, 21)), strict=True))
        expected = [values.get(place, (0, 0)) for place in (0, 1, 3, 2)]
        assert dense == [byte for pair in expected for byte in pair], kept


# jax 0.10 interprets no products from slices of tiled memory; there the kernel is only lowered.
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("n", "m", "k", "kind", "groups", "config"),
    [
        (2, 4, 256, None, 1, Config(1, 1)),
        (1, 8, 1024, None, 1, Config(1, 1, split_k=2)),
        (2, 4, 256, "int4", 2, Config(1, 1)),
    ],
)
def test_the_interpreted_kernel_equals_the_reference(n, m, k, kind, groups, config):
    x, packed, scale, exact = problem(n, m, 64, k, 3, kind=kind, groups=groups)
    y = nm_matmul(x, packed, scale, implementation="mosaic_gpu", config=config, interpret=True)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=0, atol=2**-8 * np.abs(exact).max()
    )


@pytest.mark.parametrize(
    ("n", "m", "block", "kind", "groups", "config"),
    [
        (2, 4, 1, None, 1, Config(2, 1, depth=2)),
        (1, 4, 1, None, 1, shapes.Cut(2, 1, parts=2, in_place=True)),
        (1, 8, 1, "int4", 16, shapes.Cut(2, 1, in_place=True)),
        (1, 8, 2, "int8", 1, Config(2, 1)),
    ],
)
def test_the_kernel_lowers_for_cuda(on_an_h100, n, m, block, kind, groups, config):
    x, packed, scale, _ = problem(n, m, 128, 2048, 16, block=block, kind=kind, groups=groups)

    def product(x, packed, scale):
        return nm_matmul(x, packed, scale, implementation="mosaic_gpu", config=config)

    with on_an_h100():
        traced = jax.jit(product).trace(x, packed, scale)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu_v2") == 1


@pytest.mark.parametrize("kind", [None, "int4"])
def test_gradients_and_batches(kind):
    x, packed, scale, _ = problem(2, 4, 8, 256, 3, kind=kind, groups=2, dtype=jnp.float32)
    trained = packed.values if kind is None else scale

    def parts(trained):
        if kind is None:
            return dataclasses.replace(packed, values=trained), None
        return packed, trained

    def through(trained, x):
        return jnp.sum(jnp.sin(nm_matmul(x, *parts(trained))))

    def dense(trained, x):
        return jnp.sum(jnp.sin(x @ dequantize_nm(*parts(trained)).T))

    grads = (jax.jit(jax.grad(f, argnums=(0, 1)))(trained, x) for f in (through, dense))
    for got, expected in zip(*grads, strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-4, atol=1e-4)
    batched = jax.vmap(lambda x: nm_matmul(x, packed, scale))(x[:, None])
    np.testing.assert_allclose(
        np.asarray(batched)[:, 0], np.asarray(nm_matmul(x, packed, scale)), rtol=1e-5, atol=1e-5
    )


def test_bad_arguments_are_named():
    x, packed, _, _ = problem(2, 4, 8, 64, 2)
    with pytest.raises(ValueError, match="k=64"):
        nm_matmul(x[:, :60], packed)
    with pytest.raises(TypeError, match="floating"):
        nm_matmul(x.astype(jnp.int32), packed)
    with pytest.raises(NotImplementedError, match="GPU"):
        nm_matmul(x, packed, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="scale=None"):
        nm_matmul(x, packed, jnp.ones((1, 8)))
    with pytest.raises(ValueError, match=r"packed.version=1"):
        nm_matmul(x, dataclasses.replace(packed, version=1))
    with pytest.raises(ValueError, match=r"packed.code must be uint16\(8, 4\)"):
        nm_matmul(x, dataclasses.replace(packed, code=packed.code[:, :3]))
    x, packed, _, _ = problem(2, 4, 8, 64, 2, kind="int4", groups=2)
    with pytest.raises(ValueError, match="3 groups, which k=64 is no multiple of; nearest: 2"):
        nm_matmul(x, packed, jnp.ones((3, 8)))
    with pytest.raises(ValueError, match="not None"):
        nm_matmul(x, packed)
    with pytest.raises(ValueError, match="nearest: n=4"):
        pack_nm(jnp.ones((2, 32)), jnp.ones((2, 32), bool), 8, 16)


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (shapes.Problem(16, 64, 8192, 2, 4, 32), "blocks of 32"),
        (shapes.Problem(16, 64, 8192 - 12, 2, 4, 1), "k=8180"),
        (shapes.Problem(16, 64, 3 * 128, 2, 4, 1, "int4", 96), "groups of 96"),
        (shapes.Problem(16, 64, 8192, 2, 4, 1, "int4", 32), "groups of 32"),
        (shapes.Problem(65, 64, 8192, 2, 4, 1), "65 rows"),
    ],
)
def test_what_the_kernel_does_not_take_is_named(of, says):
    assert says in shapes.refuse(of, Config(1, 1))


def test_x_is_ordered_in_place_by_whole_warps_of_layouts_that_fit():
    cut = shapes.Cut(1, 1, parts=4, in_place=True)
    assert "8 rows of 64" in shapes.refuse(shapes.Problem(1, 64, 8192, 2, 4, 1), cut)
    assert "span of 16" in shapes.refuse(shapes.Problem(16, 64, 8192, 1, 16, 1), cut)
    candidates = shapes.Problem(16, 8192, 8192, 2, 4, 1).plan.candidates(4)
    assert [vars(c)["in_place"] for c in candidates] == [False, True] * 2
