"""Two thin products: against float64, by both implementations, and in the matrix of low rank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch, measured, rules
from jaxlab.kernels.low_rank_matmul import Config, Problem, low_rank_matmul
from jaxlab.kernels.low_rank_matmul.reference import reference
from jaxlab.kernels.packing import LAYOUT_VERSION
from jaxlab.methods.low_rank.matrix import LowRank


def operands(rows, k, rank, n, dtype=jnp.float32):
    rng = np.random.default_rng(rows + rank)
    shapes = (rows, k), (k, rank), (rank, n)
    x, down, up = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    exact = functools.reduce(np.matmul, (np.asarray(v, np.float64) for v in (x, down, up)))
    return x, down, up, exact


def off(y, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 5])
def test_xla_is_right_at_any_size(rows, dtype, bound):
    x, down, up, exact = operands(rows, 100, 7, 33, dtype)
    assert off(jax.jit(low_rank_matmul)(x, down, up), exact) <= bound
    assert off(reference(x, (), (down, up)), exact) <= bound


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
@pytest.mark.parametrize(
    ("rows", "config"), [(5, Config(2, 2, 1, 1)), (9, Config(1, 2, 2, 2)), (3, Config(2, 1, 2, 1))]
)
def test_the_interpreted_kernels_equal_the_reference(rows, config):
    x, down, up, _ = operands(rows, 256, 128, 64, jnp.bfloat16)
    y = low_rank_matmul(x, down, up, config=config, interpret=True)
    assert y.shape == (rows, 64)
    assert off(y, reference(x, (), (down, up))) <= 2**-8


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="this jax cannot interpret it")
def test_more_warpgroups_than_threads_are_refused(monkeypatch):
    x, down, up, _ = operands(4, 256, 128, 64, jnp.bfloat16)
    monkeypatch.setenv("NPROC", "4")
    # Two warpgroups in each of two blocks that add their sums, and what starts them.
    with pytest.raises(NotImplementedError, match=r"4 warpgroups .* pool has 4; .* NPROC=5 "):
        low_rank_matmul(x, down, up, config=Config(2, 2, 2, 1), interpret=True)


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(rows, k, rank, n, product=low_rank_matmul, dtype=jnp.bfloat16):
        rules.product.cache_clear()
        shapes = (rows, k), (k, rank), (rank, n)
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        with on_an_h100():
            traced = jax.jit(lambda *args: product(*args)).trace(*operands)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


@pytest.mark.parametrize(
    ("rows", "config", "chained"),
    [(16, Config(), 2), (1, Config(1, 2, 4, 2, False), 0), (64, Config(4, 2, 8, 4), 2)],
)
def test_the_kernels_lower_for_cuda(lower_for_cuda, rows, config, chained):
    product = functools.partial(low_rank_matmul, implementation="mosaic_gpu", config=config)
    text = lower_for_cuda(rows, 4096, 1024, 512, product)
    assert text.count("mosaic_gpu_v2") == 2
    if jax.__version_info__ >= (0, 11):  # before, the text is no text
        assert text.count("uses_pdl") == chained


def test_what_made_the_second_factor_comes_before_the_first_kernel(lower_for_cuda):
    product = functools.partial(low_rank_matmul, implementation="mosaic_gpu")
    text = lower_for_cuda(16, 4096, 1024, 512, product)
    calls = [line for line in text.splitlines() if "mosaic_gpu_v2" in line]
    operands = [line[line.rindex(": (") :] for line in calls]
    assert [types.count("tensor<1024x512xbf16>") for types in operands] == [1, 1]


def stored(key, implementation="mosaic_gpu"):
    entries = {key: {"implementation": implementation, "config": vars(Config(1, 2, 2, 2))}}
    return {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": entries}


def test_only_a_measured_win_takes_the_kernels(lower_for_cuda, monkeypatch):
    def matrix(x, u, v):
        return x @ LowRank(u, v)

    assert lower_for_cuda(16, 512, 256, 128, matrix).count("mosaic_gpu_v2") == 0
    key = Problem(16, 512, 256, 128, "bfloat16").key
    for name, kernels in (("mosaic_gpu", 2), ("xla", 0)):
        monkeypatch.setattr(measured, "_table", lambda op, kind, name=name: stored(key, name))
        for product in (matrix, low_rank_matmul):
            text = lower_for_cuda(16, 512, 256, 128, product)
            assert text.count("mosaic_gpu_v2") == kernels
    monkeypatch.setattr(measured, "_table", lambda op, kind: stored(key))
    assert lower_for_cuda(40, 512, 256, 128, matrix).count("mosaic_gpu_v2") == 0
    assert lower_for_cuda(16, 512, 256, 128, matrix, jnp.float32).count("mosaic_gpu_v2") == 0


def test_a_matrix_on_a_cpu_has_every_derivative():
    x, u, v, exact = operands(3, 8, 2, 5)
    w = LowRank(u, v)
    assert off(x @ w, exact) <= 1e-6
    y, tangent = jax.jvp(lambda x: jnp.sum((x @ w) ** 2), (x,), (x,))
    np.testing.assert_allclose(float(tangent), 2 * float(y), rtol=1e-5)


def test_what_the_kernels_do_not_take(lower_for_cuda):
    x, down, up, _ = operands(2, 256, 64, 64, jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        low_rank_matmul(x, down, up, implementation="mosaic_gpu")
    for sizes, says in [
        ((65, 4096, 1024, 512), "65 rows"),
        ((8, 4096, 1000, 512), "1000 outputs"),
        ((8, 100, 1024, 512), "100 inputs"),
    ]:
        product = functools.partial(low_rank_matmul, implementation="mosaic_gpu")
        with pytest.raises(NotImplementedError, match=says):
            lower_for_cuda(*sizes, product)
        both = functools.partial(low_rank_matmul, implementation=("mosaic_gpu", "xla"))
        assert lower_for_cuda(*sizes, both).count("mosaic_gpu_v2") == 0
    problem = Problem(8, 4096, 1024, 512, "bfloat16")
    assert "16 blocks" in problem.refuse(Config(down=16))
    assert "warpgroups" in problem.refuse(Config(ways=9))
    assert "bytes" in problem._replace(rows=64).refuse(Config(ways=8, stages=8, down=1))
    assert "float32" in problem._replace(dtype="float32").refuse(Config())


def test_every_candidate_fits():
    for rows, k, rank, n in ((16, 8192, 1024, 8192), (1, 4096, 256, 4096), (64, 4096, 512, 11008)):
        problem = Problem(rows, k, rank, n, "bfloat16")
        found = problem.candidates()
        assert len(set(found)) == len(found) >= 4
        assert not any(problem.refuse(config) for config in found)
        assert {config.chained for config in found} == {True, False}
        assert problem.cut(None) == found[0]
        assert problem.cut(vars(found[1])) == found[1]


def test_gradients_and_batches_are_those_of_the_reference():
    x, down, up, exact = operands(6, 8, 3, 5)

    def loss(fn, *args):
        return jnp.sum(jnp.sin(fn(*args)))

    def plain(x, down, up):
        return reference(x, (), (down, up))

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, fn), (0, 1, 2)))(x, down, up)
        for fn in (low_rank_matmul, plain)
    )
    for one, other in zip(got, expected, strict=True):
        assert off(one, other) <= 1e-5
    batch = x.reshape(2, 3, 8)
    folded = jax.vmap(lambda x: low_rank_matmul(x, down, up))
    assert off(folded(batch).reshape(6, 5), exact) <= 1e-6
    assert "f32[6,5]" in str(jax.make_jaxpr(folded)(batch))
    doubled = jax.vmap(lambda up: low_rank_matmul(x, down, up))(jnp.stack([up, 2 * up]))
    assert off(doubled[1], 2 * exact) <= 1e-6
    per_row = jax.jit(jax.vmap(jax.grad(lambda x: loss(low_rank_matmul, x, down, up))))(x)
    assert off(per_row, expected[0]) <= 1e-5


def test_outputs_on_two_devices():
    x, down, up, exact = operands(4, 8, 3, 6)
    mesh = Mesh(np.array(jax.devices()), ("n",))
    specs = P(), P(), P(None, "n")
    product = jax.shard_map(low_rank_matmul, mesh=mesh, in_specs=specs, out_specs=P(None, "n"))
    assert off(jax.jit(product)(x, down, up), exact) <= 1e-6


def test_what_is_not_finite_stays_in_its_row_and_nothing_is_nothing():
    x, down, up, _ = operands(2, 8, 3, 5)
    y = low_rank_matmul(x.at[0, 3].set(jnp.nan), down, up)
    assert bool(jnp.all(jnp.isnan(y[0])))
    assert bool(jnp.all(jnp.isfinite(y[1])))
    assert low_rank_matmul(x[:0], down, up).shape == (0, 5)
    assert jax.eval_shape(low_rank_matmul, x[0], down, up).shape == (5,)


def test_bad_arguments_are_named():
    x, down, up, _ = operands(2, 8, 3, 5)
    for bad, says in [
        (lambda: low_rank_matmul(x[:, :7], down, up), "end in k=8"),
        (lambda: low_rank_matmul(x, down, up[:2]), r"nearest: up of \(3, 5\)"),
        (lambda: low_rank_matmul(x, down[0], up), "down of"),
        (lambda: low_rank_matmul(x, down, up, implementation="mosaic_gp"), "'mosaic_gpu'"),
    ]:
        with pytest.raises(ValueError, match=says):
            bad()
    with pytest.raises(TypeError, match="up must be float32"):
        low_rank_matmul(x, down, up.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="floating"):
        low_rank_matmul(x.astype(jnp.int32), down, up)
