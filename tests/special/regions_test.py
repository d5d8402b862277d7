"""Which pieces of the scheme are computed at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxlab.special import bessel
from jaxlab.special.bessel import regions

ORDERS = {
    "large": np.linspace(30, 300, 16),
    "small": np.linspace(0, 12, 16),
    "mixed": np.r_[np.linspace(0, 12, 8), np.linspace(30, 300, 8)],
}
X = np.geomspace(1e-9, 20, 16)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def on_one_device(fn):
    """`fn` where one device is known to have all: in a `shard_map` of one."""
    mesh, along = Mesh(np.array(jax.devices()[:1]), ("d",)), PartitionSpec("d")
    return jax.shard_map(fn, mesh=mesh, in_specs=along, out_specs=along)


@pytest.mark.parametrize("orders", ORDERS)
@pytest.mark.parametrize("name", ["log_iv", "log_kv", "log_kv_dx", "log_iv_dv", "log_kv_dv"])
def test_what_is_left_out_changes_nothing(name, orders):
    fn, v = getattr(bessel, name), jnp.asarray(ORDERS[orders])
    slopes = jax.vmap(jax.grad(fn, (0, 1)))
    for everywhere in (fn, lambda v, x: jax.grad(lambda *a: jnp.sum(fn(*a)), (0, 1))(v, x)):
        found = jax.jit(on_one_device(everywhere))(v, X)
        expected = jax.jit(fn if everywhere is fn else slopes)(v, X)
        # Compiled twice, sums are not rounded alike.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found, expected)


def test_a_cpu_that_is_one_device_asks_whether_any_element_needs_the_integral():
    def branches(fn):
        return jax.jit(fn).lower(v, X).compile().as_text().count(" conditional(")

    v = jnp.asarray(ORDERS["large"])
    assert branches(on_one_device(bessel.log_kv)) == 1
    assert branches(bessel.log_kv) == 0  # there are several devices here
    assert branches(on_one_device(lambda v, x: bessel.log_kv(v, x, least=30.0))) == 0


def test_the_branch_is_left_where_elements_are_apart():
    v = jnp.asarray(ORDERS["mixed"])
    found = jax.jit(on_one_device(jax.vmap(bessel.log_kv)))(v, X)
    np.testing.assert_allclose(found, bessel.log_kv(v, X), rtol=1e-13)


@pytest.mark.parametrize("sign", [1, -1])
def test_pieces_that_are_not_chosen_make_no_nan(sign):
    f = regions.Function(sign, False, 0)
    for fn in (regions.value, regions.dx, regions.dv, regions.dvv):
        slopes = jax.vmap(jax.grad(lambda v, x, fn=fn: fn(f, v, x), (0, 1)))
        v = jnp.array([0.0, 0.0, 1e-20, 0.0, 30.0])
        assert np.all(np.isfinite(jax.jit(slopes)(v, jnp.array([1.0, 1e-9, 2.0, 40.0, 1e-9]))))
