"""The form of the products that GPUs run, against the dots that CPUs run: every row shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac.products import (
    _combined,
    _dotted,
    _scaled_sum,
    _summed,
    row_combination,
    row_products,
)


def draw(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("shape", [(5, 7), (5, 6, 4), (5, 2, 3, 4), (1, 9)])
def test_sums_are_the_dots(shape, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        rows, x, weights = (
            draw(0, shape, dtype),
            draw(1, shape[1:], dtype),
            draw(2, shape[:1], dtype),
        )
        tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
        wide = np.asarray(rows, np.float64), np.asarray(x, np.float64), np.asarray(weights, float)
        products = np.einsum("mi,i->m", wide[0].reshape(len(rows), -1), wide[1].reshape(-1))
        combined = np.einsum("m,mi->i", wide[2], wide[0].reshape(len(rows), -1)).reshape(x.shape)
        for form in (_summed, _dotted, row_products):
            got = jax.jit(form)(rows, x)
            assert got.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_allclose(got, products, rtol=tolerance, atol=tolerance)
        for form in (_scaled_sum, _combined, row_combination):
            got = jax.jit(form)(weights, rows)
            assert got.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_allclose(got, combined, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 3, 0)])
def test_scalars_and_empty_leaves(shape):
    rows, x, weights = (draw(i, s, jnp.float32) for i, s in enumerate((shape, shape[1:], (4,))))
    expected = np.asarray(rows * x) if len(shape) == 1 else np.zeros(4)
    np.testing.assert_allclose(row_products(rows, x), expected, rtol=1e-6)
    got = row_combination(weights, rows)
    assert got.shape == shape[1:]
    np.testing.assert_allclose(got, np.tensordot(weights, rows, 1), rtol=1e-5)
