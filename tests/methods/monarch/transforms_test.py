"""Fourier transforms as one Monarch matrix, and the factors of products of two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.monarch import dft_monarch, factor_mmstar, monarch_apply, project_to_monarch
from jaxlab.methods.monarch.shape import shape_of


@pytest.mark.parametrize("n", [4, 16, 24, 36, 64])
def test_fourier_transform(n):
    params, perm = dft_monarch(n)
    x = jax.random.normal(jax.random.key(0), (3, n))
    expected = np.fft.fft(np.asarray(x, np.float64), norm="ortho")
    result = monarch_apply(params, x[:, perm])
    assert result.dtype == jnp.complex64
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    k, p = params["w1"].shape[:2]
    assert k * p == n
    assert k >= p


@pytest.mark.parametrize("norm", ["ortho", "backward", "forward"])
def test_inverse_transform_and_norms(norm):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (24,), np.complex128)
        forward, perm = dft_monarch(24, norm=norm, split=(3, 8))
        inverse, back = dft_monarch(24, norm=norm, inverse=True)
        y = monarch_apply(forward, x[perm])
        np.testing.assert_allclose(y, np.fft.fft(x, norm=norm), rtol=0, atol=1e-12)
        np.testing.assert_allclose(monarch_apply(inverse, y[back]), x, rtol=0, atol=1e-13)


def test_projection_finds_the_transform():
    dense = np.fft.fft(np.eye(24), norm="ortho")
    params, perm = dft_monarch(24)
    with jax.enable_x64(True):
        a = jnp.asarray(dense[:, np.asarray(perm)])
        assert float(project_to_monarch(a, shape_of(params))[1]) < 1e-13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 7}, "n=7 is not composite; nearest: 8"),
        ({"n": 1}, "n=1 is not composite; nearest: 4"),
        ({"n": 2}, "n=2 is not composite; nearest: 4"),
        ({"n": 12, "split": (3, 5)}, "product 15 and not n=12"),
        ({"n": 12, "norm": "orto"}, "norm='orto' is unknown; did you mean 'ortho'"),
    ],
)
def test_bad_lengths(arguments, message):
    with pytest.raises(ValueError, match=message):
        dft_monarch(**arguments)


def join(factors):
    l1, r, l2 = factors["l1"], factors["r"], factors["l2"]
    n = r.size // len(r[0])
    return np.einsum("iuc,cij,jcv->uivj", l1, r, l2).reshape(n, n)


def product_of(b, g, seed=0, complex_=False):
    rng = np.random.default_rng(seed)
    factors = {}
    for name, size in [("l1", (g, b, b)), ("r", (b, g, g)), ("l2", (g, b, b))]:
        factors[name] = rng.standard_normal(size)
        if complex_:
            factors[name] = factors[name] + 1j * rng.standard_normal(size)
    return factors


@pytest.mark.parametrize(("b", "g", "complex_"), [(6, 6, False), (3, 5, False), (4, 4, True)])
def test_factors_are_recovered(b, g, complex_):
    m = join(product_of(b, g, complex_=complex_))
    found = factor_mmstar(m, b=None if b == g else b, key=jax.random.key(0))
    assert [w.shape for w in found.values()] == [(g, b, b), (b, g, g), (g, b, b)]
    assert np.iscomplexobj(found["r"]) == complex_
    np.testing.assert_allclose(join(found), m, rtol=0, atol=1e-9 * np.abs(m).max())


def test_a_product_of_two_monarch_matrices_is_in_the_class():
    rng = np.random.default_rng(1)
    m = 5
    (a1, a2), (b1, b2) = rng.standard_normal((2, 2, m, m, m))
    first, second = (
        np.einsum("jtk,kji->tjki", w2, w1).reshape(m * m, m * m) for w1, w2 in ((a1, a2), (b1, b2))
    )
    product = first @ second.T
    found = factor_mmstar(product, key=jax.random.key(0))
    np.testing.assert_allclose(join(found), product, rtol=0, atol=1e-7 * np.abs(product).max())


def test_matrices_without_such_factors():
    noise = np.random.default_rng(0).standard_normal((16, 16))
    with pytest.raises(ValueError, match="not in MM"):
        factor_mmstar(noise, key=jax.random.key(0))
    with pytest.raises(ValueError, match="singular"):
        factor_mmstar(np.zeros((16, 16)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="b=3 must divide n=16.*nearest: 2"):
        factor_mmstar(noise, b=3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"\(16, 15\) is not square"):
        factor_mmstar(noise[:, :15], key=jax.random.key(0))
    with pytest.raises(ValueError, match="not finite"):
        factor_mmstar(noise * np.nan, key=jax.random.key(0))
