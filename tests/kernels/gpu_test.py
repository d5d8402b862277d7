"""The compiled kernels against the reference: JAXLAB_TEST_PLATFORMS=cuda pytest -m gpu."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.nm_matmul import nm_matmul
from jaxlab.kernels.packing import FORMATS, pack
from jaxlab.kernels.packing_nm import pack_nm, unpack_nm
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul import Problem
from jaxlab.kernels.quantized_matmul.api import planar_matmul
from jaxlab.kernels.quantized_matmul.reference import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        os.environ.get("JAXLAB_TEST_PLATFORMS") != "cuda", reason="compiles for a GPU"
    ),
]


def close(y, expected):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=2**-8 * np.abs(expected).max()
    )


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
@pytest.mark.parametrize(
    ("kind", "groups", "width"),
    [
        ("int4", 32, 64),
        ("uint4", 32, 64),
        ("int8", 1, 64),
        ("int8", 32, 64),
        ("binary", 1, 32),
        ("ternary", 1, 64),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_compiled_equals_reference(kind, groups, width, rows, fast):
    n, k = 512, 4096
    rng = np.random.default_rng(rows)
    form = FORMATS[kind]
    q = rng.integers(form.low, form.high + 1, (n, k))
    q = np.where(q > 0, 1, -1) if form.signs else q
    packed = pack(jnp.asarray(q), kind, width=width)
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n)), jnp.bfloat16)
    zero = jnp.asarray(rng.normal(size=(groups, n)), jnp.bfloat16) if kind == "uint4" else None
    x = jnp.asarray(rng.normal(size=(rows, k)), jnp.bfloat16)
    group = k // groups if groups > 1 else 0
    config = Problem(rows, n, k, kind, group, width).plan.candidates(1)[0]
    config = Config(**{**vars(config), "fast": fast})
    y = planar_matmul("product", x, packed, scale, zero, "mosaic_gpu", config, None)
    close(y, reference(x, packed, (scale, zero)))


@pytest.mark.parametrize("split_k", [1, 2])
def test_derivatives_and_batches_are_those_of_the_reference(split_k):
    n, k, groups = 512, 4096, 32
    rng = np.random.default_rng(split_k)
    packed = pack(jnp.asarray(rng.integers(-8, 8, (n, k))), "int4")
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n)), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(4, 2, k)), jnp.bfloat16)
    config = Config(4, 2, split_k)

    def ours(x, scale):
        return planar_matmul("product", x, packed, scale, None, "mosaic_gpu", config, None)

    def theirs(x, scale):
        return reference(x, packed, (scale, None))

    close(jax.jit(jax.vmap(ours, (0, None)))(x, scale), jax.vmap(theirs, (0, None))(x, scale))
    grads = [
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(f(*a).astype(jnp.float32) ** 2), (0, 1)))(
            x[0], scale
        )
        for f in (ours, theirs)
    ]
    for got, expected in zip(*grads, strict=True):
        off = np.asarray(got, np.float64) - np.asarray(expected, np.float64)
        assert np.abs(off).max() <= 3e-2 * np.abs(np.asarray(expected, np.float64)).max()


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8)])
@pytest.mark.parametrize("split_k", [1, 2])
def test_compiled_planes_equal_the_dense_product(n, m, rows, split_k):
    n_out, k = 512, 8192
    rng = np.random.default_rng(rows)
    mask = (rng.random((n_out, k // m, m)).argsort(-1) < n).reshape(n_out, k)
    w = jnp.asarray(rng.normal(size=(n_out, k)) * mask, jnp.bfloat16)
    packed = pack_nm(w, jnp.asarray(mask), n, m)
    x = jnp.asarray(rng.normal(size=(rows, k)), jnp.bfloat16)
    y = nm_matmul(x, packed, implementation="mosaic_gpu", config=Config(2, 2, split_k))
    dense = np.asarray(unpack_nm(packed), np.float64)
    close(y, np.asarray(x, np.float64) @ dense.T)
