"""The products: against float64, by every implementation, under every transformation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels.binary_matmul import binary_matmul
from jaxlab.kernels.packing import FORMATS, Planar, pack
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul import api as quantized_api
from jaxlab.kernels.quantized_matmul import quantized_matmul
from jaxlab.kernels.quantized_matmul.reference import reference


def problem(kind, n, k, rows, groups, *, zero=False, width=64, dtype=jnp.bfloat16):
    rng = np.random.default_rng(n + k + rows)
    form = FORMATS[kind]
    q = rng.integers(form.low, form.high + 1, (n, k))
    q = np.where(q > 0, 1, -1) if form.signs else q
    x = jnp.asarray(rng.normal(size=(rows, k)), dtype)
    scale = jnp.asarray(rng.uniform(0.5, 1.5, (groups, n)), jnp.float32)
    zeros = jnp.asarray(rng.normal(size=(groups, n)), jnp.float32) if zero else None
    dense = q.reshape(n, groups, -1) - (0 if zeros is None else np.asarray(zeros).T[..., None])
    dense = (dense * np.asarray(scale, np.float64).T[..., None]).reshape(n, k)
    exact = np.asarray(x, np.float64) @ dense.T
    return x, pack(jnp.asarray(q), kind, width=width), scale, zeros, exact


def close(y, exact, part):
    np.testing.assert_allclose(
        np.asarray(y, np.float64), exact, rtol=5e-3, atol=part * np.abs(exact).max()
    )


@pytest.mark.parametrize(
    ("kind", "k", "groups", "zero"),
    [("int8", 100, 1, False), ("int4", 128, 4, False), ("uint4", 96, 3, True)],
)
@pytest.mark.parametrize("rows", [1, 5])
def test_xla_is_right_at_any_size(kind, k, groups, zero, rows):
    x, packed, scale, zeros, exact = problem(kind, 24, k, rows, groups, zero=zero)
    close(jax.jit(quantized_matmul)(x, packed, scale, zeros), exact, 1e-2)
    wide = quantized_matmul(x.astype(jnp.float32), packed, scale, zeros)
    np.testing.assert_allclose(np.asarray(wide), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("k", [31, 1000])
def test_signs_and_ternary_weights(kind, k):
    x, packed, scale, _, exact = problem(kind, 8, k, 3, 1, dtype=jnp.float32)
    np.testing.assert_allclose(
        np.asarray(binary_matmul(x, packed, scale[0])), exact, rtol=1e-4, atol=1e-4
    )


# jax 0.10 interprets no products from slices of tiled memory; there the kernel is only lowered.
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("kind", "k", "groups", "zero", "config"),
    [
        ("int4", 512, 4, False, Config(2, 2)),
        ("uint4", 256, 2, True, Config(1, 2)),
        ("int8", 512, 1, False, Config(2, 2, split_k=2)),
        ("binary", 1024, 1, False, Config(1, 2)),
        ("int4", 1024, 8, False, Config(2, 2, depth=2)),
        ("binary", 2048, 1, False, Config(1, 2, parts=4, slots=3)),
        ("ternary", 1024, 1, False, Config(1, 2, parts=2)),
    ],
)
def test_the_interpreted_kernel_equals_the_reference(kind, k, groups, zero, config):
    x, packed, scale, zeros, _ = problem(kind, 64, k, 3, groups, zero=zero)
    y = quantized_api.planar_matmul("product", x, packed, scale, zeros, "mosaic_gpu", config, True)
    expected = np.asarray(reference(x, packed, (scale, zeros)), np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=2**-8 * np.abs(expected).max()
    )


def test_gradients_are_those_of_the_reference():
    x, packed, scale, zeros, _ = problem("uint4", 8, 64, 3, 2, zero=True, dtype=jnp.float32)

    def loss(fn, x, scale, zeros):
        return jnp.sum(jnp.sin(fn(x, scale, zeros)))

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, fn), argnums=(0, 1, 2)))(x, scale, zeros)
        for fn in (
            lambda x, s, z: quantized_matmul(x, packed, s, z),
            lambda x, s, z: reference(x, packed, (s, z)),
        )
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-3)
    per_row = jax.jit(
        jax.vmap(
            jax.grad(
                lambda r: loss(lambda x, s, z: quantized_matmul(x, packed, s, z), r, scale, zeros)
            )
        )
    )(x)
    np.testing.assert_allclose(np.asarray(per_row), np.asarray(expected[0]), rtol=2e-4, atol=2e-3)


def test_a_batch_of_inputs_is_one_product():
    x, packed, scale, _, _ = problem("int4", 8, 64, 6, 2, dtype=jnp.float32)
    batch = x.reshape(3, 2, 64)
    product = jax.vmap(lambda x: quantized_matmul(x, packed, scale))
    expected = [quantized_matmul(one, packed, scale) for one in batch]
    np.testing.assert_allclose(np.asarray(product(batch)), np.stack(expected), rtol=1e-5, atol=1e-5)
    shapes = [e.outvars[0].aval.shape for e in _dots(jax.make_jaxpr(product)(batch).jaxpr)]
    assert shapes == [(6, 8)]


def _dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns") and "fwd" not in str(eqn.params.get("name")):
                yield from _dots(inner)


def test_shapes_are_known_without_computing():
    x, packed, scale, _, _ = problem("int4", 8, 64, 6, 2)
    shapes = jax.eval_shape(lambda x: quantized_matmul(x, packed, scale), x.reshape(3, 2, 64))
    assert (shapes.shape, shapes.dtype) == ((3, 2, 8), jnp.bfloat16)


def test_a_batch_of_weights():
    x, packed, scale, _, _ = problem("int4", 8, 64, 2, 2, dtype=jnp.float32)
    scales = jnp.stack([scale, 2 * scale])
    got = jax.vmap(lambda s: quantized_matmul(x, packed, s))(scales)
    np.testing.assert_allclose(np.asarray(got[1]), 2 * np.asarray(got[0]), rtol=1e-5)


def test_rows_of_weights_on_two_devices():
    x, packed, scale, _, exact = problem("int4", 8, 64, 3, 2, dtype=jnp.float32)
    mesh = Mesh(np.array(jax.devices()), ("n",))

    def local(x, words, scale):
        return quantized_matmul(x, Planar(words, "int4", 64), scale)

    specs = (P(), P("n", None), P(None, "n"))
    product = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(None, "n"))
    np.testing.assert_allclose(
        np.asarray(jax.jit(product)(x, packed.words, scale)), exact, rtol=1e-4, atol=1e-4
    )


def test_what_is_not_finite_stays_so_and_nothing_is_nothing():
    x, packed, scale, _, _ = problem("int8", 8, 128, 2, 1)
    y = quantized_matmul(x.at[0, 3].set(jnp.nan), packed, scale)
    assert bool(jnp.all(jnp.isnan(y[0])))
    assert bool(jnp.all(jnp.isfinite(y[1])))
    assert quantized_matmul(x[:0], packed, scale).shape == (0, 8)


def test_bad_arguments_are_named():
    x, packed, scale, _, _ = problem("int4", 8, 64, 2, 2)
    for bad, says in [
        (lambda: quantized_matmul(x[:, :63], packed, scale), "k=64"),
        (lambda: quantized_matmul(x, packed, scale[:, :7]), "groups, 8"),
        (lambda: quantized_matmul(x, packed, jnp.ones((3, 8))), "nearest: 2"),
        (lambda: quantized_matmul(x, packed, scale, scale[:1]), "zero"),
        (lambda: binary_matmul(x, packed, scale[0]), "kind 'int4'"),
        (lambda: quantized_matmul(x, packed, scale, implementation="mosaic_gp"), "'mosaic_gpu'"),
        (lambda: quantized_matmul(x, packed, scale, implementation=()), "names none"),
    ]:
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        quantized_matmul(x, packed, scale, implementation="mosaic_gpu")
    y = quantized_matmul(x, packed, scale, implementation=("mosaic_tpu", "mosaic_gpu", "xla"))
    assert y.shape == (2, 8)


def test_packed_words_are_those_of_the_layout_and_the_length():
    x, packed, scale, _, _ = problem("int4", 8, 128, 2, 2)
    for changed, says in [
        ({"words": packed.words[:, :16]}, "must end in 64 words"),
        ({"length": 1024}, "must end in 256 words"),
        ({"version": 99}, "version=99"),
    ]:
        bad = dataclasses.replace(packed, **changed)
        with pytest.raises(ValueError, match=says):
            quantized_matmul(jnp.ones((2, bad.length), x.dtype), bad, scale)


def test_a_kernel_that_was_asked_for_is_not_replaced_under_vmap_over_weights(on_an_h100):
    x, packed, scale, _, _ = problem("int4", 256, 4096, 2, 32)
    product = functools.partial(quantized_matmul, x, packed, implementation="mosaic_gpu")
    with on_an_h100(), pytest.raises(NotImplementedError, match="nearest: 'xla'"):
        jax.eval_shape(jax.vmap(product), jnp.stack([scale, scale]))
