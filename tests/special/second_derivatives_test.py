"""Second derivatives of log I, log K and their ratios: everywhere, at borders, and at x = 0."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.special import bessel
from jaxlab.special.bessel.reference import extended

_RNG = np.random.default_rng(5)
# In every region: the expansion, the series or the integral, and the limit of tiny x.
V = np.r_[10 ** _RNG.uniform(-1.3, 2.5, 400), 10 ** _RNG.uniform(-1.3, 1.3, 100)]
X = np.r_[10 ** _RNG.uniform(-0.5, 2.5, 400), 10 ** _RNG.uniform(-12, -8.3, 100)]
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


def slopes(name, v, x):
    """The function itself and its derivatives in v and x, in extended precision."""
    here, kind = extended(v, x), f"log_{name[:2]}" if name.endswith("ratio") else name[:6]
    log, of_v, of_x = (here[kind + of] for of in ("", "_dv", "_dx"))
    if name.endswith("ratio"):
        above = extended(v + 1, x)
        ratio = np.exp(above[kind] - log)
        return ratio, ratio * (above[f"{kind}_dv"] - of_v), ratio * (above[f"{kind}_dx"] - of_x)
    scaled = {"log_ive": -1, "log_kve": 1}.get(name, 0)
    return log + scaled * x, of_v, of_x + scaled


def along(fn, at, step):
    """The derivatives of `fn`'s results, by differences over five points."""
    near, far = ([fn(at + k * step), fn(at - k * step)] for k in (1, 2))
    pairs = zip(*near, *far, strict=True)
    return [(8 * (a - b) - (c - d)) / (12 * step) for a, b, c, d in pairs]


def check(name, along_v, of_v, of_x):
    """Changes of the gradient's two parts at V and X: in the direction of v, or in that of x."""
    v, x = V.astype(np.longdouble), X.astype(np.longdouble)
    value = slopes(name, v, x)[0]
    # In v, a power of x changes with log x.
    step = 3e-4 * np.maximum(np.maximum(v, x / 4), 1) / np.maximum(1, -np.log(x))
    _, vv, _ = along(lambda v: slopes(name, v, x), v, np.minimum(step, v / 3))
    _, vx, xx = along(lambda x: slopes(name, v, x), x, 2e-4 * x)
    # Relative to the derivative, or to a thousandth where it is less; of the ratio of K, 2 v / x is
    # a part that has no second derivative in v.
    least = 1e-3 * np.maximum(1, value if name == "kv_ratio" else 0)
    for found, exact in ((of_v, np.where(along_v, vv, vx)), (of_x, np.where(along_v, vx, xx))):
        error = np.abs(np.asarray(found) - exact) / np.maximum(np.abs(exact), least)
        worst = int(np.argmax(error))
        # Ours are off by 3e-12, the differences by up to 8e-12.
        assert error[worst] < 1e-11, (along_v[worst], V[worst], X[worst], error[worst])


@pytest.mark.parametrize("name", ["log_iv", "log_kv"])
def test_second_derivatives_in_both_arguments(name):
    *_, ((vv, vx), (xv, xx)) = derivatives(name, "float64")
    vv, vx, xv, xx = (part[: V.size] for part in (vv, vx, xv, xx))
    for along_v, of_v, of_x in ((np.ones_like(V), vv, xv), (np.zeros_like(V), vx, xx)):
        check(name, along_v, of_v, of_x)
    np.testing.assert_allclose(vx, xv, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["log_ive", "log_kve", "iv_ratio", "kv_ratio"])
def test_second_derivatives_of_scaled_forms_and_ratios(name):
    along_v = np.arange(V.size) % 2
    if name.endswith("ratio"):
        # The others are differences of which no digit is left where x is tiny.
        along_v = np.where(X < 1e-8, name == "iv_ratio", along_v)
    # The ratio's orders below 0 would take half of the time of compiling.
    known = {"least": 0.01} if name == "kv_ratio" else {}
    gradient = jax.grad(lambda v, x: jnp.sum(getattr(bessel, name)(v, x, **known)), (0, 1))

    @jax.jit
    def changed(v, x, *toward):
        if name != "log_ive":
            return jax.jvp(gradient, (v, x), toward)[1]
        return jax.grad(lambda *at: jnp.vdot(jnp.stack(gradient(*at)), jnp.stack(toward)), (0, 1))(
            v, x
        )

    with jax.enable_x64(True):
        check(name, along_v, *changed(V, X, along_v * 1.0, 1.0 - along_v))


def test_the_second_derivative_keeps_its_digits_where_x_is_large():
    # log I_v is x - log(2 pi x) / 2 + O(1 / x), so that its second derivative is 1 / (2 x^2).
    with jax.enable_x64(True):
        curvature = jax.jit(jax.grad(jax.grad(bessel.log_iv, 1), 1))(2.0, jnp.float64(1e8))
    assert abs(float(curvature) * 2e16 - 1) < 1e-6
