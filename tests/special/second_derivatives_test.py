"""Second derivatives of log I and log K: on a grid over the whole range, at borders, at x = 0."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.special import bessel
from jaxlab.special.bessel.reference import extended

# In every region: the expansion, the series or the integral, and the limit of tiny x.
V = np.array([30.0, 3.0, 0.3, 5.0, 1.2])
X = np.array([50.0, 2.0, 20.0, 1e-10, 1e-9])
# By dtype: hypot(v, x) from which on the expansion is taken, x below which K is its limit, and the
# largest power of 10 on the grid.
_BORDERS = {"float64": (25.0, 1e-8, 300), "float32": (15.0, 1e-4, 36)}


def points(dtype):
    """V and X, a grid of 200 x 200, points on borders and beside them, and x = 0."""
    p, tiny, most = _BORDERS[dtype]
    grid = np.meshgrid(np.geomspace(1e-6, 1e8, 200), 10.0 ** np.linspace(-most, most, 200))
    exact = [(p, 1e-3), (p, 1.0), (0.6 * p, 0.8 * p), (0.8 * p, 0.6 * p), (0.0, p), (1e-3, p)]
    exact += [(v, tiny) for v in (0.0, 0.5, 0.95, 1.0, 10.0)] + [(v, 1e-3) for v in (0.5, 0.95)]
    exact += [(0.0, 10.0**-most), (0.0, 1.0), (1e-30, 1e-20)]
    sides = np.array(exact).T
    ulps = [1 - np.finfo(dtype).eps, 1.0, 1 + np.finfo(dtype).eps]
    v = np.r_[V, grid[0].ravel(), np.kron(sides[0], ulps), 0.0, 1.0, 2.5]
    x = np.r_[X, grid[1].ravel(), np.kron(sides[1], ulps), 0.0, 0.0, 0.0]
    return v.astype(dtype), x.astype(dtype)


@cache
def derivatives(name, dtype):
    """Values, gradients and Hessians at all points, by one program."""
    gradient = jax.value_and_grad(getattr(bessel, name), (0, 1))

    def all_at(v, x):
        one, zero = jnp.ones_like(v), jnp.zeros_like(v)
        along = jax.vmap(lambda *t: jax.jvp(gradient, (v, x), t), out_axes=(None, 0))
        (value, first), (_, second) = along(jnp.stack([one, zero]), jnp.stack([zero, one]))
        return value, first, second

    v, x = points(dtype)
    with jax.enable_x64(dtype == "float64"):
        value, first, second = jax.tree.map(np.asarray, jax.jit(jax.vmap(all_at))(v, x))
    # By the variable of the gradient and that of its derivative.
    return v, x, value, first, [[of[:, 0], of[:, 1]] for of in second]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["log_iv", "log_kv"])
def test_everything_is_finite_on_a_grid_and_on_borders(name, dtype):
    v, x, value, (of_v, of_x), ((vv, vx), (xv, xx)) = derivatives(name, dtype)
    largest = np.finfo(dtype).max
    inside = x > 0
    assert np.all(np.isfinite(value[inside]))
    assert np.all(np.isfinite(of_v[inside]))
    with np.errstate(all="ignore"):
        # d/dx is about v / x; the largest number stands for what is infinite in second ones.
        assert np.all(np.isfinite(of_x) | (v / x > largest / 4) | ~inside)
        huge = (v + 1) / x / x > largest / 64
    for second in (vv, vx, xv, xx):
        assert not np.any(np.isnan(second))
        assert np.all(np.isfinite(second[inside & ~huge]))
    sign = -1 if name == "log_iv" else 1
    assert np.all(sign * xx[inside & huge & (v > 0.01)] > largest / 1e6)
    np.testing.assert_allclose(vx[inside & ~huge], xv[inside & ~huge], rtol=1e-5, atol=1e-5)


def test_log_i_of_order_0_is_a_parabola_down_to_the_smallest_numbers():
    _, _, _, _, (_, (_, xx)) = derivatives("log_iv", "float64")
    v, x = points("float64")
    np.testing.assert_allclose(xx[(v == 0) & (x < 1e-9)], 0.5, rtol=1e-15)
    # And of other orders it is -v / x^2 + 1 / (2 v + 2).
    small = (v > 1e-3) & (v < 20) & (x > 1e-150) & (x < 1e-9)
    np.testing.assert_allclose(xx[small], -v[small] / x[small] ** 2, rtol=1e-14)


def test_derivatives_at_zero_are_infinite_and_not_nan():
    for name, sign in (("log_iv", 1), ("log_kv", -1)):
        _, _, _, (of_v, of_x), ((vv, vx), (_, xx)) = derivatives(name, "float64")
        np.testing.assert_array_equal(of_x[-2:], [sign * np.inf] * 2)
        np.testing.assert_array_equal(of_v[-2:], [-sign * np.inf] * 2)
        assert np.all(-sign * xx[-2:] > 1e300)
        assert not np.any(np.isnan([vv[-3:], vx[-3:]]))
    assert derivatives("log_iv", "float64")[3][1][-3] == 0
    assert derivatives("log_kv", "float64")[3][0][-3] == 0
    # A tangent that happens to be 0 multiplies what is infinite.
    with jax.enable_x64(True):
        _, change = jax.jvp(bessel.log_iv, (2.5, 0.0), (0.0, 1.0))
    assert float(change) == np.inf


@pytest.mark.parametrize("name", ["log_iv", "log_kv"])
def test_second_derivatives_in_both_arguments(name):
    _, _, _, _, hessian = derivatives(name, "float64")
    for i, (by, step) in enumerate(((V, 1e-5), (X, 1e-5))):
        h = step * np.maximum(by, 1 if i == 0 else 0)
        moved = [(V + s * h, X) if i == 0 else (V, X + s * h) for s in (1, -1)]
        up, down = (extended(*at) for at in moved)
        for j, of in enumerate(("dv", "dx")):
            slope = ((up[f"{name}_{of}"] - down[f"{name}_{of}"]) / (2 * h)).astype(float)
            scale = np.abs(slope) + 1e-3
            assert np.max(np.abs(hessian[i][j][:5] - slope) / scale) < 1e-6, (i, j)


def test_the_second_derivative_keeps_its_digits_where_x_is_large():
    # log I_v is x - log(2 pi x) / 2 + O(1 / x), so that its second derivative is 1 / (2 x^2).
    with jax.enable_x64(True):
        curvature = jax.jit(jax.grad(jax.grad(bessel.log_iv, 1), 1))(2.0, jnp.float64(1e8))
    assert abs(float(curvature) * 2e16 - 1) < 1e-6
