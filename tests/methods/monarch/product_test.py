"""Products with Monarch matrices against the definition, entry by entry in NumPy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.monarch import (
    MonarchShape,
    init_monarch,
    monarch_apply,
    monarch_apply_t,
    monarch_shapes,
    monarch_slogdet,
    monarch_solve,
    monarch_to_dense,
)
from jaxlab.methods.monarch.slices import join_slices, slice_factors

SHAPES = [
    monarch_shapes(12, 8, nblocks=2),
    monarch_shapes(5, 6, nblocks=1),
    monarch_shapes(10, 7, nblocks=4),  # padded on both sides
    monarch_shapes(12, 15, k=2, l=5, rank=2),
    MonarchShape(k=4, q=6, p=2, l=3, s=5, r=8, n_in=8, n_out=15),
    MonarchShape(k=3, q=8, p=2, l=6, s=2, r=4, n_in=5, n_out=11),  # q / l is no integer
    MonarchShape(k=6, q=2, p=3, l=4, s=3, r=3, n_in=18, n_out=12),  # some slices are 0
]
ids = lambda s: "-".join(map(str, (s.k, s.q, s.p, s.l, s.s, s.r)))  # noqa: E731
all_shapes = pytest.mark.parametrize("shape", SHAPES, ids=ids)


def example(shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"w1": (shape.k, shape.q, shape.p), "w2": (shape.l, shape.s, shape.r)}

    def draw(size):
        x = rng.standard_normal(size)
        return x + 1j * rng.standard_normal(size) if np.issubdtype(dtype, np.complexfloating) else x

    return {name: jnp.asarray(draw(size), dtype) for name, size in sizes.items()}


def by_definition(params, shape):
    """W[t l + j, kk p + i]: sum of w2[j, t, m div l] w1[kk, a, i] over m = kk q + a in class j."""
    w1, w2 = (np.asarray(params[name]) for name in ("w1", "w2"))
    dense = np.zeros((shape.s * shape.l, shape.k * shape.p), np.result_type(w1, w2))
    for kk, a in np.ndindex(shape.k, shape.q):
        slot, j = divmod(kk * shape.q + a, shape.l)
        block = np.outer(w2[j, :, slot], w1[kk, a])
        dense[j :: shape.l, kk * shape.p : (kk + 1) * shape.p] += block
    return dense[: shape.n_out, : shape.n_in]


def rows(n, dtype=np.float64, stack=(2, 3), seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((*stack, n)), dtype)


@all_shapes
def test_products_follow_the_definition(shape):
    with jax.enable_x64(True):
        params = example(shape)
        dense = by_definition(params, shape)
        np.testing.assert_allclose(monarch_to_dense(params, shape), dense, rtol=0, atol=1e-12)
        x, y = rows(shape.n_in), rows(shape.n_out)
        both = jax.jit(lambda p, x, y: (monarch_apply(p, x, shape), monarch_apply_t(p, y, shape)))
        wx, wty = both(params, x, y)
        np.testing.assert_allclose(wx, np.asarray(x) @ dense.T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(wty, np.asarray(y) @ dense, rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.vdot(y, wx), np.vdot(wty, x), rtol=1e-12)


def test_one_vector_and_no_vector():
    shape = SHAPES[2]
    params, x = example(shape, np.float32), rows(10, np.float32, stack=())
    dense = by_definition(params, shape)
    np.testing.assert_allclose(monarch_apply(params, x, shape), dense @ x, atol=1e-5)
    assert monarch_apply(params, jnp.ones((0, 10)), shape).shape == (0, 7)


@all_shapes
def test_slices_and_back(shape):
    params = example(shape, np.float32)
    left, right = slice_factors(params["w1"], params["w2"], shape)
    w1, w2 = join_slices(left, right, shape)
    np.testing.assert_array_equal(w1, params["w1"])
    np.testing.assert_array_equal(w2, params["w2"])
    dense = by_definition(params, shape)
    tensor = np.zeros((shape.s * shape.l, shape.k * shape.p))
    tensor[: shape.n_out, : shape.n_in] = dense
    tensor = tensor.reshape(shape.s, shape.l, shape.k, shape.p)
    for j, kk in np.ndindex(shape.l, shape.k):
        assert np.linalg.matrix_rank(tensor[:, j, kk], tol=1e-4) <= shape.block_ranks[j, kk]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_low_precision(dtype):
    shape = monarch_shapes(64, 96, nblocks=4)
    params, x = example(shape, dtype), rows(64, dtype)
    exact = (
        np.asarray(x, np.float64)
        @ by_definition({name: np.asarray(w, np.float64) for name, w in params.items()}, shape).T
    )
    for result in (monarch_apply(params, x), x @ monarch_to_dense(params).T):
        chex.assert_type(result, dtype)
        error = np.abs(np.asarray(result, np.float64) - exact).max() / np.abs(exact).max()
        assert error < {np.float32: 1e-5}.get(dtype, 2e-2)
    gradient = jax.grad(lambda x: jnp.sum(monarch_apply(params, x).astype(jnp.float32)))(x)
    chex.assert_type(gradient, dtype)


def test_sums_of_bfloat16_do_not_stall():
    """1 + 2^-9 + ... in bfloat16 stays 1; the sums of every product must not."""
    x = jnp.full(512, 2.0**-9, jnp.bfloat16).at[0].set(1.0)
    one = jnp.ones(1, jnp.bfloat16)
    wide = {"w1": jnp.ones((1, 1, 512), jnp.bfloat16), "w2": jnp.ones((1, 1, 1), jnp.bfloat16)}
    deep = {"w1": x.reshape(1, 512, 1), "w2": jnp.ones((1, 1, 512), jnp.bfloat16)}
    turned = {"w1": jnp.ones((1, 1, 1), jnp.bfloat16), "w2": x.reshape(1, 512, 1)}
    ones = jnp.ones(512, jnp.bfloat16)
    for result in (
        monarch_apply(wide, x),
        monarch_apply(deep, one),
        monarch_apply_t(deep, one),
        monarch_apply_t(turned, ones),
        monarch_to_dense(deep)[0],
    ):
        assert result.tolist() == [2.0]


@pytest.mark.parametrize(
    ("product", "kind", "save_h"),
    [
        (monarch_apply, np.float64, False),
        (monarch_apply, np.complex128, True),
        (monarch_apply_t, np.complex128, False),
    ],
)
def test_derivatives_are_those_of_the_dense_matrix(product, kind, save_h):
    shape = SHAPES[5]
    with jax.enable_x64(True):
        params, tangents = example(shape, kind), example(shape, kind, seed=2)
        n = shape.n_in if product is monarch_apply else shape.n_out
        x, dx = (rows(n, stack=(3,), seed=s).astype(kind) for s in (3, 4))

        def through_factors(params, x):
            return product(params, x, shape, save_h=save_h)

        def through_dense(params, x):
            dense = monarch_to_dense(params, shape)
            return x @ (dense.T if product is monarch_apply else dense)

        def derivatives(fn, params, x, tangents, dx):
            y, dy = jax.jvp(fn, (params, x), (tangents, dx))
            return y, dy, jax.vjp(fn, params, x)[1](y.conj())

        results = [
            jax.jit(partial(derivatives, fn))(params, x, tangents, dx)
            for fn in (through_factors, through_dense)
        ]
        chex.assert_trees_all_close(*results, rtol=0, atol=1e-11)


def test_what_the_backward_pass_keeps():
    shape = monarch_shapes(64, 64, nblocks=2)
    params, x = example(shape, np.float32), rows(64, np.float32)
    for save_h, middle in [(False, 0), (True, x.nbytes)]:
        _, pull = jax.vjp(lambda p, x, s=save_h: monarch_apply(p, x, save_h=s), params, x)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
        assert kept == x.nbytes + sum(w.nbytes for w in params.values()) + middle


def test_the_program_is_two_products_and_two_permutations():
    shape = monarch_shapes(96, 64, nblocks=4)
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), example(shape, np.float32))
    x = rows(96, jnp.bfloat16, stack=(5,))
    for product, operand in [(monarch_apply, x), (monarch_apply_t, x[:, :64])]:
        text = jax.jit(product).lower(params, operand).as_text()
        assert (text.count("dot_general"), text.count("stablehlo.transpose")) == (2, 2)
        assert "64x96" not in text
        assert "96x64" not in text

    def loss(params, x):
        return jnp.sum(monarch_apply(params, x).astype(jnp.float32))

    text = jax.jit(jax.grad(loss)).lower(params, x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    # Once more the middle, its gradient, and those of the factors; in 16 bits but for the first.
    assert len(products) <= 5
    assert all("xf32>," not in line.split(" : ")[-1].split("->")[0] for line in products)


def test_a_stack_of_factors_under_vmap():
    shape = SHAPES[2]
    params = init_monarch(jax.random.key(0), shape, stack=(3,))
    x = rows(10, np.float32)
    stacked = jax.vmap(lambda p: monarch_apply(p, x, shape))(params)
    dense = monarch_to_dense(params, shape)
    assert dense.shape == (3, 7, 10)
    for i in range(3):
        single = jax.tree.map(lambda w, i=i: w[i], params)
        np.testing.assert_allclose(dense[i], by_definition(single, shape), atol=1e-6)
        np.testing.assert_allclose(stacked[i], x @ dense[i].T, atol=1e-5)


def test_a_complex_matrix_and_a_real_operand():
    shape = SHAPES[2]
    params, x = example(shape, np.complex64), rows(10, np.float32)
    result = monarch_apply(params, x, shape)
    chex.assert_type(result, np.complex64)
    np.testing.assert_allclose(result, np.asarray(x) @ by_definition(params, shape).T, atol=1e-4)
    real = example(shape, np.float32)
    chex.assert_type(monarch_apply(real, x.astype(np.complex64), shape), np.complex64)


@pytest.mark.parametrize("sizes", [(3, 4, 4, 3, 4, 4), (2, 6, 6, 4, 3, 3)], ids=str)
def test_inverse_and_determinant(sizes):
    k, q, p, l, s, r = sizes  # noqa: E741
    shape = MonarchShape(k, q, p, l, s, r, n_in=12, n_out=12)
    with jax.enable_x64(True):
        params = example(shape)
        dense = by_definition(params, shape)
        y = rows(12)
        solution = jax.jit(monarch_solve)(params, y)
        np.testing.assert_allclose(np.asarray(solution) @ dense.T, y, rtol=0, atol=1e-10)
        sign, log = jax.jit(monarch_slogdet)(params)
        expected = np.linalg.slogdet(dense)
        assert float(sign) == expected[0]
        np.testing.assert_allclose(log, expected[1], rtol=1e-12)


def test_operands_that_do_not_fit():
    shape = SHAPES[2]
    params, full = example(shape, np.float32), monarch_shapes(12, 8, nblocks=4)
    with pytest.raises(ValueError, match=r"\(3, 12\) must be n_in=10"):
        monarch_apply(params, jnp.ones((3, 12)), shape)
    with pytest.raises(ValueError, match=r"\(3, 10\) must be n_in=12"):
        monarch_apply(params, jnp.ones((3, 10)))
    with pytest.raises(ValueError, match=r"\(10,\) must be n_out=7"):
        monarch_apply_t(params, jnp.ones(10), shape)
    with pytest.raises(ValueError, match=r"\(2, 4, 6\).*\(4, 2, 3\)"):
        monarch_apply(example(SHAPES[0], np.float32), jnp.ones(12), full)
    with pytest.raises(TypeError, match="w1 is int32"):
        monarch_apply({**params, "w1": params["w1"].astype(jnp.int32)}, jnp.ones(10), shape)
    with pytest.raises(TypeError, match="operand is int32"):
        monarch_apply(params, jnp.ones(10, jnp.int32), shape)
    with pytest.raises(ValueError, match="k q = 2 x 3 = 6, but l r = 2 x 4 = 8"):
        monarch_apply({"w1": jnp.ones((2, 3, 2)), "w2": jnp.ones((2, 3, 4))}, jnp.ones(4))
    with pytest.raises(ValueError, match="square, not 2 x 3 and 2 x 2"):
        monarch_solve(params, jnp.ones(8))
