"""Many small Kronecker products: against float64, by both implementations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch, measured, rules
from jaxlab.kernels.kron_matvec import Config, Problem, kron_matvec
from jaxlab.kernels.kron_matvec.pallas_mosaic_gpu import apart, pairs
from jaxlab.kernels.kron_matvec.reference import reference
from jaxlab.kernels.packing import LAYOUT_VERSION
from jaxlab.kron.product import kron_matvec as any_factors


def operands(samples, n1, m2, n2, dtype=jnp.float32, m1=None):
    rng = np.random.default_rng(samples + n1 + m2)
    shapes = (samples, n1, n2), (m1 or n1, n1), (m2, n2)
    x, a, b = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    wide = (np.asarray(v, np.float64) for v in (a, x, b))
    return x, a, b, np.einsum("pi,sij,qj->spq", *wide)


def off(y, exact):
    return np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()


def test_it_is_the_kronecker_product_in_float64():
    with jax.enable_x64(True):
        x, a, b, _ = operands(3, 4, 5, 3, jnp.float64, m1=6)
        y = kron_matvec(x, a, b)
        dense = np.kron(np.asarray(a), np.asarray(b))
        for sample, vector in zip(y, x, strict=True):
            np.testing.assert_allclose(
                np.asarray(sample).reshape(-1),
                dense @ np.asarray(vector).reshape(-1),
                rtol=1e-12,
                atol=1e-12,
            )
        np.testing.assert_allclose(np.asarray(y), np.asarray(any_factors((a, b), x)), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_xla_is_right_at_any_size(dtype, bound):
    x, a, b, exact = operands(7, 5, 3, 9, dtype, m1=11)
    assert off(jax.jit(kron_matvec)(x, a, b), exact) <= bound
    assert off(reference(x.reshape(7, -1), (), (a, b)).reshape(exact.shape), exact) <= bound


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("dtype", "bound", "sides", "config"),
    [
        (jnp.float32, 1e-6, (32, 32, 32), Config(2, 2, 2)),
        (jnp.float32, 1e-6, (64, 16, 64), Config(1, 1, 1)),
        (jnp.bfloat16, 2**-8, (16, 64, 32), Config(1, 2, 2)),
    ],
)
def test_the_interpreted_kernel_is_as_exact_as_its_dtype(dtype, bound, sides, config):
    n1, m2, n2 = sides
    x, a, b, exact = operands(5 * 64 // n1, n1, m2, n2, dtype)
    assert off(kron_matvec(x, a, b, config=config, interpret=True), exact) <= bound


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
# Zeros off the diagonal meet the infinity.
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_infinities_of_a_tile_are_xlas_and_leave_other_tiles_alone():
    x, a, b, _ = operands(4, 32, 32, 32)
    x = x.at[0, 1, 2].set(jnp.inf)
    y = kron_matvec(x, a, b, config=Config(1, 1, 1), interpret=True)
    expected = kron_matvec(x, a, b)
    np.testing.assert_array_equal(np.asarray(y[0]), np.asarray(expected[0]))
    assert bool(jnp.all(jnp.isinf(y[0])))
    assert off(y[2:], np.asarray(expected[2:])) <= 1e-6


def test_three_pieces_are_a_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    pieces = jax.jit(functools.partial(apart, pieces=3))(x)
    assert all(p.dtype == jnp.bfloat16 for p in pieces)
    np.testing.assert_array_equal(sum(np.asarray(p, np.float64) for p in pieces), np.asarray(x))
    assert pairs(3, 3) == [(0, 2), (1, 1), (2, 0), (0, 1), (1, 0), (0, 0)]


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(samples, n1, m2, n2, dtype=jnp.float32, implementation=None):
        rules.product.cache_clear()
        shapes = (samples, n1, n2), (n1, n1), (m2, n2)
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        product = functools.partial(kron_matvec, implementation=implementation)
        with on_an_h100():
            traced = jax.jit(product).trace(*operands)
            return traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2")

    return lower


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sides", [(32, 32, 32), (64, 16, 64), (16, 64, 32)])
def test_the_kernel_lowers_for_cuda(lower_for_cuda, sides, dtype):
    assert lower_for_cuda(1024, *sides, dtype, "mosaic_gpu") == 1


def test_only_a_measured_win_takes_the_kernel(lower_for_cuda, monkeypatch):
    assert lower_for_cuda(64, 32, 32, 32) == 0
    entry = {"implementation": "mosaic_gpu", "config": vars(Config(2, 2, 264))}
    key = Problem(64, 32, 32, 32, 32, "float32").key
    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": {key: entry}}
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)
    assert lower_for_cuda(64, 32, 32, 32) == 1
    assert lower_for_cuda(63, 32, 32, 32) == 0


def test_what_the_kernel_does_not_take(lower_for_cuda):
    x, a, b, _ = operands(2, 32, 32, 32)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        kron_matvec(x, a, b, implementation="mosaic_gpu")
    for shape, says in [
        ((3, 32, 32, 32), "multiples of 2"),
        ((4, 32, 32, 24), "sides 32, 32, 24"),
    ]:
        with pytest.raises(NotImplementedError, match=says):
            lower_for_cuda(*shape, implementation="mosaic_gpu")
        assert lower_for_cuda(*shape, implementation=("mosaic_gpu", "xla")) == 0
    assert "square" in Problem(4, 16, 32, 32, 32, "float32").refuse(Config())
    assert "float64" in Problem(4, 32, 32, 32, 32, "float64").refuse(Config())
    assert "warpgroups" in Problem(4, 32, 32, 32, 32, "float32").refuse(Config(ways=5))
    assert "bytes" in Problem(4, 32, 32, 64, 64, "float32").refuse(Config(stages=9))


def test_every_candidate_fits():
    for side in (16, 32, 64):
        for dtype in ("float32", "bfloat16"):
            problem = Problem(1024, side, side, side, side, dtype)
            found = problem.candidates()
            assert len(set(found)) == len(found) >= 2
            assert not any(problem.refuse(config) for config in found)
            assert problem.cut(None) == found[0]
            assert problem.cut(vars(found[1])) == found[1]


def test_gradients_and_batches_are_those_of_the_reference():
    x, a, b, exact = operands(6, 4, 3, 5)

    def loss(fn, x, a, b):
        return jnp.sum(jnp.sin(fn(x, a, b)))

    def plain(x, a, b):
        return reference(x.reshape(6, -1), (), (a, b)).reshape(6, 4, 3)

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, fn), (0, 1, 2)))(x, a, b)
        for fn in (kron_matvec, plain)
    )
    for one, other in zip(got, expected, strict=True):
        assert off(one, np.asarray(other, np.float64)) <= 1e-5
    batch = x.reshape(2, 3, 4, 5)
    folded = jax.jit(jax.vmap(lambda x: kron_matvec(x, a, b)))
    assert off(folded(batch).reshape(6, 4, 3), exact) <= 1e-6
    assert [e.outvars[0].aval.shape for e in dots(jax.make_jaxpr(folded)(batch).jaxpr)] == [
        (6, 4, 3),
        (6, 3, 4),
    ]
    doubled = jax.vmap(lambda a: kron_matvec(x, a, b))(jnp.stack([a, 2 * a]))
    assert off(doubled[1], 2 * exact) <= 1e-6
    per_sample = jax.jit(jax.vmap(jax.grad(lambda x: loss(kron_matvec, x, a, b))))(x)
    assert off(per_sample, np.asarray(expected[0], np.float64)) <= 1e-5


def dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns") and "fwd" not in str(eqn.params.get("name")):
                yield from dots(inner)


def test_a_batch_of_factors_does_not_replace_a_kernel_that_was_asked_for(on_an_h100):
    x, a, b, _ = operands(4, 32, 32, 32)
    product = functools.partial(kron_matvec, x, b=b, implementation="mosaic_gpu")
    with on_an_h100(), pytest.raises(NotImplementedError, match="nearest: 'xla'"):
        jax.eval_shape(jax.vmap(product), jnp.stack([a, a]))


def test_samples_on_two_devices():
    x, a, b, exact = operands(4, 3, 2, 5)
    mesh = Mesh(np.array(jax.devices()), ("s",))
    specs = P("s"), P(), P()
    product = jax.shard_map(kron_matvec, mesh=mesh, in_specs=specs, out_specs=P("s"))
    assert off(jax.jit(product)(x, a, b), exact) <= 1e-6


def test_what_is_not_finite_stays_with_its_sample_and_nothing_is_nothing():
    x, a, b, _ = operands(2, 3, 2, 5)
    y = kron_matvec(x.at[0, 1, 2].set(jnp.nan), a, b)
    assert bool(jnp.all(jnp.isnan(y[0])))
    assert bool(jnp.all(jnp.isfinite(y[1])))
    assert kron_matvec(x[:0], a, b).shape == (0, 3, 2)
    assert jax.eval_shape(kron_matvec, x[0], a, b).shape == (3, 2)


def test_bad_arguments_are_named():
    x, a, b, _ = operands(2, 3, 2, 5)
    for bad, says in [
        (lambda: kron_matvec(x[..., :4], a, b), r"end in \(3, 5\)"),
        (lambda: kron_matvec(x, a[0], b), "a of shape"),
        (lambda: kron_matvec(x, a, b, implementation="mosaic_gp"), "nearest: 'mosaic_gpu'"),
        (lambda: kron_matvec(x, a, b, implementation=()), "names none"),
    ]:
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(TypeError, match="b must be float32"):
        kron_matvec(x, a, b.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="floating"):
        kron_matvec(x.astype(jnp.int32), a, b)
