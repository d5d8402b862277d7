"""Edges, dtypes and transformations of log I and log K."""

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


@pytest.mark.parametrize("name", bessel.__all__)
def test_programs_have_no_loop_of_unknown_length_and_no_float64(name):
    fn = getattr(bessel, name)
    at = jnp.float32(2), jnp.float32(3)
    once = jax.grad(fn, (0, 1))
    twice = jax.grad(lambda v, x: sum(once(v, x)), (0, 1)) if name in ("log_iv", "log_kv") else once
    for traced in (fn, once, twice):
        text = str(jax.make_jaxpr(traced)(*at))
        assert "f64" not in text
        assert "while" not in text


def test_orders_that_the_caller_knows_to_be_large():
    v, x = jnp.array([30.0, 45.5, 299.0]), jnp.array([1e-30, 200.0, 1e5])

    def both(v, x, **known):
        value, slopes = jax.value_and_grad(bessel.log_kv, (0, 1))(v, x, **known)
        return value, slopes, bessel.iv_ratio(v, x, **known), bessel.kv_ratio(v, x, **known)

    short = jax.make_jaxpr(lambda v, x: bessel.log_kv(v, x, least=30.0))(v, x)
    assert "= exp " not in str(short)
    known = jax.jit(jax.vmap(lambda v, x: both(v, x, least=30.0)))
    value, slopes, ratio_i, ratio_k = known(v, x)
    at = np.asarray(v), np.asarray(x)
    here, above = extended(*at), extended(at[0] + 1, at[1])
    np.testing.assert_allclose(value, here["log_kv"].astype(float), rtol=2e-14)
    for slope, of in zip(slopes, ("dv", "dx"), strict=True):
        np.testing.assert_allclose(slope, here[f"log_kv_{of}"].astype(float), rtol=2e-14)
    for ratio, name in ((ratio_i, "log_iv"), (ratio_k, "log_kv")):
        exact = np.exp(above[name] - here[name]).astype(float)
        np.testing.assert_allclose(ratio, exact, rtol=2e-14)
    value, _, *ratios = known(v - 2, x)
    for part in (value, *ratios):
        np.testing.assert_array_equal(np.isnan(part), [True, False, False])
    with pytest.raises(ValueError, match="log_kv: least=-1 must be a number, 0 or more"):
        bessel.log_kv(v, x, least=-1)


def test_an_order_plus_1_is_that_of_the_dtype_that_is_computed_in():
    x = np.array([300.0])
    assert bessel.iv_ratio(np.uint8(255), x) == bessel.iv_ratio(255.0, x)
    wide = np.float32(16_777_216.0)  # where float32 has no v + 1
    with jax.numpy_dtype_promotion("standard"):
        assert bessel.iv_ratio(wide, x) == bessel.iv_ratio(float(wide), x)


def test_log_i_of_the_smallest_normal_numbers():
    for dtype in ("float64", "float32"):
        x = np.array([1, 1.5, 2, 2.5], dtype) * np.finfo(dtype).tiny
        found = bessel.log_iv(np.repeat(np.array([[0], [1], [2.5]], dtype), 4, 1), x[None])
        np.testing.assert_array_equal(found[0], 0)
        half = np.log(x.astype(np.longdouble) / 2)
        np.testing.assert_allclose(found[1], half.astype(dtype), rtol=4 * np.finfo(dtype).eps)
        gamma = np.log(3.3233509704478426)
        expected = (2.5 * half - gamma).astype(dtype)
        np.testing.assert_allclose(found[2], expected, rtol=4 * np.finfo(dtype).eps)


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


@pytest.mark.parametrize("name", ["log_iv", "log_kv"])
def test_sharded_orders_and_slopes_need_no_communication(name):
    mesh = Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ("d", "e"))
    places = NamedSharding(mesh, PartitionSpec("e", "d"))
    v, x = np.random.default_rng(0).uniform(0, 40, (2, 4, 16))
    slopes = jax.jit(jax.grad(lambda *args: jnp.sum(getattr(bessel, name)(*args)), (0, 1)))
    placed = jax.device_put((v, x), places)
    text = slopes.lower(*placed).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "permute"))
    for got, expected in zip(slopes(*placed), slopes(v, x), strict=True):
        assert got.sharding == places
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_tables_are_stirlings_at_1():
    # u_k(1) = (-1)^k g_k with the coefficients of Stirling's series of the Gamma function.
    ones = [sum(w) for w in debye_polynomials(4)]
    stirling = [1, 1 / 12, 1 / 288, -139 / 51840, -571 / 2488320]
    np.testing.assert_allclose(
        [float((-1) ** k * u) for k, u in enumerate(ones)], stirling, rtol=1e-15
    )
