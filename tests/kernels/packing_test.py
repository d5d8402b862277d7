"""Packed numbers come back, stand where the layout says, and meet the kernel's bit tricks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.packing import FORMATS, Planar, pack, unpack
from jaxlab.kernels.packing_nm import pack_nm, unpack_nm
from jaxlab.kernels.unpacking import bfloat16_field

KINDS = sorted(FORMATS)


def numbers(kind, shape, seed=0):
    form = FORMATS[kind]
    q = np.random.default_rng(seed).integers(form.low, form.high + 1, shape)
    return np.where(q > 0, 1, -1) if form.signs else q


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_under_jit(kind):
    def back(qs):
        return [unpack(pack(q, kind, width=16)) for q in qs]

    qs = [numbers(kind, (n, k)) for n, k in ((64, 384), (128, 64), (384, 128))]
    for q, got in zip(qs, jax.jit(back)([jnp.asarray(q) for q in qs]), strict=True):
        np.testing.assert_array_equal(np.asarray(got), q)


@pytest.mark.parametrize("kind", KINDS)
def test_random_numbers_of_an_odd_size_come_back(kind):
    back = jax.jit(lambda q: unpack(pack(q, kind, width=32)))
    for case in range(25):
        q = numbers(kind, (5, 137), case)
        np.testing.assert_array_equal(np.asarray(back(jnp.asarray(q))), q)


def test_the_layout_is_the_documented_one():
    kind, width = "uint4", 32
    q = numbers(kind, (3, 4 * width * 2))
    words = np.asarray(pack(jnp.asarray(q), kind, width=width).words)
    for block, p, c in [(0, 0, 0), (0, 3, 5), (1, 2, 31), (1, 0, 7)]:
        field = (words[:, block * width + c] >> (4 * p)) & 15
        np.testing.assert_array_equal(field, q[:, (block * 4 + p) * width + c])


@pytest.mark.parametrize("kind", ["int8", "int4", "uint4", "ternary", "binary"])
def test_bit_tricks_give_every_number_exactly(kind):
    form = FORMATS[kind]
    every = [v for v in range(form.low, form.high + 1) if not (form.signs and v == 0)]
    q = jnp.asarray(np.resize(every, (4, 16 * form.fields)))
    packed = pack(q, kind, width=16)
    got = [bfloat16_field(packed.words, kind, p) for p in range(form.fields)]
    assert got[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.concatenate([np.asarray(g, np.int32) for g in got], 1), q)


# Sizes that the layout orders in tiles (where k is a multiple of them), and that it cannot.
@pytest.mark.parametrize(
    ("n", "m", "block"),
    [(1, 4, 1), (2, 4, 1), (1, 8, 1), (2, 8, 1), (4, 8, 1), (3, 5, 1), (1, 2, 4), (2, 4, 16)],
)
def test_sparse_groups_come_back(n, m, block):
    rng = np.random.default_rng(m + n)

    @jax.jit
    def there_and_back(w, mask):
        packed = pack_nm(w, mask, n, m, block=block)
        return packed, unpack_nm(packed)

    for n_out, k, cases in ((6, m * block * 6, 30), (5, 1024 // m * m, 2)):
        for _ in range(cases):
            blocks = rng.random((n_out, k // (m * block), m)).argsort(-1) < n
            mask = np.repeat(blocks.reshape(n_out, -1), block, 1)
            w = np.where(mask, rng.normal(size=mask.shape), 0).astype(jnp.bfloat16)
            packed, back = there_and_back(jnp.asarray(w), jnp.asarray(mask))
            np.testing.assert_array_equal(np.asarray(back), w)
            assert packed.shape == w.shape
            assert packed.values.shape == (n_out, k // m * n)


def test_sparse_groups_stack_and_hold_integers():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 4, 64, 4)).argsort(-1) < 2
    q = jnp.asarray(rng.integers(-8, 8, mask.shape) * mask, jnp.int8).reshape(3, 4, 256)
    mask = jnp.asarray(mask.reshape(q.shape))
    pack_int4 = jax.jit(lambda w, mask: pack_nm(w, mask, 2, 4, kind="int4"))
    back = jax.jit(unpack_nm)
    packed = pack_int4(q, mask)
    assert packed.shape == q.shape
    # Four bits for each of two values, four for their places: of four weights.
    assert packed.nbytes * 8 == q.size // 4 * 12
    np.testing.assert_array_equal(np.asarray(back(packed)), np.asarray(q))
    alone = jax.tree.map(lambda leaf: leaf[1], packed)
    np.testing.assert_array_equal(np.asarray(back(alone)), np.asarray(q[1]))
    each = jax.vmap(pack_int4)(q, mask)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), each, packed))


def test_numbers_out_of_range_leave_their_neighbours_alone_under_jit():
    q = jnp.array([[9, 1, 2, 3] * 16])
    back = jax.jit(lambda q: unpack(pack(q, "int4", width=16)))(q)
    np.testing.assert_array_equal(np.asarray(back)[:, 1:4], [[1, 2, 3]])
    np.testing.assert_array_equal(np.asarray(back)[:, 17:20], [[1, 2, 3]])


def test_masks_that_keep_too_many_or_a_part_are_named_and_fewer_are_exact():
    w = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    few = jnp.array([[True, False, False, False]])
    for pack_few in (pack_nm, jax.jit(pack_nm, static_argnums=(2, 3))):
        np.testing.assert_array_equal(unpack_nm(pack_few(w, few, 2, 4)), [[1.0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"keeps 3 of a group; nearest: n=3"):
        pack_nm(w, jnp.array([[True, True, True, False]]), 2, 4)
    with pytest.raises(ValueError, match="a part of a block of 2"):
        pack_nm(w, few, 1, 2, block=2)


def test_a_tree_like_others():
    packed = pack(jnp.ones((4, 64), jnp.int8), "int4", width=16)
    leaves, tree = jax.tree.flatten(packed)
    assert [x.dtype for x in leaves] == [jnp.uint16]
    back = jax.tree.unflatten(tree, leaves)
    assert isinstance(back, Planar)
    assert (back.kind, back.shape, back.version) == ("int4", (4, 64), 1)


@pytest.mark.parametrize(
    ("q", "kind", "width", "says"),
    [
        ([[8]], "int4", 16, "q holds 8"),
        ([[0]], "binary", 16, "q holds 0"),
        ([[1]], "int5", 16, "kind='int5'"),
        ([[1]], "int4", 20, "nearest: 16"),
        ([[1.0]], "int4", 16, "must be integers"),
    ],
)
def test_bad_arguments_are_named(q, kind, width, says):
    with pytest.raises((ValueError, TypeError), match=says.replace("[", r"\[")):
        pack(jnp.asarray(q), kind, width=width)
    with pytest.raises(ValueError, match="m \\* block"):
        pack_nm(jnp.ones((2, 6)), jnp.ones((2, 6), bool), 2, 4)
