"""The compiled kernels against the reference: JAXLAB_TEST_PLATFORMS=cuda pytest -m gpu."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels.nm_matmul import dequantize_nm, nm_matmul
from jaxlab.kernels.nm_matmul.shapes import Cut, problem_of, refuse
from jaxlab.kernels.packing import FORMATS, pack
from jaxlab.kernels.packing_nm import pack_nm
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


def product(kind, groups, width, rows, config, n=512, k=4096):
    """The product by the kernel, and by the reference."""
    rng = np.random.default_rng(rows)
    form = FORMATS[kind]
    q = rng.integers(form.low, form.high + 1, (n, k))
    q = np.where(q > 0, 1, -1) if form.signs else q
    packed = pack(jnp.asarray(q), kind, width=width)
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n)), jnp.bfloat16)
    zero = jnp.asarray(rng.normal(size=(groups, n)), jnp.bfloat16) if kind == "uint4" else None
    x = jnp.asarray(rng.normal(size=(rows, k)), jnp.bfloat16)
    y = planar_matmul("product", x, packed, scale, zero, "mosaic_gpu", config, None)
    return y, reference(x, packed, (scale, zero))


KINDS = [
    ("int4", 32, 64),
    ("uint4", 32, 64),
    ("int8", 1, 64),
    ("int8", 32, 64),
    ("binary", 1, 32),
    ("binary", 1, 64),
    ("ternary", 1, 64),
]


@pytest.mark.parametrize("rows", [1, 16, 64])
@pytest.mark.parametrize(("kind", "groups", "width"), KINDS)
def test_compiled_equals_reference(kind, groups, width, rows):
    group = 4096 // groups if groups > 1 else 0
    config = Problem(rows, 512, 4096, kind, group, width).plan.candidates(1)[0]
    close(*product(kind, groups, width, rows, config))


@pytest.mark.parametrize(("kind", "groups", "width"), KINDS)
def test_unpacking_without_assembly_gives_the_product(kind, groups, width):
    close(*product(kind, groups, width, 9, Config(2, 2, fast=False)))


@pytest.mark.parametrize(
    ("kind", "groups", "width"), [("int4", 32, 64), ("int8", 1, 64), ("binary", 1, 32)]
)
@pytest.mark.parametrize(
    ("rows", "config"),
    [
        (16, Config(1, 2, depth=2)),
        (1, Config(2, 1, split_k=2, parts=2, slots=3)),
        (16, Config(2, 2, in_flight=2, parts=2, slots=2)),
        (64, Config(2, 2, split_k=2, depth=2, parts=4, slots=2)),
    ],
)
def test_every_cut_gives_the_product(kind, groups, width, rows, config):
    close(*product(kind, groups, width, rows, config))


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


@pytest.mark.parametrize(("rows", "split_k", "in_place"), [(1, 2, False), (64, 1, True)])
@pytest.mark.parametrize(
    ("n", "m", "block", "kind", "groups"),
    [
        (2, 4, 1, None, 1),
        (1, 4, 1, None, 1),
        (1, 8, 1, None, 1),
        (2, 8, 1, None, 1),
        (1, 16, 1, None, 1),
        (2, 4, 1, "int4", 64),
        (1, 8, 1, "int4", 64),
        (1, 4, 1, "int8", 1),
        (2, 4, 4, None, 1),
        (1, 8, 2, "int4", 1),
        (1, 4, 16, None, 1),
    ],
)
def test_compiled_groups_equal_the_dense_product(
    n, m, block, kind, groups, rows, split_k, in_place
):
    n_out, k = 512, 8192
    rng = np.random.default_rng(rows)
    mask = np.repeat(rng.random((n_out, k // (m * block), m)).argsort(-1) < n, block, -1)
    mask = mask.reshape(n_out, k)
    if kind is None:
        w, scale = jnp.asarray(rng.normal(size=(n_out, k)) * mask, jnp.bfloat16), None
    else:
        w = jnp.asarray(rng.integers(-8, 8, (n_out, k)) * mask, jnp.int8)
        scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n_out)), jnp.bfloat16)
    packed = jax.jit(lambda w, mask: pack_nm(w, mask, n, m, block=block, kind=kind))(w, mask)
    x = jnp.asarray(rng.normal(size=(rows, k)), jnp.bfloat16)
    # What fits of warpgroups and steps, in place where the layout lets it; two parts of x, with
    # split k.
    cuts = [
        Cut(ways, stages, split_k, parts=split_k, in_place=placed)
        for placed in dict.fromkeys((in_place, False))
        for ways, stages in ((2, 2), (1, 2), (1, 1))
    ]
    of = problem_of(rows, packed, groups)
    config = next(c for c in cuts if not refuse(of, c))
    y = nm_matmul(x, packed, scale, implementation="mosaic_gpu", config=config)
    dense = np.asarray(dequantize_nm(packed, scale), np.float64)
    close(y, np.asarray(x, np.float64) @ dense.T)
