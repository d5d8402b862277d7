"""The update of inverse factors: against MKOR's own functions, and the inverse that it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch
from jaxlab.kernels.packing import LAYOUT_VERSION
from jaxlab.kernels.sherman_morrison import Config, Problem, api, sherman_morrison_update, wins
from jaxlab.optim.mkor.factors import sherman_morrison, stabilise

EPS, ZETA, GAMMA = 2.0, 0.8, 0.9
refreshed = functools.partial(sherman_morrison_update, gamma=GAMMA, eps=EPS, zeta=ZETA)


def operands(stack, n, dtype=jnp.float32):
    """Symmetric factors, the first of which the stabiliser pulls."""
    rng = np.random.default_rng(n)
    half = rng.normal(size=(*stack, n, n)) / np.sqrt(n)
    j = 0.3 * half @ half.swapaxes(-1, -2)
    j = (j + j.swapaxes(-1, -2)) / 2
    j.reshape(-1, n, n)[0] *= 10
    v = rng.normal(size=(*stack, n)) / np.sqrt(n)
    return jnp.asarray(j, dtype), jnp.asarray(v, dtype)


def off(y, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()


def by_mkor(j, v):
    pulled, fired = stabilise(j, EPS, ZETA)
    return sherman_morrison(pulled, v, gamma=GAMMA), fired


def test_it_is_the_inverse_of_a_sum_in_float64():
    with jax.enable_x64(True):
        j, v = operands((2,), 5, jnp.float64)
        new = np.asarray(refreshed(j, v))
        pulled = np.asarray(stabilise(j, 2.0, 0.8)[0])
        for new_, j_, v_ in zip(new, pulled, np.asarray(v), strict=True):
            inverse = np.linalg.inv(0.9 * j_ + 0.1 * np.eye(5)) + np.outer(v_, v_)
            np.testing.assert_allclose(new_, np.linalg.inv(inverse), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stack", [(), (3,), (2, 2)])
def test_xla_is_what_mkor_does(stack):
    j, v = operands(stack, 9)
    expected, fired = by_mkor(j, v)
    assert bool(fired.reshape(-1)[0])
    new = jax.jit(refreshed)(j, v)
    assert new.shape == j.shape
    assert off(new, expected) <= 1e-6
    assert off(new, np.asarray(new).swapaxes(-1, -2)) <= 1e-6
    plain = sherman_morrison_update(j, v, gamma=0.9)
    assert off(plain, sherman_morrison(j, v, gamma=0.9)) <= 1e-6


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("dtype", "bound", "config"), [(jnp.float32, 1e-6, Config(2)), (jnp.bfloat16, 2**-8, Config(1))]
)
def test_the_interpreted_kernel_equals_mkor(dtype, bound, config):
    j, v = operands((2,), 128, dtype)
    expected, fired = by_mkor(j.astype(jnp.float32), v.astype(jnp.float32))
    assert fired.tolist() == [True, False]
    new = refreshed(j, v, config=config, interpret=True)
    assert new.dtype == dtype
    assert off(new, expected) <= bound
    np.testing.assert_array_equal(np.asarray(new), np.asarray(new).swapaxes(-1, -2))


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(stack, n, implementation=None, config=None, dtype=jnp.float32):
        api._update.cache_clear()
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((stack, n, n), (stack, n))]
        update = functools.partial(refreshed, implementation=implementation, config=config)
        with on_an_h100():
            traced = jax.jit(update).trace(*operands)
            return traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2")

    return lower


@pytest.mark.parametrize(
    ("n", "ways", "dtype"), [(512, 4, jnp.float32), (128, 1, jnp.bfloat16), (256, 2, jnp.float32)]
)
def test_the_kernel_lowers_for_cuda(lower_for_cuda, n, ways, dtype):
    assert lower_for_cuda(3, n, "mosaic_gpu", Config(ways), dtype) == 1


def test_only_a_measured_win_takes_the_kernel(lower_for_cuda, monkeypatch, on_an_h100):
    assert lower_for_cuda(2, 128) == 0
    entry = {"implementation": "mosaic_gpu", "config": vars(Config(1))}
    key = Problem(2, 128, "float32").key
    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": {key: entry}}
    monkeypatch.setattr(dispatch, "_table", lambda op, kind: table)
    assert lower_for_cuda(2, 128) == 1
    assert lower_for_cuda(3, 128) == 0
    assert not wins(jnp.zeros((2, 128, 128)))
    with on_an_h100():
        assert wins(jax.ShapeDtypeStruct((2, 128, 128), jnp.float32))
        assert not wins(jax.ShapeDtypeStruct((128, 128), jnp.float32))


def test_what_the_kernel_does_not_take(lower_for_cuda):
    j, v = operands((2,), 128)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        refreshed(j, v, implementation="mosaic_gpu")
    for n, says in [(100, "multiples of 64"), (64, "from 128"), (576, "to 512")]:
        with pytest.raises(NotImplementedError, match=says):
            lower_for_cuda(2, n, "mosaic_gpu")
        assert lower_for_cuda(2, n, ("mosaic_gpu", "xla")) == 0
    assert "divide 2" in Problem(2, 128, "float32").refuse(Config(4))
    assert "float64" in Problem(2, 128, "float64").refuse(Config(1))
    assert Problem(2, 512, "float32").candidates() == [Config(4), Config(2), Config(1)]
    assert Problem(2, 192, "float32").cut(None) == Config(1)


def test_gradients_and_batches_are_those_of_xla():
    j, v = operands((3,), 6)

    def loss(fn, j, v):
        return jnp.sum(jnp.sin(fn(j, v)))

    ours = refreshed
    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, fn), (0, 1)))(j, v)
        for fn in (ours, lambda j, v: by_mkor(j, v)[0])
    )
    for one, other in zip(got, expected, strict=True):
        assert off(one, other) <= 1e-5
    whole = ours(j, v)
    np.testing.assert_allclose(np.asarray(jax.vmap(ours)(j, v)), np.asarray(whole), atol=1e-6)
    of_one = jax.vmap(lambda v: ours(j[0], v))(v)
    np.testing.assert_allclose(
        np.asarray(of_one), np.stack([ours(j[0], one) for one in v]), atol=1e-6
    )
    shares = jnp.asarray([0.8, 0.9])
    swept = jax.vmap(lambda gamma: sherman_morrison_update(j, v, gamma=gamma))(shares)
    assert off(swept[1], sherman_morrison_update(j, v, gamma=0.9)) <= 1e-6


def test_a_batch_of_settings_does_not_replace_a_kernel_that_was_asked_for(on_an_h100):
    j, v = operands((2,), 128)
    update = functools.partial(sherman_morrison_update, j, v, implementation="mosaic_gpu")
    with on_an_h100(), pytest.raises(NotImplementedError, match="under vmap over gamma"):
        jax.eval_shape(jax.vmap(lambda gamma: update(gamma=gamma)), jnp.ones(2))


def test_factors_on_two_devices():
    j, v = operands((4,), 6)
    mesh = Mesh(np.array(jax.devices()), ("s",))
    ours = refreshed
    update = jax.shard_map(ours, mesh=mesh, in_specs=(P("s"), P("s")), out_specs=P("s"))
    assert off(jax.jit(update)(j, v), ours(j, v)) <= 1e-6


def test_what_is_not_finite_stays_in_its_factor_and_nothing_is_nothing():
    j, v = operands((2,), 6)
    new = refreshed(j, v.at[0, 1].set(jnp.nan))
    assert bool(jnp.all(jnp.isnan(new[0])))
    assert bool(jnp.all(jnp.isfinite(new[1])))
    assert refreshed(j[:0], v[:0]).shape == (0, 6, 6)


def test_bad_arguments_are_named():
    j, v = operands((2,), 6)
    for bad, says in [
        (lambda: refreshed(j[:, :5], v), r"must be \(..., n, n\)"),
        (lambda: refreshed(j, v[:, :5]), r"nearest: \(2, 6\)"),
        (lambda: refreshed(j, v, implementation="xl"), "nearest: 'xla'"),
    ]:
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(TypeError, match="j must be floating"):
        refreshed(j.astype(jnp.int32), v)
