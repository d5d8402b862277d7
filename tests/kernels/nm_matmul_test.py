"""Products with N:M planes: against float64, by every implementation, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.nm_matmul import nm_matmul, shapes
from jaxlab.kernels.packing_nm import NMPlanes, pack_nm, unpack_nm
from jaxlab.kernels.plan import Config


def problem(n, m, n_out, k, rows, *, block=1, dtype=jnp.bfloat16):
    rng = np.random.default_rng(n_out + k + rows)
    blocks = rng.random((n_out, k // (m * block), m)).argsort(-1) < n
    mask = np.repeat(blocks.reshape(n_out, -1), block, 1)
    w = jnp.asarray(rng.normal(size=(n_out, k)) * mask, dtype)
    x = jnp.asarray(rng.normal(size=(rows, k)), dtype)
    packed = jax.jit(lambda w, mask: pack_nm(w, mask, n, m, block=block))(w, jnp.asarray(mask))
    return x, packed, np.asarray(x, np.float64) @ np.asarray(w, np.float64).T


@pytest.mark.parametrize(("n", "m", "block"), [(2, 4, 1), (1, 8, 1), (2, 4, 8)])
def test_xla_is_right(n, m, block):
    x, packed, exact = problem(n, m, 24, 192, 5, block=block, dtype=jnp.float32)
    y = jax.jit(nm_matmul)(x.reshape(5, 1, -1), packed)
    np.testing.assert_allclose(np.asarray(y)[:, 0], exact, rtol=1e-5, atol=1e-4)
    assert nm_matmul(x[:0], packed).shape == (0, 24)


# jax 0.10 interprets no products from slices of tiled memory; there the kernel is only lowered.
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("n", "m", "config"), [(2, 4, Config(1, 2)), (1, 8, Config(2, 1, split_k=2))]
)
def test_the_interpreted_kernel_equals_the_reference(n, m, config):
    x, packed, exact = problem(n, m, 64, 128 * m * config.ways * config.split_k, 3)
    y = nm_matmul(x, packed, implementation="mosaic_gpu", config=config, interpret=True)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=0, atol=2**-8 * np.abs(exact).max()
    )


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8)])
def test_the_kernel_lowers_for_cuda(on_an_h100, n, m):
    x, packed, _ = problem(n, m, 64, 128 * m * 4, 16)

    def product(x, packed):
        return nm_matmul(x, packed, implementation="mosaic_gpu", config=Config(2, 2))

    with on_an_h100():
        text = jax.jit(product).trace(x, packed).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu_v2") == 1


def test_gradients_and_batches():
    x, packed, _ = problem(2, 4, 8, 64, 3, dtype=jnp.float32)

    def through(values, x):
        planes = NMPlanes(values, packed.code, packed.m)
        return jnp.sum(jnp.sin(nm_matmul(x, planes)))

    def dense(values, x):
        return jnp.sum(jnp.sin(x @ unpack_nm(NMPlanes(values, packed.code, packed.m)).T))

    grads = (jax.jit(jax.grad(f, argnums=(0, 1)))(packed.values, x) for f in (through, dense))
    for got, expected in zip(*grads, strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-4, atol=1e-4)
    batched = jax.vmap(lambda x: nm_matmul(x, packed))(x[:, None])
    np.testing.assert_allclose(
        np.asarray(batched)[:, 0], np.asarray(nm_matmul(x, packed)), rtol=1e-5, atol=1e-5
    )


def test_bad_arguments_are_named():
    x, packed, _ = problem(2, 4, 8, 64, 2)
    with pytest.raises(ValueError, match="k=64"):
        nm_matmul(x[:, :60], packed)
    with pytest.raises(TypeError, match="floating"):
        nm_matmul(x.astype(jnp.int32), packed)
    with pytest.raises(NotImplementedError, match="GPU"):
        nm_matmul(x, packed, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="nearest: n=4"):
        pack_nm(jnp.ones((2, 32)), jnp.ones((2, 32), bool), 8, 16)
    of = shapes.problem_of(16, packed.code, 2, 4, 8)
    assert "blocks of 8" in shapes.refuse(of, Config())
