"""Every op with sizes of nothing, sizes that are not known, and operands of the wrong kind."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels.binary_matmul import binary_matmul
from jaxlab.kernels.kron_matvec import kron_matvec
from jaxlab.kernels.low_rank_matmul import low_rank_matmul
from jaxlab.kernels.monarch_matmul import monarch_matmul
from jaxlab.kernels.nm_matmul import nm_matmul
from jaxlab.kernels.packing import Planar, pack, unpack
from jaxlab.kernels.packing_nm import pack_nm, unpack_nm
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul import quantized_matmul
from jaxlab.kernels.sign_matmul import sign_matmul

K, N = 128, 64
KEEPS = jnp.tile(jnp.array([True, False, True, False]), (N, K // 4))


def drawn(*shape, low=-8, high=8):
    return jnp.asarray(np.random.default_rng(0).integers(low, high, shape), jnp.int8)


def signs():
    return jnp.where(drawn(N, K) < 0, -1, 1).astype(jnp.int8)


INT4 = functools.partial(pack, kind="int4", width=16)
SCALE = jnp.linspace(0.5, 1.5, 2 * N).reshape(2, N)
# Of each op, the product with fixed weights, and the shape and the dtype of a row of its operand.
OPS = {
    "quantized": (lambda x: quantized_matmul(x, INT4(drawn(N, K)), SCALE), (K,), jnp.float32),
    "binary": (lambda x: binary_matmul(x, pack(signs(), "binary"), SCALE[0]), (K,), jnp.float32),
    "nm": (
        lambda x: nm_matmul(x, pack_nm(drawn(N, K).astype(jnp.float32), KEEPS, 2, 4)),
        (K,),
        jnp.float32,
    ),
    "sign": (lambda x: sign_matmul(x, pack(signs(), "binary")), (K,), jnp.int8),
    "monarch": (
        lambda x: monarch_matmul(x, jnp.ones((8, 8, 16)), jnp.ones((8, 8, 8))),
        (K,),
        jnp.float32,
    ),
    "low_rank": (
        lambda x: low_rank_matmul(x, jnp.ones((K, 4)), jnp.ones((4, N))), (K,), jnp.float32
    ),
    "kron": (
        lambda x: kron_matvec(x, jnp.ones((3, 8)), jnp.ones((5, 16))), (8, 16), jnp.float32
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_a_batch_of_nothing_is_nothing(op):
    product, row, dtype = OPS[op]
    expected = jax.eval_shape(product, jnp.zeros((2, *row), dtype)).shape[1:]
    for lead in ((0, 2), (2, 0), (0, 0)):
        y = jax.vmap(product)(jnp.zeros((*lead, *row), dtype))
        assert y.shape == (*lead, *expected)


@pytest.mark.parametrize("op", OPS)
def test_programs_for_every_number_of_rows_are_exported(op):
    product, row, dtype = OPS[op]
    (rows,) = jax.export.symbolic_shape("rows")
    program = jax.export.export(jax.jit(product))(jax.ShapeDtypeStruct((rows, *row), dtype))
    for count in (2, 7):
        x = drawn(count, *row).astype(dtype)
        np.testing.assert_allclose(program.call(x), product(x), rtol=1e-5)


def test_a_kernel_that_is_named_wants_to_know_its_rows():
    (rows,) = jax.export.symbolic_shape("rows")
    x, packed = jax.ShapeDtypeStruct((rows, K), jnp.bfloat16), INT4(drawn(N, K))
    product = functools.partial(quantized_matmul, packed=packed, scale=SCALE)
    with pytest.raises(NotImplementedError, match="mosaic_gpu: an array of shape .rows, 128."):
        jax.eval_shape(functools.partial(product, implementation="mosaic_gpu"), x)
    either = functools.partial(product, implementation=("mosaic_gpu", "xla"))
    assert jax.eval_shape(either, x).shape == (rows, N)


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (4, 0)])
def test_nothing_is_packed_and_unpacked(shape):
    q = jnp.zeros(shape, jnp.int8)
    assert unpack(INT4(q)).shape == shape
    for kind in (None, "int8"):
        assert unpack_nm(pack_nm(q, q > 0, 2, 4, kind=kind)).shape == shape


@pytest.mark.parametrize(
    ("n", "m", "block"), [(2, 4, 1), (1, 4, 1), (3, 4, 1), (1, 8, 1), (2, 4, 4), (1, 8, 16)]
)
@pytest.mark.parametrize("k", [384, 512, 640, 768])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_weights_of_no_whole_tiles_are_multiplied(n, m, block, k, implementation):
    # As many outputs as a kernel takes, and inputs that it may not.
    keeps = jnp.tile(jnp.repeat(jnp.arange(m) < n, block), (N, k // (m * block)))
    w = jnp.where(keeps, drawn(N, k), 0).astype(jnp.float32)
    for rows in (1, 2, 64):
        x = drawn(rows, k).astype(jnp.float32)
        y = nm_matmul(x, pack_nm(w, keeps, n, m, block=block), implementation=implementation)
        np.testing.assert_array_equal(y, x @ w.T)


@pytest.mark.parametrize("k", [4, 100, 192])
def test_other_inputs_of_2_4_are_multiplied(k):
    w = jnp.where(jnp.arange(k) % 4 < 2, drawn(N, k), 0).astype(jnp.float32)
    x = drawn(3, k).astype(jnp.float32)
    np.testing.assert_array_equal(nm_matmul(x, pack_nm(w, w != 0, 2, 4)), x @ w.T)


@pytest.mark.parametrize(
    "q",
    [
        jnp.array([[2**32 - 1]], jnp.uint32),
        np.array([[2**32 + 1]], np.int64),
        jnp.array([[200]], jnp.uint8),
        np.array([[-9]], np.int16),
    ],
)
def test_what_a_kind_does_not_hold_is_named_whatever_the_dtype(q):
    with pytest.raises(ValueError, match=f"pack: q holds {int(q[0, 0])}, which 'int4' does not"):
        INT4(q)
    inside = np.arange(-8 if q.dtype.kind == "i" else 0, 8)[None]
    assert unpack(INT4(inside.astype(q.dtype))).tolist() == inside.tolist()


def test_what_is_no_packed_operand_is_named():
    x, q = jnp.ones((2, K)), drawn(N, K)
    packed, sparse = INT4(q), pack_nm(q, KEEPS, 2, 4, kind="int4")
    wide = dataclasses.replace(sparse, values=pack(unpack(sparse.values), "int4", width=64))
    words = dataclasses.replace(packed, words=packed.words.astype(jnp.int32))
    integers = dataclasses.replace(
        sparse,
        values=dataclasses.replace(sparse.values, words=sparse.values.words.astype(jnp.int32)),
    )
    for bad, error, says in [
        (lambda: quantized_matmul(x, q, SCALE), TypeError, "packed must be a Planar"),
        (lambda: nm_matmul(x, q), TypeError, "packed must be a PackedNM"),
        (lambda: nm_matmul(x, wide, SCALE), ValueError, "width=64; nearest: 16"),
        (lambda: nm_matmul(x, integers, SCALE), TypeError, "words must be uint16, not int32"),
        (lambda: unpack(words), TypeError, "words must be uint16, not int32"),
        (lambda: unpack(Planar(packed.words, "in4", K, 16)), ValueError, "did you mean 'int4'"),
        (lambda: unpack(Planar(packed.words, "int4", K, 0)), ValueError, "width=0 .*nearest: 16"),
        (lambda: pack(q, "int44"), ValueError, "kind='int44'; did you mean 'int4'"),
        (lambda: pack(q, "int4", width="64"), ValueError, "width='64' must be an int"),
        (lambda: pack(q, "int4", width=40.0), ValueError, "width=40.0 .*nearest: 32"),
        (lambda: pack_nm(q, KEEPS, 5, 4), ValueError, "n=5 of m=4; nearest: n=4"),
        (lambda: pack_nm(q, KEEPS, 2.0, 4), ValueError, "n=2.0 must be an int; nearest: 2"),
        (lambda: pack_nm(q, KEEPS, 2, 5), ValueError, "m . block = 5 .*nearest: m=4"),
        (lambda: pack_nm(q, KEEPS, 2, 4, kind="int44"), ValueError, "did you mean 'int4'"),
        (lambda: quantized_matmul(x, packed, SCALE, config=3), TypeError, "config must be a Con"),
        (lambda: quantized_matmul(x, packed, SCALE, config={}), TypeError, "None, not {}"),
        (lambda: quantized_matmul(x, packed, SCALE, config=Config), TypeError, "config must be"),
        (lambda: nm_matmul(x, sparse, SCALE, implementation=5), TypeError, "sequence of names"),
        (
            lambda: nm_matmul(x, sparse, SCALE, implementation=(None,)),
            ValueError,
            "implementation=None is unknown; nearest: 'xla'",
        ),
    ]:
        with pytest.raises(error, match=says):
            bad()
    on_host = jax.tree.map(np.asarray, sparse)
    np.testing.assert_array_equal(nm_matmul(x, on_host, SCALE), nm_matmul(x, sparse, SCALE))


def test_inputs_that_are_given_away_or_lie_apart():
    x, packed, scale = drawn(6, K).astype(jnp.float32), INT4(drawn(K, K)), jnp.ones((2, K))
    expected = np.asarray(quantized_matmul(x, packed, scale))
    apart = np.asarray(x, order="F")
    np.testing.assert_array_equal(quantized_matmul(apart, packed, scale), expected)
    given = jax.jit(lambda x: quantized_matmul(x, packed, scale), donate_argnums=0)
    np.testing.assert_array_equal(given(x + 0), expected)


def test_kernels_on_several_devices_are_not_interpreted():
    x, packed = drawn(4, K).astype(jnp.bfloat16), INT4(drawn(N, K))
    mesh = Mesh(np.array(jax.devices()), ("rows",))

    def product(x, implementation):
        return quantized_matmul(
            x, packed, SCALE, implementation=implementation, config=Config(1, 1), interpret=True
        )

    def shared(implementation):
        local = functools.partial(product, implementation=implementation)
        return jax.shard_map(local, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))(x)

    with pytest.raises(NotImplementedError, match="inside jax.shard_map over rows; nearest: 'xla'"):
        shared("mosaic_gpu")
    np.testing.assert_array_equal(shared(("mosaic_gpu", "xla")), quantized_matmul(x, packed, SCALE))


def test_float16_inputs_meet_weights_that_it_does_not_hold():
    q, scale = jnp.full((N, K), 100, jnp.int8), jnp.full((2, N), 1000.0)
    packed, sparse = pack(q, "int8", width=16), pack_nm(q, KEEPS, 2, 4, kind="int8")
    for rows in (1, 2):
        x = jnp.full((rows, K), 1e-4, jnp.float16)
        for y, sum_of in (
            (quantized_matmul(x, packed, scale), K),
            (nm_matmul(x, sparse, scale), K / 2),
        ):
            np.testing.assert_allclose(np.asarray(y, np.float64), 1e5 * 1e-4 * sum_of, rtol=2e-3)


def test_inputs_on_two_devices():
    """Each device has half of k, and its groups of scales; the sums meet."""
    x, w = drawn(3, K).astype(jnp.float32), drawn(N, K)
    packed = INT4(w)
    mesh = Mesh(np.array(jax.devices()), ("k",))

    def local(x, words, scale):
        y = quantized_matmul(x, Planar(words, "int4", K // 2, 16), scale)
        return jax.lax.psum(y, "k")

    specs = (P(None, "k"), P(None, "k"), P("k"))
    both = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P()))
    np.testing.assert_allclose(
        both(x, packed.words, SCALE), quantized_matmul(x, packed, SCALE), rtol=1e-5, atol=1e-4
    )
