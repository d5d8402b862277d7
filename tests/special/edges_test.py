"""Signs of orders, limits at 0, continuity, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxlab.special import bessel
from jaxlab.special.bessel.functions import _zero_or_inside
from jaxlab.special.bessel.reference import extended
from jaxlab.special.generalized_inverse_gaussian import gig_log_prob, gig_mean
from jaxlab.special.matern import matern
from jaxlab.special.promotion import check_above
from jaxlab.special.student_t import student_t_log_cf
from jaxlab.special.vmf import (
    VmfMixture,
    vmf_fit,
    vmf_kappa_from_r,
    vmf_log_prob,
    vmf_mean_resultant,
    vmf_mixture_fit,
    vmf_mixture_log_prob,
    vmf_sample,
)
from jaxlab.special.vmf.estimation import direction


def test_the_derivative_in_the_order_of_k_is_odd():
    orders, x = jnp.array([-3.0, -1.0, 0.0, 1.0, 3.0, -40.0]), jnp.float32(2.0)

    @jax.jit
    def both(orders):
        slopes = jax.vmap(jax.grad(bessel.log_kv), (0, None))(orders, x)
        return slopes, bessel.log_kv_dv(orders, x)

    slopes, direct = both(orders)
    np.testing.assert_allclose(direct, slopes, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(direct[0], -direct[4])
    # At 0 it passes through 0 with a slope.
    slope = jax.grad(bessel.log_kv_dv)(jnp.float32(0.0), jnp.float32(3.0))
    np.testing.assert_allclose(slope, 0.2913, rtol=1e-3)


def test_ratios_at_and_near_zero():
    orders = jnp.array([0.0, 2.0, 100.0])
    x = jnp.array([0.0, 1e-30, 1e-20, 1e-5])

    @jax.jit
    def table(orders, x):
        fn = jax.vmap(jax.vmap(jax.value_and_grad(bessel.iv_ratio, (0, 1)), (None, 0)), (0, None))
        return fn(orders, x)

    value, (of_order, of_x) = table(orders, x)
    slope = 1 / (2 * (np.asarray(orders) + 1))
    np.testing.assert_allclose(value, slope[:, None] * np.asarray(x), rtol=1e-5)
    np.testing.assert_allclose(of_x, np.repeat(slope[:, None], 4, 1), rtol=1e-4)
    expected = -2 * slope[:, None] ** 2 * np.asarray(x)
    np.testing.assert_allclose(of_order, expected, rtol=1e-3, atol=1e-30)
    edges = jax.jit(bessel.kv_ratio)(
        jnp.array([0.0, 1.0, -1.0, -0.5, 2.0, -3.0]), jnp.array([0.0, 0, 0, 0, jnp.inf, jnp.inf])
    )
    assert edges.tolist() == [np.inf, np.inf, 0.0, 1.0, 1.0, 1.0]
    assert np.all(np.isnan(bessel.iv_ratio(jnp.array([-1.0, 1.0]), jnp.array([2.0, -1.0]))))


def test_the_ratio_of_k_for_orders_of_both_signs():
    with jax.enable_x64(True):
        v = jnp.array([-1e4, -7.3, -1.0, -0.9, -0.5, -0.2, 0.3, 5.0])
        x = jnp.array([1.0, 1e-3, 0.4, 1e-6, 30.0, 2.0, 1e-9, 40.0])
        found = np.asarray(jax.jit(bessel.kv_ratio)(v, x))
        logs = jax.jit(bessel.log_kv)
        np.testing.assert_allclose(found, np.exp(logs(v + 1, x) - logs(v, x)), rtol=3e-10)
        # K_9999 / K_10000 at 1.
        np.testing.assert_allclose(found[0], 5.00050005e-05, rtol=1e-8)
        fixed = np.asarray(bessel.kv_ratio(5.0, x))
        np.testing.assert_allclose(fixed[-1], found[-1], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_subnormal_arguments_are_zero_and_the_smallest_normal_one_is_not(dtype):
    info = np.finfo(dtype)
    x = np.array([0, info.smallest_subnormal, info.tiny / 2, -info.tiny / 2, info.tiny], dtype)
    orders = np.array([0, info.smallest_subnormal, 2], dtype)
    names = ("log_iv", "log_kv", "log_iv_dx", "log_kv_dx", "log_iv_dv", "log_kv_dv", "kv_ratio")
    with jax.enable_x64(True):
        v, at = jnp.meshgrid(jnp.asarray(orders), jnp.asarray(x), indexing="ij")
        for name in names:
            found = np.asarray(getattr(bessel, name)(v, at))
            assert not np.any(np.isnan(found)), name
            np.testing.assert_array_equal(found[:, 1:4], np.repeat(found[:, :1], 3, 1), name)
        for name in ("log_iv", "log_kv", "log_iv_dv", "log_kv_dv"):
            found = getattr(bessel, name)(jnp.asarray(2, dtype), jnp.asarray(info.tiny, dtype))
            exact = float(extended([2.0], [float(info.tiny)])[name][0])
            np.testing.assert_allclose(found, exact, rtol=4 * info.eps)
        np.testing.assert_array_equal(bessel.kv_ratio(v, at)[:, :4], np.inf)
        # By bits, so also where a subnormal number is not flushed to 0.
        zero, inside = _zero_or_inside(jnp.asarray(x))
    assert zero.tolist() == [True, True, True, True, False]
    assert inside.tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_slopes_and_ratios_where_hypot_overflows(dtype):
    most = np.finfo(dtype).max
    v = np.array([most, most * 0.9, most, most, 1], dtype)
    x = np.array([most, most * 0.97, most * 0.4, 1, most], dtype)
    with np.errstate(over="ignore"):
        slant, ratio = np.hypot(v / most, x / most) / (x / most), v / x
    slope = np.minimum(slant, most).astype(dtype)
    with jax.enable_x64(True):
        v, x = jnp.asarray(v), jnp.asarray(x)
        wanted = {
            "log_iv_dx": slope,
            "log_kv_dx": -slope,
            "kv_ratio": slant + ratio,
            "iv_ratio": 1 / (slant + ratio),
        }
        for name, exact in wanted.items():
            found = getattr(bessel, name)(v, x)
            # The reciprocal of the largest number is subnormal.
            tiny = np.finfo(dtype).tiny
            np.testing.assert_allclose(found, exact, rtol=4 * np.finfo(dtype).eps, atol=tiny)


def test_what_is_nan_is_not_hidden():
    mu, kappa = jax.jit(vmf_fit)(jnp.full((3, 2), jnp.nan))
    assert bool(jnp.all(jnp.isnan(mu)) & jnp.isnan(kappa))
    assert float(jax.grad(bessel.iv_ratio)(2.0, jnp.inf)) == 0


def test_resultants_and_concentrations_near_zero():
    slopes = jax.vmap(jax.grad(vmf_mean_resultant, 1), (None, 0))
    tiny = jnp.array([0.0, 1e-30, 1e-20, 1e-6])
    np.testing.assert_allclose(slopes(5.0, tiny), np.full(4, 0.2), rtol=1e-4)
    r = jnp.array([1e-30, 1e-20, 1e-10])
    np.testing.assert_allclose(vmf_kappa_from_r(2, r), 2 * r, rtol=1e-5)


def test_monotone_in_the_order_and_continuous_where_pieces_meet():
    with jax.enable_x64(True):
        v = jnp.asarray(np.geomspace(1e-3, 1e4, 400))
        # By one program each, for 400 points.
        with_slopes = {
            name: jax.jit(jax.vmap(jax.value_and_grad(getattr(bessel, name), (0, 1))))
            for name in ("log_iv", "log_kv")
        }
        for x in (1e-3, 1.0, 24.0, 500.0):
            at = jnp.full_like(v, x)
            assert np.all(np.diff(with_slopes["log_iv"](v, at)[0]) <= 0)
            assert np.all(np.diff(with_slopes["log_kv"](v, at)[0]) >= 0)
        x = jnp.asarray(np.geomspace(1e-10, 1e3, 400))  # across every border
        for order in (0.0, 0.3, 0.97, 7.0, 24.0, 300.0):
            at = jnp.full_like(x, order)
            assert np.all(np.diff(with_slopes["log_iv"](at, x)[0]) >= 0)
            assert np.all(np.diff(with_slopes["log_kv"](at, x)[0]) <= 0)
        # Both sides of hypot(v, x) = 25, at all angles, and of x = 1e-8 for small orders.
        angle = np.linspace(1e-3, np.pi / 2, 396)
        small = np.array([0.0, 0.5, 0.95, 1.0])
        inner, outer = (
            (
                jnp.asarray(np.r_[25 * s * np.cos(angle), small]),
                jnp.asarray(np.r_[25 * s * np.sin(angle), np.full(4, 1e-8 * s)]),
            )
            for s in (1 - 1e-15, 1 + 1e-15)
        )
        for fn in with_slopes.values():
            (low, slopes), (high, others) = fn(*inner), fn(*outer)
            size = (
                1
                + np.abs(low)
                + sum(np.abs(at * slope) for at, slope in zip(inner, slopes, strict=True))
            )
            assert np.max(np.abs(low - high) / size) <= 5e-15
            for a, b in zip(slopes, others, strict=True):
                assert np.max(np.abs(a - b) / (1 + np.abs(a))) <= 1e-13


def test_scales_that_overflow_as_quotients():
    assert np.isfinite(gig_log_prob(1.0, 1.0, 1e-30, 1e30))
    np.testing.assert_allclose(gig_mean(0.5, 1e-30, 1e30), 2e30, rtol=1e-5)
    # x / eta is 0 or infinite; the slope of what is -inf is no NaN.
    x, a, b = jnp.array([1e-30, 1e30]), jnp.array([1e-20, 1e20]), jnp.array([1e20, 1e-20])
    value, slope = jax.vmap(jax.value_and_grad(gig_log_prob), (0, None, 0, 0))(x, 0.3, a, b)
    np.testing.assert_array_equal(value, [-np.inf, -np.inf])
    assert not np.any(np.isnan(slope))


@pytest.mark.parametrize("size", [1e-25, 1e-36, 1.0])
def test_directions_of_means_whose_squares_underflow(size):
    mean = jnp.array([3.0, 0.0, 4.0]) / 5 * jnp.float32(size)
    mu, length = direction(mean)
    np.testing.assert_allclose(mu, [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(length, size, rtol=1e-6)


def test_what_is_nan_is_no_draw():
    mu = jnp.array([0.0, 1.0])
    drawn = vmf_sample(jax.random.key(0), mu, jnp.array([jnp.nan, 5.0]))
    assert bool(jnp.all(jnp.isnan(drawn[0])))
    assert bool(jnp.all(jnp.isfinite(drawn[1])))


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda y: vmf_log_prob(y, np.eye(100, dtype=np.float32)[1], 2.0), jnp.eye(100)[:2]),
        (lambda r: matern(r, 200.0, np.float32(1.0)), jnp.array([0.5, 2.0])),
        (lambda x: gig_log_prob(x, 2.0, np.float32(1.5), 2), jnp.array([0.5, 2.0])),
        (lambda t: student_t_log_cf(t, 100, 1.0), jnp.array([0.5, 2.0])),
    ],
    ids=["vmf_log_prob", "matern", "gig_log_prob", "student_t_log_cf"],
)
def test_checks_pass_inside_of_an_eager_shard_map(fn, x):
    mesh, along = Mesh(np.array(jax.devices()[:2]), ("d",)), PartitionSpec("d")
    found = jax.shard_map(fn, mesh=mesh, in_specs=along, out_specs=along)(x)
    np.testing.assert_allclose(found, fn(x), rtol=1e-5)


def test_what_is_known_is_checked_inside_of_a_shard_map():
    mesh, along = Mesh(np.array(jax.devices()[:2]), ("d",)), PartitionSpec("d")
    with pytest.raises(ValueError, match="nu=-1 must be above 0"):
        jax.shard_map(lambda r: matern(r, -1.0, 1.0), mesh=mesh, in_specs=along, out_specs=along)(
            jnp.ones(2)
        )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: vmf_fit(np.eye(3), axis=4), "axis=4"),
        (lambda: vmf_fit(np.eye(3), steps=-3), "steps=-3"),
        (lambda: vmf_fit(np.ones((3, 1))), "p=1"),
        (lambda: vmf_fit(np.zeros((0, 3))), "n 1 or more"),
        (lambda: vmf_fit(np.eye(3), weights=np.ones(4)), r"weights of \(4,\)"),
        (lambda: vmf_kappa_from_r(3, 0.5, steps=1.5), "steps=1.5"),
        (lambda: vmf_log_prob(np.eye(3), np.eye(4)[0], 1.0), r"\(3,\) coordinates"),
        (lambda: vmf_sample(jax.random.key(0), np.eye(2)[0], 1.0, 5), r"nearest: \(5,\)"),
        (lambda: vmf_mixture_fit(jax.random.key(0), np.eye(3)[0], 1), r"points \(n, p\)"),
        (lambda: vmf_mixture_fit(jax.random.key(0), np.eye(3), 2.0), "components=2.0"),
        (lambda: bessel.log_iv(None, 2), "log_iv: v=None"),
        (lambda: check_above("owner", 0, x=jnp.array([1.0, -2.0])), "x=-2 must be"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


def test_a_mixture_takes_unit_vectors_of_its_dimension():
    mixture = VmfMixture(jnp.zeros(1), jnp.array([[0.0, 1.0]]), jnp.ones(1))
    with pytest.raises(ValueError, match="nearest: y / norm"):
        vmf_mixture_log_prob(2 * np.eye(2), mixture)
    with pytest.raises(ValueError, match="coordinates of mixture.mu"):
        vmf_mixture_log_prob(np.eye(3), mixture)
