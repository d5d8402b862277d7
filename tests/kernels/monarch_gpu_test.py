"""The compiled Monarch kernels against the reference: JAXLAB_TEST_PLATFORMS=cuda pytest -m gpu."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.monarch_matmul import Config, monarch_matmul
from jaxlab.kernels.monarch_matmul.reference import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        os.environ.get("JAXLAB_TEST_PLATFORMS") != "cuda", reason="compiles for a GPU"
    ),
]

CONFIGS = [
    Config(ways=2, stages=2),
    Config(ways=2, stages=3, outs=2, part=64, backwards=False),
    Config(batch_tile=128, ways=1, stages=2),
    Config(ways=4, stages=2, chunk=576),
]


def problem(blocks, size, rows):
    rng = np.random.default_rng(rows)
    shapes = (blocks, size, size), (blocks, size, size)
    w1, w2 = (jnp.asarray(rng.normal(size=s) / size**0.5, jnp.bfloat16) for s in shapes)
    return jnp.asarray(rng.normal(size=(rows, blocks * size)), jnp.bfloat16), w1, w2


def close(y, expected, part=2**-8):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=part * np.abs(expected).max()
    )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("blocks", "size"), [(64, 64), (128, 128), (4, 64), (2, 128)])
@pytest.mark.parametrize(("rows", "transpose"), [(16, False), (1000, True), (4096, False)])
def test_compiled_equals_reference(config, blocks, size, rows, transpose):
    x, w1, w2 = problem(blocks, size, rows)
    how = {"blocked": True, "transpose": transpose}
    product = functools.partial(monarch_matmul, implementation="mosaic_gpu", config=config, **how)
    expected = reference(x, w1, w2, **how)
    close(jax.jit(product)(x, w1, w2), expected)


@pytest.mark.parametrize("blocked", [False, True])
def test_wide_blocks(blocked):
    x, w1, w2 = problem(16, 256, 300)
    product = functools.partial(monarch_matmul, blocked=blocked, implementation="mosaic_gpu")
    close(product(x, w1, w2), reference(x, w1, w2, blocked=blocked, transpose=False))


@pytest.mark.parametrize("config", CONFIGS[:2])
def test_derivatives_and_batches_are_those_of_the_reference(config):
    x, w1, w2 = problem(64, 64, 192)

    def ours(x, w1, w2):
        return monarch_matmul(x, w1, w2, implementation="mosaic_gpu", config=config)

    def theirs(x, w1, w2):
        return reference(x, w1, w2, blocked=False, transpose=False)

    batch = x.reshape(3, 64, -1)
    got = jax.jit(jax.vmap(ours, (0, None, None)))(batch, w1, w2)
    close(got, theirs(x, w1, w2).reshape(got.shape))
    grads = [
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(f(*a).astype(jnp.float32) ** 2), (0, 1, 2)))(
            x, w1, w2
        )
        for f in (ours, theirs)
    ]
    for got, expected in zip(*grads, strict=True):
        close(got, expected, 3e-2)
