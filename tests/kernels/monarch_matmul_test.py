"""Monarch products: against float64, by every implementation, under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch, measured
from jaxlab.kernels.monarch_matmul import Config, Problem, monarch_matmul, takes_kernel
from jaxlab.kernels.monarch_matmul import api as monarch_api
from jaxlab.kernels.monarch_matmul.reference import reference
from jaxlab.kernels.monarch_matmul.shapes import problem_of, refuse
from jaxlab.kernels.packing import LAYOUT_VERSION
from jaxlab.methods.monarch import Monarch, MonarchShape, monarch_apply, monarch_to_dense

# (k, q, p) and (l, s, r): square, rectangular, few blocks, more of them in the second factor, and
# blocks that are not fed equally.
SHAPES = [
    ((4, 4, 4), (4, 4, 4)),
    ((4, 8, 6), (4, 5, 8)),
    ((2, 8, 3), (4, 2, 4)),
    ((4, 2, 3), (8, 3, 1)),
    ((3, 6, 4), (2, 5, 9)),
    ((2, 3, 4), (3, 3, 2)),
]
SQUARE = ((64, 64, 64), (64, 64, 64))
FEW = ((2, 128, 64), (2, 64, 128))


def problem(shapes, rows, dtype=jnp.float32, *, transpose=False):
    rng = np.random.default_rng(rows)
    w1, w2 = (jnp.asarray(rng.normal(size=s) / s[-1] ** 0.5, dtype) for s in shapes)
    inputs = w2.shape[0] * w2.shape[1] if transpose else w1.shape[0] * w1.shape[2]
    return jnp.asarray(rng.normal(size=(rows, inputs)), dtype), w1, w2


def dense(w1, w2, *, blocked, transpose):
    (k, _, p), (l, s, _) = w1.shape, w2.shape  # noqa: E741
    shape = MonarchShape(k, w1.shape[1], p, l, s, w2.shape[2], k * p, l * s)
    w = monarch_to_dense({"w1": w1, "w2": w2}, shape, blocked=blocked)
    return np.asarray(w if transpose else w.T, np.float64)


def close(y, expected, part):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), expected, rtol=0, atol=part * np.abs(expected).max()
    )


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
def test_it_is_the_product_with_the_dense_matrix(shapes, blocked, transpose):
    x, w1, w2 = problem(shapes, 5, transpose=transpose)
    how = {"blocked": blocked, "transpose": transpose}
    exact = np.asarray(x, np.float64) @ dense(w1, w2, **how)
    close(monarch_matmul(x, w1, w2, **how), exact, 1e-5)
    close(reference(x, w1, w2, **how), exact, 1e-5)
    half = (a.astype(jnp.bfloat16) for a in (x, w1, w2))
    close(monarch_matmul(*half, **how), exact, 2e-2)


# jax 0.10 interprets no products from slices of tiled memory; there the kernel is only lowered.
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("blocked", "transpose", "config"),
    [
        (True, False, Config(ways=2, stages=2, part=64)),
        (False, True, Config(batch_tile=128, ways=1, stages=2, outs=2)),
        (True, False, Config(ways=1, stages=2, chunk=64)),
        (False, True, Config(batch_tile=128, ways=1, stages=1, chunk=128, backwards=False)),
    ],
)
def test_the_interpreted_kernel_equals_the_reference(blocked, transpose, config):
    x, w1, w2 = problem(FEW, 150, jnp.bfloat16, transpose=transpose)
    how = {"blocked": blocked, "transpose": transpose}
    y = monarch_matmul(x, w1, w2, config=config, interpret=True, **how)
    close(y, reference(x, w1, w2, **how), 2**-8)


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(shapes, product, rows=4096):
        x, w1, w2 = (
            jax.ShapeDtypeStruct(s, jnp.bfloat16)
            for s in ((rows, shapes[0][0] * shapes[0][2]), *shapes)
        )
        # What is traced once is not traced again, and tests change what is stored in between.
        monarch_api._product.cache_clear()
        with on_an_h100():
            traced = jax.jit(lambda *args: product(*args)).trace(x, w1, w2)
            return traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu_v2")

    return lower


@pytest.mark.parametrize("blocks", [64, 128])
def test_the_kernel_lowers_for_cuda(lower_for_cuda, blocks):
    product = functools.partial(monarch_matmul, implementation="mosaic_gpu", blocked=True)
    shapes = ((blocks,) * 3,) * 2
    assert lower_for_cuda(shapes, product) == 2

    def gradient(x, w1, w2):
        return jax.grad(lambda x: jnp.sum(product(x, w1, w2).astype(jnp.float32)))(x)

    # The product itself is not needed for the gradient of its sum.
    assert lower_for_cuda(shapes, gradient) == 2


def test_the_kernel_lowers_for_cuda_with_few_blocks(lower_for_cuda):
    named = {"implementation": "mosaic_gpu", "transpose": False}
    for shapes in (FEW, ((16, 256, 256), (16, 256, 256))):
        assert lower_for_cuda(shapes, functools.partial(monarch_matmul, **named), 100) == 2


def test_chunks_pass_both_stages_one_after_another(lower_for_cuda):
    config = Config(ways=4, stages=2, chunk=1024)
    product = functools.partial(
        monarch_matmul, implementation="mosaic_gpu", config=config, blocked=True
    )
    shapes = ((128,) * 3,) * 2
    if jax.__version_info__ < (0, 11):
        with pytest.raises(NotImplementedError, match="chunk=1024; with this jax"):
            lower_for_cuda(shapes, product)
        return

    def gradient(x, w1, w2):
        return jax.grad(lambda x: jnp.sum(product(x, w1, w2).astype(jnp.float32)))(x)

    # Those of as many rows are one function.
    for rows, launches in ((4096, 2), (4000, 4), (1025, 4), (1024, 2), (64, 2)):
        assert lower_for_cuda(shapes, product, rows) == launches
    assert lower_for_cuda(shapes, gradient) == 2
    with jax.enable_x64(True):
        assert lower_for_cuda(shapes, product) == 2

    def layers(x, w1, w2):
        # Where a loop's body writes into an array of its own.
        return jax.lax.scan(lambda x, _: (product(x, w1, w2), None), x, length=2)[0]

    assert lower_for_cuda(shapes, layers) == 2


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_are_those_of_the_reference(blocked, transpose):
    x, w1, w2 = problem(SHAPES[1], 3, transpose=transpose)
    how = {"blocked": blocked, "transpose": transpose}

    def loss(fn, *args):
        return jnp.sum(jnp.sin(fn(*args, **how)))

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, fn), argnums=(0, 1, 2)))(x, w1, w2)
        for fn in (monarch_matmul, reference)
    )
    for a, b in zip(got, expected, strict=True):
        close(a, b, 1e-5)

    def squared(fn):
        return lambda x: jnp.sum(jax.grad(functools.partial(loss, fn))(x, w1, w2) ** 2)

    close(jax.grad(squared(monarch_matmul))(x), jax.grad(squared(reference))(x), 1e-4)


def test_a_batch_of_inputs_is_one_product_and_one_of_weights_is_right():
    x, w1, w2 = problem(SHAPES[1], 6)
    batch = x.reshape(3, 2, -1)
    product = jax.vmap(lambda x: monarch_matmul(x, w1, w2))
    close(product(batch), monarch_matmul(x, w1, w2).reshape(3, 2, -1), 1e-6)
    shapes = [e.outvars[0].aval.shape for e in _dots(jax.make_jaxpr(product)(batch).jaxpr)]
    assert shapes
    assert all(6 in shape and 3 not in shape for shape in shapes)
    twice = jnp.stack([w1, 2 * w1])
    got = jax.vmap(lambda w: monarch_matmul(x, w, w2))(twice)
    close(got[1], 2 * got[0], 1e-6)
    gradients = jax.jit(jax.vmap(jax.grad(lambda r: jnp.sum(monarch_matmul(r, w1, w2) ** 2))))(x)
    close(gradients, jax.grad(lambda x: jnp.sum(monarch_matmul(x, w1, w2) ** 2))(x), 1e-5)


def _dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for sub in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns") and "fwd" not in str(eqn.params.get("name")):
                yield from _dots(inner)


def test_what_is_not_finite_stays_so_and_nothing_is_nothing():
    x, w1, w2 = problem(SHAPES[0], 2)
    y = monarch_matmul(x.at[0, 3].set(jnp.nan), w1, w2)
    assert bool(jnp.all(jnp.isnan(y[0])))
    assert bool(jnp.all(jnp.isfinite(y[1])))
    assert monarch_matmul(x[:0], w1, w2).shape == (0, 16)
    assert monarch_matmul(x[0], w1, w2).shape == (16,)
    shapes = jax.eval_shape(monarch_matmul, jnp.zeros((3, 2, 16), jnp.bfloat16), w1, w2)
    assert (shapes.shape, shapes.dtype) == ((3, 2, 16), jnp.bfloat16)


def test_rows_on_two_devices():
    x, w1, w2 = problem(SHAPES[1], 4)
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    product = jax.shard_map(
        monarch_matmul, mesh=mesh, in_specs=(P("rows"), P(), P()), out_specs=P("rows")
    )
    close(jax.jit(product)(x, w1, w2), monarch_matmul(x, w1, w2), 1e-6)


def test_bad_arguments_are_named():
    x, w1, w2 = problem(SHAPES[1], 2)
    for bad, says in [
        (lambda: monarch_matmul(x[:, :23], w1, w2), "end in 24"),
        (lambda: monarch_matmul(x, w1, w2, transpose=True), "end in 20"),
        (lambda: monarch_matmul(x, w1, w2[:3]), "4 x 8 = 32 numbers.*3 x 8 = 24"),
        (lambda: monarch_matmul(x, w1[0], w2), "w1 of shape .* three axes"),
        (lambda: monarch_matmul(x, w1, w2, implementation="mosaic_gp"), "'mosaic_gpu'"),
        (lambda: monarch_matmul(x, w1, w2, implementation=()), "names none"),
    ]:
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(TypeError, match="w2 must be floating"):
        monarch_matmul(x, w1, w2.astype(jnp.int32))
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        monarch_matmul(x, w1, w2, implementation="mosaic_gpu")
    y = monarch_matmul(x, w1, w2, implementation=("mosaic_tpu", "mosaic_gpu", "xla"))
    close(y, monarch_matmul(x, w1, w2), 0)


def test_what_the_kernel_does_not_take_is_said_and_left_to_xla(on_an_h100):
    square = jax.ShapeDtypeStruct((64, 64, 64), jnp.bfloat16)
    for shapes, config, says in [
        (((32, 32, 32),) * 2, None, "multiples of 64"),
        (((4, 512, 512),) * 2, None, "256 at most"),
        (((32, 64, 128), (32, 128, 64)), None, "rank 2"),
        (((2, 64, 64), (128, 64, 1)), None, "l does not divide q"),
        (SQUARE, Config(stages=99), "bytes of shared memory"),
        (SQUARE, Config(batch_tile=32), "64 or 128"),
        (SQUARE, Config(chunk=96), "multiples of batch_tile=64"),
        (SQUARE, Config(chunk=-64), "chunk=-64; it takes 0"),
    ]:
        w1, w2 = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes)
        x = jax.ShapeDtypeStruct((64, shapes[0][0] * shapes[0][2]), jnp.bfloat16)
        named = functools.partial(monarch_matmul, config=config, implementation="mosaic_gpu")
        either = functools.partial(named, implementation=("mosaic_gpu", "xla"))
        with on_an_h100():
            with pytest.raises(NotImplementedError, match=says):
                jax.eval_shape(named, x, w1, w2)
            assert jax.eval_shape(either, x, w1, w2).shape == (64, shapes[1][0] * shapes[1][1])
    wide = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    named = functools.partial(monarch_matmul, implementation="mosaic_gpu")
    with on_an_h100(), pytest.raises(NotImplementedError, match="takes bfloat16"):
        jax.eval_shape(named, wide, square, square)
    x, stacked = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((64, 4096), (2, 64, 64, 64)))
    with on_an_h100(), pytest.raises(NotImplementedError, match="nearest: 'xla'"):
        jax.eval_shape(jax.vmap(named, (None, 0, None)), x, stacked, square)


def test_every_candidate_fits():
    for shapes in (SQUARE, ((128, 128, 128),) * 2, ((16, 256, 256),) * 2):
        w1, w2 = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes)
        for transpose in (False, True):
            problem = problem_of(4096, w1, w2, transpose=transpose)
            found = problem.candidates()
            assert found
            assert len(set(found)) == len(found)
            assert not any(refuse(problem, config) for config in found)
            assert problem.cut(None) == found[0]


def test_only_a_measured_win_takes_the_kernel(monkeypatch, lower_for_cuda):
    w1, w2 = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in SQUARE)

    def times(x, w1, w2, blocked=True, transpose=False):
        matrix = Monarch(w1, w2, 4096, 4096, blocked)
        return matrix.tmatmul(x) if transpose else x @ matrix

    key = problem_of(4096, w1, w2).key
    entry = {"implementation": "mosaic_gpu", "config": vars(Config(ways=2)), "us": 1.0}
    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": {key: entry}}
    lost = {**table, "entries": {key: {"implementation": "xla"}}}
    for stored, launches in [({}, 0), (table, 2), (lost, 0), ({**table, "jax": "0.99.0"}, 0)]:
        monkeypatch.setattr(measured, "_table", lambda op, kind, stored=stored: stored)
        assert lower_for_cuda(SQUARE, times) == launches
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)
    # Other orders and the transpose are problems of their own.
    assert lower_for_cuda(SQUARE, functools.partial(times, transpose=True)) == 0
    assert lower_for_cuda(SQUARE, functools.partial(times, blocked=False)) == 0
    assert lower_for_cuda(SQUARE, times, rows=512) == 0

    def gradient(x, w1, w2):
        loss = lambda *args: jnp.sum(times(*args).astype(jnp.float32) ** 2)  # noqa: E731
        return jax.grad(loss, (0, 1, 2))(x, w1, w2)

    assert lower_for_cuda(SQUARE, gradient) == 2
    table["entries"][problem_of(4096, w1, w2, blocked=True, transpose=True).key] = entry
    assert lower_for_cuda(SQUARE, gradient) == 4
    assert lower_for_cuda(SQUARE, functools.partial(times, transpose=True)) == 2
    monkeypatch.setenv(dispatch.EVERYWHERE, "xla")
    assert lower_for_cuda(SQUARE, times) == 0


def test_on_a_cpu_the_matrix_multiplies_as_ever(monkeypatch):
    monkeypatch.setattr(measured, "_table", lambda op, kind: pytest.fail("was looked at"))
    x, w1, w2 = problem(SHAPES[0], 3)
    for blocked in (False, True):
        matrix = Monarch(w1, w2, 16, 16, blocked)
        assert not takes_kernel(x.astype(jnp.bfloat16), w1, w2, blocked=blocked)
        ours, ever = (
            str(jax.make_jaxpr(fn)(x))
            for fn in (
                lambda x, m=matrix: x @ m,
                lambda x, m=matrix: monarch_apply(m.params, x, m.sizes, blocked=m.blocked),
            )
        )
        assert ours == ever
        jax.jvp(lambda x, m=matrix: x @ m, (x,), (x,))


def test_problems_are_told_apart():
    few, square = (Problem(16, n, 64, n, 64, 64 // n) for n in (16, 64))
    assert few.key == "16-16-4/blocked-blocked/1024x1024/b16"
    assert square.key == "64-64-1/blocked-blocked/4096x4096/b16"
    assert square._replace(blocked=False).family == "64-64-1/blocked-interleaved"
    assert square._replace(turned=True).family == "64-64-1/blocked-blocked-turned"
