import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import plan
from jaxlab.kernels.packing import Planar, pack, unpack
from jaxlab.kernels.sign_matmul import Config, Problem, api, sign_matmul
from jaxlab.kernels.sign_matmul.reference import popcount, reference, xla
from jaxlab.kernels.sign_matmul.shapes import refuse
from jaxlab.kernels.unpacking import int8_signs


def signs(rng, *shape):
    return np.where(rng.random(shape) < 0.5, -1, 1)


def operands(m, n, k, *, packed=True, width=64, scale=None):
    """Left, right, scale, and the exact product."""
    rng = np.random.default_rng(m + n + k)
    q = signs(rng, n, k)
    p = signs(rng, m, k) if packed else rng.integers(-128, 128, (m, k))
    a = pack(jnp.asarray(p), "binary", width=width) if packed else jnp.asarray(p, jnp.int8)
    s = None if scale is None else jnp.asarray(rng.uniform(0.5, 1.5, n), scale)
    return a, pack(jnp.asarray(q), "binary", width=width), s, p @ q.T


@pytest.mark.parametrize("k", [31, 32, 33, 1000])
@pytest.mark.parametrize("packed", [True, False])
def test_it_is_the_product_of_integers(k, packed):
    a, b, _, exact = operands(5, 7, k, packed=packed)
    y = sign_matmul(a, b)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(np.asarray(y), exact)
    left = a.words if packed else a
    np.testing.assert_array_equal(np.asarray(reference(left, b, None, jnp.int32)), exact)


@pytest.mark.parametrize(("m", "n", "k", "width"), [(9, 3, 257, 16), (1, 20, 2049, 128)])
def test_counting_bits_is_the_product_of_int8(m, n, k, width):
    a, b, _, exact = operands(m, n, k, width=width)
    np.testing.assert_array_equal(np.asarray(jax.jit(popcount)(a.words, b)), exact)
    product = jax.jit(functools.partial(xla, dtype=jnp.int32))
    np.testing.assert_array_equal(np.asarray(product(unpack(a), b, None)), exact)


def test_a_scale_is_rounded_once():
    a, b, scale, exact = operands(4, 6, 200, packed=False, scale=jnp.float32)
    wide = exact.astype(np.float64) * np.asarray(scale, np.float64)
    y = sign_matmul(a, b, scale, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(
        np.asarray(y), np.asarray(jnp.asarray(wide, jnp.float32), y.dtype)
    )
    np.testing.assert_allclose(np.asarray(sign_matmul(a, b, scale)), wide, rtol=1e-6)
    assert sign_matmul(a, b, scale.astype(jnp.float16)).dtype == jnp.float16
    assert sign_matmul(a, b, dtype=jnp.float32).dtype == jnp.float32


def test_fields_are_those_that_were_packed():
    q = jnp.asarray(signs(np.random.default_rng(0), 3, 2048))
    words = pack(q, "binary", width=64).words
    for block in (0, 1):
        own = words[:, block * 64 : (block + 1) * 64]
        for fields in ([3], [0, 8], [7, 15, 2, 10]):
            got = int8_signs(own, [(jnp.int32(p % 8), p >= 8) for p in fields])
            at = [block * 1024 + p * 64 for p in fields]
            expected = np.concatenate([q[:, i : i + 64] for i in at], axis=1)
            np.testing.assert_array_equal(np.asarray(got), expected)


# jax 0.10 interprets no products from slices of tiled memory; there the kernel is only lowered.
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("m", "n", "packed", "config", "dtype"),
    [
        (128, 256, True, Config(128, 3, unpack=2), None),
        (130, 128, False, Config(128, 2, unpack=1), jnp.bfloat16),
        (64, 256, True, Config(256, 2, unpack=0), jnp.float32),
        (3, 64, True, plan.Config(1, 1), None),
    ],
)
def test_the_interpreted_kernel_is_exact(m, n, packed, config, dtype, monkeypatch):
    monkeypatch.setattr(plan, "PROCESSORS", 1)  # so that one block takes all tiles in turn
    a, b, scale, exact = operands(m, n, 1000, packed=packed, scale=dtype)
    y = sign_matmul(a, b, scale, config=config, interpret=True)
    if scale is not None:
        exact = sign_matmul(a, b, scale, implementation="xla")
    np.testing.assert_array_equal(np.asarray(y), np.asarray(exact))


@pytest.mark.parametrize(
    ("m", "packed", "config", "dtype"),
    [
        (4096, True, Config(), None),
        (4096, False, Config(unpack=1, stages=3), jnp.bfloat16),
        (16, False, None, None),
    ],
)
def test_the_kernel_lowers_for_cuda(m, packed, config, dtype, on_an_h100):
    def product(a, words, scale):
        b = Planar(words, "binary", 4096)
        a = Planar(a, "binary", 4096) if packed else a
        return sign_matmul(a, b, scale, dtype=dtype, config=config, implementation="mosaic_gpu")

    words = jax.ShapeDtypeStruct((4096, 256), jnp.uint16)
    a = words if packed else jax.ShapeDtypeStruct((m, 4096), jnp.int8)
    scale = None if dtype is None else jax.ShapeDtypeStruct((4096,), jnp.float32)
    with on_an_h100():
        text = jax.jit(product).trace(a, words, scale).lower(lowering_platforms=("cuda",))
    assert text.as_text().count("mosaic_gpu_v2") == 1


def test_only_the_scale_has_a_gradient():
    a, b, scale, exact = operands(4, 6, 40, packed=False, scale=jnp.float32)
    weight = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)

    def loss(scale):
        return jnp.sum(weight * sign_matmul(a, b, scale))

    expected = (np.asarray(weight) * exact).sum(0)
    np.testing.assert_allclose(np.asarray(jax.grad(loss)(scale)), expected, rtol=1e-6)
    grad = jax.grad(lambda a: jnp.sum(sign_matmul(a, b, scale)), allow_int=True)(a)
    assert grad.dtype == jax.dtypes.float0
    # A straight-through rule is the layer's: signs forward, the dense product backward.
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 40)), jnp.float32)

    @jax.custom_vjp
    def layer(x):
        return sign_matmul(jnp.where(x < 0, -1, 1).astype(jnp.int8), b, scale)

    dense = unpack(b).astype(jnp.float32) * scale[:, None]
    layer.defvjp(lambda x: (layer(x), None), lambda _, g: (g @ dense,))
    got = jax.jit(jax.grad(lambda x: jnp.sum(weight * layer(x))))(x)
    np.testing.assert_allclose(np.asarray(got), np.asarray(weight @ dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_batches(packed):
    a, b, _, exact = operands(6, 5, 70, packed=packed)
    batch = jax.tree.map(lambda x: x.reshape(3, 2, -1), a)
    product = jax.jit(jax.vmap(lambda a: sign_matmul(a, b)))
    np.testing.assert_array_equal(np.asarray(product(batch)), exact.reshape(3, 2, 5))
    np.testing.assert_array_equal(np.asarray(sign_matmul(batch, b)), exact.reshape(3, 2, 5))
    # Of both operands: XLA's product, batched.
    both = jax.tree.map(lambda x: jnp.stack([x, x]), b)
    left = jax.tree.map(lambda x: jnp.stack([x[:3], x[3:]]), a)
    got = jax.vmap(sign_matmul)(left, both)
    np.testing.assert_array_equal(np.asarray(got), exact.reshape(2, 3, 5))
    assert sign_matmul(jax.tree.map(lambda x: x[:0], a), b).shape == (0, 5)


def test_rows_of_b_on_two_devices():
    a, b, _, exact = operands(4, 6, 100, packed=False)
    mesh = Mesh(np.array(jax.devices()), ("n",))

    def local(a, words):
        return sign_matmul(a, Planar(words, "binary", 100))

    specs = {"in_specs": (P(), P("n", None)), "out_specs": P(None, "n")}
    product = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    np.testing.assert_array_equal(np.asarray(product(a, b.words)), exact)


def test_bad_arguments_are_named():
    a, b, scale, _ = operands(4, 6, 40, scale=jnp.float32)
    plain = unpack(a)
    four = pack(jnp.zeros((4, 40), jnp.int8), "int4")
    narrow = pack(plain, "binary", width=32)
    for error, bad, says in [
        (ValueError, lambda: sign_matmul(plain[:, :39], b), "does not end in k=40"),
        (ValueError, lambda: sign_matmul(four, b), "a is of kind 'int4'; nearest: 'binary'"),
        (ValueError, lambda: sign_matmul(plain, four), "b is of kind 'int4'"),
        (ValueError, lambda: sign_matmul(narrow, b), "a.width=32 .* nearest: 64"),
        (ValueError, lambda: sign_matmul(plain, b, scale[:5]), r"scale of shape \(5,\)"),
        (ValueError, lambda: sign_matmul(a, b, implementation="popcount"), "nearest"),
        (TypeError, lambda: sign_matmul(plain.astype(jnp.int32), b), "a must be int8"),
        (TypeError, lambda: sign_matmul(plain, b, jnp.ones(6, jnp.int32)), "scale must be"),
        (TypeError, lambda: sign_matmul(plain, b, scale, dtype=jnp.int32), "nearest: float32"),
        (NotImplementedError, lambda: sign_matmul(a, b, implementation="mosaic_gpu"), "a GPU"),
        (NotImplementedError, lambda: sign_matmul(a, b, implementation="triton"), "has only"),
    ]:
        with pytest.raises(error, match=says):
            bad()
    y = sign_matmul(a, b, implementation=("mosaic_gpu", "xla"))
    assert y.shape == (4, 6)


def test_what_the_kernel_does_not_take_is_said():
    fits = Problem(4096, 4096, 4096, 64, True, "int32")
    for problem, config, says in [
        (fits._replace(n=4000), Config(), "n=4000"),
        (fits._replace(width=32), Config(stages=3, unpack=1), "blocks of 32"),
        (fits._replace(k=4096 + 256), Config(), "multiple of 512"),
        (fits, Config(stages=8), "shared memory"),
        (fits, Config(tile_n=64), "tile_n"),
        (fits._replace(rows=16, k=2**18), plan.Config(), "float32 is exact"),
    ]:
        assert says in refuse(problem, config)
    for problem in (fits, fits._replace(packed=False), fits._replace(width=128, dtype="bfloat16")):
        found = problem.candidates()
        assert found
        assert len(set(found)) == len(found)
        assert not any(refuse(problem, config) for config in found)


@pytest.mark.gpu
@pytest.mark.skipif(os.environ.get("JAXLAB_TEST_PLATFORMS") != "cuda", reason="compiles for a GPU")
@pytest.mark.parametrize(
    ("m", "packed", "config"),
    [
        *((1000, True, c) for c in Problem(1000, 2048, 4000, 64, True, "int32").candidates()),
        *((1000, False, c) for c in Problem(1000, 2048, 4000, 64, False, "int32").candidates(4)),
        (1000, True, Config(stages=3)),
        (16, True, None),
        (1, False, None),
    ],
)
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_compiled_kernel_is_exact(m, packed, config, dtype):
    a, b, scale, exact = operands(m, 2048, 4000, packed=packed, scale=dtype)
    product = functools.partial(sign_matmul, config=config, implementation="mosaic_gpu")
    y = jax.jit(product)(a, b, scale)
    expected = exact if dtype is None else sign_matmul(a, b, scale, implementation="xla")
    np.testing.assert_array_equal(np.asarray(y), np.asarray(expected))
    assert api.problem_of(a.words if packed else a, b, jnp.int32).k == 4096
