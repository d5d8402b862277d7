"""N:M: masks against a loop, worked values, gradients of the recipes, exact packing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxlab.methods.nm import (
    NM,
    NMPacked,
    NMPattern,
    nm_effective,
    nm_mask,
    nm_matmul,
    nm_pack,
    nm_unpack,
)

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


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("axis", [-1, -2])
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


class EffectiveTest(chex.TestCase):
    """The effective weight and its derivatives, with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        (0.25, "ste", [4, -3, 0.5, 0.25], [1, 1, 1, 1]),
        (0.25, "masked", [4, -3, 0.5, 0.25], [1, 1, 0.25, 0.25]),
        (1.0, "ste", [4, -3, 2, 1], [1, 1, 1, 1]),
        (1.0, "masked", [4, -3, 2, 1], [1, 1, 1, 1]),
        (0.0, "ste", [4, -3, 0, 0], [1, 1, 1, 1]),
        (0.0, "masked", [4, -3, 0, 0], [1, 1, 0, 0]),
    )
    def test_worked_values(self, decay, grad_mode, value, gradient):
        w = jnp.array([[4.0, -3.0, 2.0, 1.0]])
        mask = nm_mask(jnp.abs(w), NMPattern(2, 4, -1))
        fn = self.variant(lambda w, decay: nm_effective(w, mask, decay, grad_mode))
        chex.assert_trees_all_equal(fn(w, decay), jnp.array([value], jnp.float32))
        actual = self.variant(jax.grad(lambda w: jnp.sum(fn(w, decay))))(w)
        chex.assert_trees_all_equal(actual, jnp.array([gradient], jnp.float32))
        # Forward mode agrees: the rule is a derivative rule and not a gradient rule.
        _, tangent = jax.jvp(lambda w: fn(w, decay), (w,), (jnp.ones_like(w),))
        chex.assert_trees_all_equal(tangent, jnp.array([gradient], jnp.float32))

    @chex.variants(with_jit=True, without_jit=True)
    def test_srste_adds_lambda_times_the_pruned_weight(self):
        w = NM.from_dense(jnp.array([[4.0], [-3.0], [2.0], [1.0]]), n=2, m=4, recipe="srste")
        gradient = self.variant(jax.grad(lambda w: jnp.sum(w.to_dense())))(w)
        expected = jnp.array([[1.0], [1.0], [1.0004], [1.0002]])
        np.testing.assert_allclose(gradient.weight, expected, rtol=1e-7)

    @chex.variants(with_jit=True, without_jit=True)
    def test_srste_is_ste_on_the_regularised_loss(self):
        weight = jax.random.normal(jax.random.key(0), (16, 4))
        lam = 0.3

        def loss(w):
            return jnp.sum(jnp.sin(w.to_dense()))

        def regularised(w):
            pruned = jnp.where(w.mask, 0.0, w.weight)
            return loss(w) + lam / 2 * jnp.sum(pruned**2)

        srste = NM.from_dense(weight, n=1, m=4, recipe="srste", lam=lam)
        ste = NM.from_dense(weight, n=1, m=4, recipe="ste")
        actual = self.variant(jax.grad(loss))(srste).weight
        expected = self.variant(jax.grad(regularised))(ste).weight
        chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def test_pruned_infinity_is_zero_and_not_nan():
    w, mask = jnp.array([jnp.inf, -2.0]), jnp.array([False, True])
    for mode in ("ste", "masked"):
        value = nm_effective(w, mask, 0.0, mode)
        assert value.tolist() == [0.0, -2.0]
        assert not np.signbit(value[0])


@pytest.mark.parametrize(
    ("n", "m", "dtype"),
    [
        *[(n, m, jnp.float32) for n, m in PATTERNS],
        *[(2, 4, dtype) for dtype in (jnp.bfloat16, jnp.float16, jnp.int8)],
    ],
)
@pytest.mark.parametrize("axis", [-1, -2])
def test_packing_is_exact(dtype, n, m, axis):
    shape = (2, 2 * m, 3) if axis == -2 else (2, 3, 2 * m)
    w = (20 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)
    pattern = NMPattern(n, m, axis)
    mask = nm_mask(jnp.abs(w.astype(jnp.float32)), pattern)
    packed = nm_pack(w, mask, pattern)
    chex.assert_type(packed.values, dtype)
    chex.assert_trees_all_equal(nm_unpack(packed), jnp.where(mask, w, jnp.zeros_like(w)))
    assert packed.shape == shape


def test_packing_keeps_the_bits_of_odd_values():
    w = jnp.array([[-0.0], [jnp.nan], [jnp.inf], [1.0]])
    mask = jnp.array([[True], [True], [False], [False]])
    unpacked = np.asarray(nm_unpack(nm_pack(w, mask, NMPattern(2, 4))))
    assert np.signbit(unpacked[0, 0])
    assert unpacked[0, 0] == 0
    assert np.isnan(unpacked[1, 0])
    assert unpacked[2:, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("n", "m", "bytes_per_weight"),
    [
        (2, 4, 1.125),
        (1, 4, 0.5625),
        (1, 8, 0.3125),
        (1, 16, 0.15625),
        (1, 32, 0.09375),
        (2, 128, 0.046875),
    ],
)
def test_packed_bytes_equal_the_formula(n, m, bytes_per_weight):
    """Density (2 + b / 8) bytes for each 16-bit weight, with b = 2, 4 or 8 bits of position."""
    w = jnp.zeros((1024, 8), jnp.bfloat16)
    assert NMPacked.from_dense(w, n=n, m=m).nbytes == bytes_per_weight * w.size


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_matmul_and_its_gradients(dtype, tolerance, maybe_jit):
    w = jax.random.normal(jax.random.key(0), (64, 24), dtype)
    packed = NMPacked.from_dense(w, n=2, m=8)
    x = jax.random.normal(jax.random.key(1), (7, 64), dtype)
    dense = nm_unpack(packed)
    y, vjp = jax.vjp(maybe_jit(lambda x, v: nm_matmul(x, _with(packed, v))), x, packed.values)
    g = jax.random.normal(jax.random.key(2), y.shape, dtype)
    dx, dvalues = vjp(g)
    wide = jnp.float32
    full = x.astype(wide).T @ g.astype(wide)
    kept = nm_pack(full, dense != 0, packed.pattern).values
    for actual, expected in [
        (y, x.astype(wide) @ dense.astype(wide)),
        (dx, g.astype(wide) @ dense.astype(wide).T),
        (dvalues, kept),
    ]:
        scale = jnp.abs(expected).max()
        assert jnp.abs(actual.astype(wide) - expected).max() <= tolerance * scale


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0, "m": 4}, "n=0, m=4"),
        ({"n": 5, "m": 4}, "n=5, m=4"),
        ({"n": 1, "m": 512}, "m=512"),
        ({"n": 1, "m": 5}, "nearest m: 2, 4"),
        ({"n": 1, "m": 4, "axis": 0}, "axis=0"),
        ({"n": 1, "m": 4, "recipe": "asp"}, "srste"),
        ({"n": 1, "m": 4, "lam": float("nan")}, "lam=nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NM.from_dense(jnp.ones((64, 8)), **arguments)


def test_nan_kernel_and_wrong_mask_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        NM.from_dense(jnp.full((4, 4), jnp.nan), n=2, m=4)
    with pytest.raises(ValueError, match="4 to 4 entries and not n=2"):
        nm_pack(jnp.ones((4, 4)), jnp.ones((4, 4), bool), NMPattern(2, 4))


def _with(packed, values):
    return NMPacked(values, packed.index, packed.n, packed.m, packed.axis)
