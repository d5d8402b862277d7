"""The compiled kernels against the reference: JAXLAB_TEST_PLATFORMS=cuda pytest -m gpu."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.packing import FORMATS, pack
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
    expected = np.asarray(reference(x, packed, (scale, zero)), np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=2**-8 * np.abs(expected).max()
    )
