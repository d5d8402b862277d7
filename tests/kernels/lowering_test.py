"""Every kernel as it is lowered for a GPU: under 64-bit defaults, differentiated twice, batched."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxlab.kernels import sign_matmul as signs
from jaxlab.kernels.gemv import gemv
from jaxlab.kernels.kron_matvec import kron_matvec
from jaxlab.kernels.low_rank_matmul import low_rank_matmul
from jaxlab.kernels.monarch_matmul import monarch_matmul
from jaxlab.kernels.nm_matmul import Cut, nm_matmul
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.packing_nm import pack_nm
from jaxlab.kernels.quantized_matmul import quantized_matmul

BF16 = jnp.bfloat16


def shaped(*shape, dtype=BF16):
    return jax.ShapeDtypeStruct(shape, dtype)


def words(*shape):
    return shaped(*shape, dtype=jnp.uint16)


def quantized(x, w, scale):
    return quantized_matmul(x, Planar(w, "int4", 1024), scale, implementation="mosaic_gpu")


def nm(x, packed, **kwargs):
    return nm_matmul(x, packed, implementation="mosaic_gpu", **kwargs)


def signed(a, w, config=None):
    a = Planar(a, "binary", 1024) if a.dtype == jnp.uint16 else a
    b = Planar(w, "binary", 1024)
    return signs.sign_matmul(a, b, implementation="mosaic_gpu", config=config)


def few_groups():
    w = shaped(128, 1024)
    return jax.eval_shape(lambda w: pack_nm(w, w > 0, 2, 4), w)


def vector(x, a, transposed=False):
    return gemv(a, x, transposed=transposed, implementation="mosaic_gpu")


def with_unpack(unpack, tile_n=128):
    return functools.partial(signed, config=signs.Config(tile_n, 4, unpack))


monarch = functools.partial(monarch_matmul, implementation="mosaic_gpu", blocked=True)
# Of each op that has floating arguments: the product, its operands, its kernels.
FLOATING = {
    "kron": (
        functools.partial(kron_matvec, implementation="mosaic_gpu"),
        lambda: [shaped(*s, dtype=jnp.float32) for s in ((4, 32, 32), (32, 32), (32, 32))],
        1,
    ),
    "low_rank": (
        functools.partial(low_rank_matmul, implementation="mosaic_gpu"),
        lambda: [shaped(8, 1024), shaped(1024, 512), shaped(512, 128)],
        2,
    ),
    "monarch": (
        monarch,
        lambda: [shaped(256, 256), shaped(4, 64, 64), shaped(4, 64, 64)],
        2,
    ),
    "quantized": (quantized, lambda: [shaped(8, 1024), words(128, 256), shaped(8, 128)], 1),
    "nm": (nm, lambda: [shaped(8, 1024), few_groups()], 1),
}
EVERY = {
    **FLOATING,
    "gemv": (vector, lambda: [shaped(512, dtype=jnp.float32), shaped(128, 512)], 1),
    "gemv_folded": (vector, lambda: [shaped(576), shaped(128, 576)], 1),
    "gemv_transposed": (
        functools.partial(vector, transposed=True),
        lambda: [shaped(128, dtype=jnp.float32), shaped(128, 512)],
        1,
    ),
    "nm_in_place": (
        functools.partial(nm, config=Cut(ways=1, stages=1, in_place=True)),
        lambda: [shaped(8, 1024), few_groups()],
        1,
    ),
    "signs_few": (signed, lambda: [shaped(8, 1024, dtype=jnp.int8), words(128, 64)], 1),
    "signs_0": (with_unpack(0), lambda: [words(128, 64), words(128, 64)], 1),
    "signs_1": (with_unpack(1), lambda: [shaped(128, 1024, dtype=jnp.int8), words(128, 64)], 1),
    "signs_2": (with_unpack(2), lambda: [words(128, 64), words(128, 64)], 1),
}


def kernels(fn, operands):
    text = jax.jit(fn).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("mosaic_gpu_v2")


@pytest.mark.parametrize("name", EVERY)
def test_it_lowers_where_integers_have_64_bits(on_an_h100, name):
    fn, operands, count = EVERY[name]
    with on_an_h100(), jax.enable_x64(True):
        assert kernels(fn, operands()) == count


def loss(fn, x, *rest):
    return jnp.sum(jnp.sin(fn(x, *rest).astype(jnp.float32)))


@pytest.mark.parametrize("name", FLOATING)
def test_derivatives_have_derivatives(on_an_h100, name):
    fn, operands, _ = FLOATING[name]

    def slope(x, *rest):
        gradient = jax.grad(functools.partial(loss, fn))(x, *rest)
        return jnp.sum(jnp.sin(gradient.astype(jnp.float32)))

    with on_an_h100():
        x, *rest = operands()
        assert jax.eval_shape(jax.grad(slope), x, *rest) == x


@pytest.mark.parametrize("name", FLOATING)
def test_gradients_of_a_batch_take_one_kernel(on_an_h100, name):
    fn, operands, count = FLOATING[name]
    with on_an_h100():
        x, *rest = operands()
        batch = jax.ShapeDtypeStruct((2, *x.shape), x.dtype)
        gradient = jax.value_and_grad(functools.partial(loss, fn))
        batched = jax.vmap(gradient, in_axes=(0, *(None for _ in rest)))
        # Monarch's transpose is another product by the kernel.
        assert kernels(batched, [batch, *rest]) == count * (2 if name == "monarch" else 1)
