"""Masks of N:M patterns: against a loop, worked values, blocks, traced counts, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxlab.methods.nm.mask import NMPattern, group, nm_mask, ungroup

PATTERNS = [(2, 4), (1, 4), (4, 8), (1, 8), (1, 16), (1, 32), (2, 128), (3, 3), (3, 5)]
METHODS = ["pairwise", "argmax", "sort"]


def loop_mask(scores, n, m, axis):
    """The definition, element by element: rank by (score, index), keep the n highest."""
    scores = np.moveaxis(np.asarray(scores), axis, -1)
    mask = np.zeros(scores.shape, bool)
    for where in np.ndindex(*scores.shape[:-1]):
        for start in range(0, scores.shape[-1], m):
            group = scores[where][start : start + m]
            order = sorted(range(m), key=lambda i, group=group: (group[i], i))
            for i in order[m - n :]:
                mask[(*where, start + i)] = True
    return np.moveaxis(mask, -1, axis)


@pytest.mark.parametrize(
    ("n", "m", "axis"), [*((n, m, -2) for n, m in PATTERNS), (2, 4, -1), (1, 16, -1)]
)
def test_mask_equals_the_loop_and_keeps_n_of_every_group(n, m, axis):
    shape = (2, 2 * m, 3) if axis == -2 else (2, 3, 2 * m)
    # Few distinct values, so that ties are everywhere.
    scores = jnp.round(4 * jax.random.uniform(jax.random.key(m), shape)) / 4
    expected = loop_mask(scores, n, m, axis)
    for method in [None, *METHODS]:
        np.testing.assert_array_equal(
            nm_mask(scores, NMPattern(n, m, axis), method=method), expected, err_msg=str(method)
        )
    grouped = np.moveaxis(expected, axis, -1).reshape(-1, m)
    assert (grouped.sum(-1) == n).all()


@pytest.mark.parametrize("method", METHODS)
def test_worked_masks(method):
    cases = [
        ((2, 4), [0.1, 0.4, 0.3, 0.2], [0, 1, 1, 0]),
        ((2, 4), [1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1]),
        ((2, 4), [2.0, 1.0, 0.0, 1.0], [1, 0, 0, 1]),
        ((1, 4), [1.0, 2.0, 2.0, 2.0], [0, 0, 0, 1]),
        ((2, 4), [0.0, 0.0, 0.0, 0.0], [0, 0, 1, 1]),
        ((2, 4), [np.nan, np.inf, np.nan, -np.inf], [0, 1, 0, 1]),
        ((4, 4), [1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1]),
    ]
    for (n, m), scores, expected in cases:
        mask = nm_mask(jnp.array([scores]), NMPattern(n, m, -1), method=method)
        assert mask[0].astype(int).tolist() == expected, (scores, n, m)


@given(
    hnp.arrays(np.float32, (2, 12, 2), elements=st.floats(-3, 3, width=16)),
    st.sampled_from([(1, 4), (2, 4), (5, 6), (1, 12), (7, 12), (2, 2)]),
)
def test_mask_properties(scores, pattern):
    n, m = pattern
    mask = nm_mask(scores, NMPattern(n, m))
    for method in METHODS:
        np.testing.assert_array_equal(nm_mask(scores, NMPattern(n, m), method=method), mask)
    swapped = nm_mask(scores.swapaxes(-1, -2), NMPattern(n, m, -1))
    np.testing.assert_array_equal(swapped.swapaxes(-1, -2), mask)
    # Idempotent: masking what is masked keeps all that was kept and is not zero.
    kept = np.where(mask, np.abs(scores), 0)
    again = np.asarray(nm_mask(kept, NMPattern(n, m)))
    assert again[kept > 0].all()


@pytest.mark.parametrize("method", ["pairwise", "sort"])
def test_kept_count_may_be_traced(method):
    scores = jax.random.normal(jax.random.key(0), (16, 4))
    pattern = NMPattern(1, 8)
    traces = []

    @jax.jit
    def mask(n):
        traces.append(None)
        return nm_mask(scores, pattern, n, method=method)

    for n in (1, 3, 8):
        np.testing.assert_array_equal(mask(n), loop_mask(scores, n, 8, -2))
    assert len(traces) == 1
    with pytest.raises(ValueError, match="static n"):
        nm_mask(scores, pattern, jnp.int32(2), method="argmax")


def test_bfloat16_ties_are_broken_in_float32():
    w = jnp.array([[1.0, 1.001, 1.002, 1.003]])
    master = nm_mask(jnp.abs(w), NMPattern(2, 4, -1))
    assert master.tolist() == [[False, False, True, True]]
    equal = w.astype(jnp.bfloat16)
    np.testing.assert_array_equal(
        nm_mask(equal, NMPattern(2, 4, -1)), loop_mask(equal.astype(jnp.float32), 2, 4, -1)
    )


def test_stacked_and_vmapped_masks_agree():
    scores = jax.random.normal(jax.random.key(0), (3, 16, 4))
    pattern = NMPattern(2, 8)
    np.testing.assert_array_equal(
        jax.vmap(lambda s: nm_mask(s, pattern))(scores), nm_mask(scores, pattern)
    )


def test_masks_of_sharded_groups_need_no_communication():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model", None))
    scores = jax.device_put(jax.random.uniform(jax.random.key(0), (32, 4)), sharding)
    mask = jax.jit(lambda s: nm_mask(s, NMPattern(2, 4)), out_shardings=sharding)
    text = mask.lower(scores).compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(("n", "m", "block"), [(2, 4, 16), (3, 5, 3), (2, 2, 7)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_blocks_are_kept_whole_by_their_mean_score(n, m, block, axis):
    length = 2 * m * block
    shape = (2, length, 3) if axis == -2 else (2, 3, length)
    # Sums of few quarters are exact, so that the loop's means tie where the mask's do.
    scores = np.round(4 * np.random.default_rng(block).random(shape)).astype(np.float32) / 4
    means = np.moveaxis(scores, axis, -1).reshape(2, 3, 2 * m, block).mean(-1)
    assert len(np.unique(means)) < means.size  # there are ties
    expected = np.moveaxis(loop_mask(means, n, m, -1).repeat(block, -1), -1, axis)
    for method in [None, *METHODS]:
        mask = nm_mask(jnp.array(scores), NMPattern(n, m, axis, block), method=method)
        np.testing.assert_array_equal(mask, expected, err_msg=str(method))


@given(
    hnp.arrays(np.float32, (3, 24), elements=st.floats(-2, 2, width=32)),
    st.sampled_from([(1, 2, 6), (1, 4, 3), (3, 4, 6)]),
)
def test_masks_of_blocks_do_not_depend_on_method_or_layout(scores, pattern):
    n, m, block = pattern
    mask = nm_mask(scores, NMPattern(n, m, -1, block))
    for method in METHODS:
        np.testing.assert_array_equal(
            nm_mask(scores, NMPattern(n, m, -1, block), method=method), mask
        )
    turned = nm_mask(scores.T, NMPattern(n, m, -2, block))
    np.testing.assert_array_equal(turned.T, mask)
    alone = np.stack([nm_mask(row, NMPattern(n, m, -1, block)) for row in scores])
    np.testing.assert_array_equal(alone, mask)


def test_a_block_with_nan_is_the_smallest_and_infinities_do_not_make_one():
    scores = jnp.array([[1.0, jnp.nan, 0.0, 0.1, 3.0, jnp.inf, 2.0, 2.0]])
    mask = nm_mask(scores, NMPattern(3, 4, -1, block=2))
    assert mask[0].astype(int).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_any_axis_of_a_kernel_of_a_convolution():
    scores = jax.random.uniform(jax.random.key(0), (8, 4, 16, 4))
    for axis in (-1, -2, -3, -4):
        mask = nm_mask(scores, NMPattern(1, 2, axis, block=2))
        moved = nm_mask(jnp.moveaxis(scores, axis, -1), NMPattern(1, 2, -1, block=2))
        np.testing.assert_array_equal(jnp.moveaxis(mask, axis, -1), moved)


def test_groups_and_back():
    x = jnp.arange(48.0).reshape(24, 2)
    pattern = NMPattern(1, 3, -2, block=4)
    grouped = group(x, pattern)
    assert grouped.shape == (2, 12, 2)
    np.testing.assert_array_equal(grouped[1], x[12:])
    np.testing.assert_array_equal(ungroup(grouped, pattern), x)


def test_positions_take_the_smaller_of_two_forms():
    """A bitmask takes m bits a group and positions n b: the mask wins if n b > m, never at 1:m."""
    for m in (1, 2, 3, 4, 7, 8, 16, 17, 64, 256):
        bits = min(b for b in (1, 2, 4, 8) if 2**b >= m)
        for n in {1, max(1, m // 4), max(1, m // 2), m}:
            pattern = NMPattern(n, m)
            assert pattern.stores_bitmask == (n * bits > m)
            assert pattern.position_bits == min(n * bits, m)
            assert pattern.density == n / m
    cases = [(2, 4), (4, 8), (8, 16), (2, 128)]
    assert [NMPattern(n, m).stores_bitmask for n, m in cases] == [False, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "n=0, m=4"),
        ((5, 4), "n=5, m=4"),
        ((1, 512), "m=512"),
        ((2.0, 4), "n=2.0"),
        ((1, True), "m=True"),
        ((1, 4, 0), "axis=0 must be negative"),
        ((1, 4, "in"), "axis='in'"),
        ((1, 4, -2, 0), "block=0 must be 1 or more"),
    ],
)
def test_bad_patterns(arguments, message):
    with pytest.raises(ValueError, match=message):
        NMPattern(*arguments)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (NMPattern(1, 5), "m=5 must divide axis -2.*64 long; nearest m: 2, 4"),
        (NMPattern(1, 4, -3), "axis=-3 is none of the 2 axes.*nearest: -2"),
        (NMPattern(1, 5, -2, 16), "m=5 times block=16 must divide.*nearest m: 2, 4"),
        (NMPattern(1, 4, -2, 7), "m=4 times block=7 must divide.*nearest block: 2, 4"),
        (NMPattern(60, 60), "nearest m: 64"),
        (NMPattern(65, 100), "nearest m: none"),
    ],
)
def test_groups_that_do_not_fill_the_axis(pattern, message):
    with pytest.raises(ValueError, match=message):
        nm_mask(jnp.ones((64, 8)), pattern)


def test_matrices_have_two_axes_to_group_along():
    with pytest.raises(ValueError, match=r"axis=-3 must be -2 \(input\) or -1"):
        NMPattern(1, 4, -3).check_matrix_axis()


def test_convolution_kernels_are_grouped_along_their_input_channels():
    """As HWIO arrays, and as this library's (height * width * d_in, d_out), tap by tap the same."""
    hwio = jax.random.normal(jax.random.key(0), (3, 3, 8, 5))
    flat = nm_mask(jnp.abs(hwio.reshape(-1, 5)), NMPattern(1, 4))
    np.testing.assert_array_equal(nm_mask(jnp.abs(hwio), NMPattern(1, 4)).reshape(-1, 5), flat)
