"""The compiled kernels on plain matrices, one or two: JAXLAB_TEST_PLATFORMS=cuda pytest -m gpu."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels import gemv as vector
from jaxlab.kernels import low_rank_matmul as low_rank
from jaxlab.kernels.kron_matvec import Config, Problem, kron_matvec
from jaxlab.kernels.low_rank_matmul.reference import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        os.environ.get("JAXLAB_TEST_PLATFORMS") != "cuda", reason="compiles for a GPU"
    ),
]


def off(y, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-8)])
@pytest.mark.parametrize("sides", [(32, 32, 32), (16, 64, 32), (64, 16, 64), (64, 64, 64)])
def test_kronecker_products(sides, dtype, bound):
    n1, m2, n2 = sides
    # More tiles than the blocks have turns for, and not as many for all.
    samples = 64 // n1 * 1111
    rng = np.random.default_rng(n1)
    shapes = (samples, n1, n2), (n1, n1), (m2, n2)
    x, a, b = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    wide = (np.asarray(v, np.float64) for v in (a, x, b))
    exact = np.einsum("pi,sij,qj->spq", *wide, optimize=True)
    for config in Problem(samples, n1, n1, m2, n2, str(x.dtype)).candidates(3):
        y = kron_matvec(x, a, b, implementation="mosaic_gpu", config=config)
        assert off(y, exact) <= bound


def test_kronecker_products_have_derivatives():
    rng = np.random.default_rng(0)
    shapes = (64, 32, 32), (32, 32), (32, 32)
    operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    got, expected = (
        jax.jit(jax.grad(lambda *o, name=name: jnp.sum(jnp.sin(kron(name, *o))), (0, 1, 2)))(
            *operands
        )
        for name in ("mosaic_gpu", "xla")
    )
    for one, other in zip(got, expected, strict=True):
        assert off(one, other) <= 1e-4


def kron(name, x, a, b):
    config = Config(2, 2, 7) if name == "mosaic_gpu" else None
    return kron_matvec(x, a, b, implementation=name, config=config)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
# Pieces of columns: as many as no number of blocks has turns for, and as many as folds divide.
@pytest.mark.parametrize("n", [256 * 1237, 256 * 1240])
def test_a_matrix_and_a_vector(n, dtype, transposed):
    m = 512
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(m, n)), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=m if transposed else n), dtype)
    # Where all numbers are positive, an error with one sign in every sum would add up.
    for matrix, column in ((a, x), (jnp.abs(a), jnp.abs(x))):
        wide = np.asarray(matrix, np.float64)
        exact = (wide.T if transposed else wide) @ np.asarray(column, np.float64)
        for config in vector.Problem(1, m, n, "bfloat16", str(x.dtype), transposed).candidates():
            how = {"transposed": transposed, "implementation": "mosaic_gpu", "config": config}
            product = jax.jit(functools.partial(vector.gemv, **how))
            assert off(product(matrix, column), exact) <= 2**-16


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(
    "config",
    [
        low_rank.Config(2, 4, 8, 1),
        low_rank.Config(2, 2, 8, 4),
        low_rank.Config(1, 2, 1, 2),
        low_rank.Config(2, 3, 4, 2, chained=False),
    ],
)
def test_two_thin_products(rows, config):
    rng = np.random.default_rng(rows)
    shapes = (rows, 4096), (4096, 512), (512, 1024)
    x, down, up = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)

    @jax.jit
    def several(x, down, up):
        # One after the other, each from what the one before made, and a factor that is made here.
        y, made = x, up
        found = []
        for _ in range(4):
            y = low_rank.low_rank_matmul(x, down, made, implementation="mosaic_gpu", config=config)
            found.append(y)
            made = jnp.roll(made, 64, axis=1)
            x = x + jnp.tile(y, (1, 4)) * jnp.bfloat16(1e-3)
        return found

    expected, made = x, up
    for y in several(x, down, up):
        assert off(y, reference(expected, (), (down, made))) <= 2**-7
        made = jnp.roll(made, 64, axis=1)
        expected = expected + jnp.tile(y, (1, 4)) * jnp.bfloat16(1e-3)
