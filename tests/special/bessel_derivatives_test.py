"""Second derivatives, edges, dtypes and transformations of log I and log K."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.special import bessel
from jaxlab.special.bessel.debye import debye_polynomials
from jaxlab.special.bessel.reference import extended

INF, NAN = np.inf, np.nan
# In every region: the expansion, the series or the integral, and the limit of tiny x.
V = np.array([30.0, 3.0, 0.3, 5.0, 1.2])
X = np.array([50.0, 2.0, 20.0, 1e-10, 1e-9])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["log_iv", "log_kv"])
def test_second_derivatives_in_both_arguments(name):
    fn = getattr(bessel, name)
    hessian = jax.jit(jax.vmap(jax.hessian(fn, argnums=(0, 1))))(V, X)
    for i, (by, step) in enumerate(((V, 1e-5), (X, 1e-5))):
        h = step * np.maximum(by, 1 if i == 0 else 0)
        moved = [(V + s * h, X) if i == 0 else (V, X + s * h) for s in (1, -1)]
        up, down = (extended(*at) for at in moved)
        for j, of in enumerate(("dv", "dx")):
            slope = ((up[f"{name}_{of}"] - down[f"{name}_{of}"]) / (2 * h)).astype(float)
            scale = np.abs(slope) + 1e-3
            assert np.max(np.abs(hessian[i][j] - slope) / scale) < 1e-6, (i, j)


def test_the_second_derivative_keeps_its_digits_where_x_is_large():
    # log I_v is x - log(2 pi x) / 2 + O(1 / x), so that its second derivative is 1 / (2 x^2).
    curvature = jax.grad(jax.grad(bessel.log_iv, 1), 1)(2.0, 1e8)
    assert abs(float(curvature) * 2e16 - 1) < 1e-6


@pytest.mark.parametrize(
    ("v", "x", "log_i", "log_k", "i_dx", "k_dx"),
    [
        (0.0, 0.0, 0.0, INF, 0.0, -INF),
        (2.5, 0.0, -INF, INF, INF, -INF),
        (2.5, INF, INF, -INF, 1.0, -1.0),
        (INF, 3.0, -INF, INF, INF, -INF),
        (2.0, -1.0, NAN, NAN, NAN, NAN),
        (NAN, 1.0, NAN, NAN, NAN, NAN),
        (1.0, NAN, NAN, NAN, NAN, NAN),
    ],
)
def test_edges(v, x, log_i, log_k, i_dx, k_dx):
    found = [bessel.log_iv(v, x), bessel.log_kv(v, x)]
    found += [jax.grad(fn, 1)(v, x) for fn in (bessel.log_iv, bessel.log_kv)]
    np.testing.assert_array_equal(found, [log_i, log_k, i_dx, k_dx])


def test_negative_orders():
    assert np.isnan(bessel.log_iv(-2.0, 3.0))
    assert bessel.log_kv(-2.5, 3.0) == bessel.log_kv(2.5, 3.0)
    down, up = (jax.grad(bessel.log_kv)(v, 3.0) for v in (-2.5, 2.5))
    assert down == -up
    assert jax.grad(bessel.log_kv)(0.0, 3.0) == 0


def test_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        assert bessel.log_iv(jnp.float32(2), 3.0).dtype == jnp.float32
        assert bessel.log_kv(2, jnp.bfloat16(3)).dtype == jnp.bfloat16
        assert bessel.log_kv(np.arange(3), 2.0).dtype == jnp.float64
        assert bessel.iv_ratio(jnp.float16(1), jnp.float16(2)).dtype == jnp.float16
    text = str(jax.make_jaxpr(jax.grad(bessel.log_kv, (0, 1)))(jnp.float32(2), jnp.float32(3)))
    assert "f64" not in text
    assert "while" not in text


@pytest.mark.parametrize("name", ["log_iv", "log_kv", "log_iv_dx", "log_kv_dx"])
def test_float32(name):
    rng = np.random.default_rng(3)
    v, x = (10 ** rng.uniform(-6, 6, 4000).astype(np.float32) for _ in range(2))
    truth = extended(v, x)
    value, t = np.asarray(jax.jit(getattr(bessel, name))(v, x)), truth[name]
    kind = name[:6]
    moved = np.abs(v * truth[f"{kind}_dv"]) + np.abs(x * truth[f"{kind}_dx"])
    scale = np.maximum(1, np.abs(t)) + (moved if name == kind else 0)
    assert np.max(np.abs(value - t) / scale) < 2e-6


def test_what_is_refused():
    with pytest.raises(TypeError, match="log_iv: x is complex128; it must be real"):
        bessel.log_iv(1.0, jnp.array(1j))
    with pytest.raises(TypeError, match="log_kv: v is bool"):
        bessel.log_kv(jnp.array(True), 1.0)
    with pytest.raises(ValueError, match="log_iv: method='best'; valid: auto, paper"):
        bessel.log_iv(1.0, 1.0, method="best")  # pyright: ignore


def test_one_order_of_a_number_computes_the_expansion_alone():
    few = jax.make_jaxpr(lambda x: bessel.log_kv(1023.0, x))(X)
    all_of_it = jax.make_jaxpr(lambda v, x: bessel.log_kv(v, x))(V, X)
    assert "= exp " in str(all_of_it)
    assert "= exp " not in str(few)
    whole = jax.jit(bessel.log_kv)(np.full(5, 1023.0), X)
    np.testing.assert_allclose(bessel.log_kv(1023.0, X), whole, rtol=1e-15)


def test_a_sharded_array_needs_no_communication():
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    x = jax.device_put(np.linspace(1, 40, 64), NamedSharding(mesh, PartitionSpec("d")))
    fn = jax.jit(lambda x: bessel.log_kv(2.0, x))
    text = fn.lower(x).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "permute"))
    np.testing.assert_allclose(fn(x), bessel.log_kv(2.0, np.asarray(x)), rtol=1e-14)


def test_tables_are_stirlings_at_1():
    # u_k(1) = (-1)^k g_k with the coefficients of Stirling's series of the Gamma function.
    ones = [sum(w) for w in debye_polynomials(4)]
    stirling = [1, 1 / 12, 1 / 288, -139 / 51840, -571 / 2488320]
    np.testing.assert_allclose(
        [float((-1) ** k * u) for k, u in enumerate(ones)], stirling, rtol=1e-15
    )
