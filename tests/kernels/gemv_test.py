"""A matrix of bfloat16 and a vector: the digits of float32, the kernel interpreted and lowered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels import dispatch, measured, rules
from jaxlab.kernels.gemv import Config, Problem, gemv, wins
from jaxlab.kernels.gemv.reference import parts
from jaxlab.optim.mfac import precondition_row, window_init, window_push


def operands(m, n, transposed=False, dtype=jnp.float32):
    rng = np.random.default_rng(m + n)
    a = jnp.asarray(rng.normal(size=(m, n)), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=m if transposed else n), dtype)
    wide, vector = np.asarray(a, np.float64), np.asarray(x, np.float64)
    return a, x, (wide.T if transposed else wide) @ vector


def off(y, exact):
    exact = np.asarray(exact, np.float64)
    return np.abs(np.asarray(y, np.float64) - exact).max() / np.abs(exact).max()


def test_the_parts_of_a_float32_number_are_all_of_it():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000) * 1e3, jnp.float32)
    apart = jax.jit(lambda x: parts(x, jnp.bfloat16))(x)
    assert apart.shape == (3, 1000)
    np.testing.assert_array_equal(jnp.sum(apart.astype(jnp.float32)[::-1], axis=0), x)
    assert parts(x.astype(jnp.bfloat16), jnp.bfloat16).shape == (1, 1000)


def test_an_infinity_is_one_and_the_largest_numbers_count_as_one():
    x = jnp.array([jnp.inf, -jnp.inf, 3.4e38, 3.38e38, jnp.nan], jnp.float32)
    total = jnp.sum(parts(x, jnp.bfloat16).astype(jnp.float32), axis=0)
    expected = np.array([np.inf, -np.inf, np.inf, 3.38e38, np.nan], np.float32)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_xla_is_right_at_any_size(transposed, dtype):
    a, x, exact = operands(7, 100, transposed, dtype)
    y = jax.jit(functools.partial(gemv, transposed=transposed))(a, x)
    assert y.dtype == jnp.float32
    # A float32 vector that was rounded to bfloat16 would be off by 1e-3.
    assert off(y, exact) <= 1e-6


interpreted = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="this jax cannot interpret it"
)


@interpreted
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("config", [Config(1, 2, 2, 3), Config(2, 1, 3, 5), Config(2, 4, 2, 1)])
def test_the_interpreted_kernel_has_the_digits_of_float32(config, transposed, dtype):
    # Pieces of columns: as many as the blocks take turns for, and not as many for all.
    a, x, exact = operands(128, 1280 if config.wide == 1 else 1024, transposed, dtype)
    y = gemv(a, x, transposed=transposed, config=config, interpret=True)
    assert off(y, exact) <= 1e-6


@interpreted
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("pieces", [1, 8, 9, 17, 23])
def test_folds_of_any_length_have_every_number_of_x_once(pieces, dtype):
    # With 9 pieces 8 folds are of 2: one has 1, and three have none.
    a, x, exact = operands(64, 64 * pieces, dtype=dtype)
    assert off(gemv(a, x, config=Config(1, 1, 2, 2), interpret=True), exact) <= 1e-6


@interpreted
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_without_columns_add_nothing(transposed):
    a, x, exact = operands(64, 128, transposed, jnp.bfloat16)
    y = gemv(a, x, transposed=transposed, config=Config(1, 1, 2, 4), interpret=True)
    assert off(y, exact) <= 1e-6


@interpreted
def test_what_is_not_finite_stays_in_its_row():
    a, x, exact = operands(64, 64 * 9, dtype=jnp.bfloat16)
    for column in (0, -1):  # the last piece is brought for folds that have fewer, too
        y = gemv(a.at[5, column].set(jnp.nan), x, config=Config(1, 1, 2, 2), interpret=True)
        assert np.isnan(y[5])
        assert off(np.delete(y, 5), np.delete(exact, 5)) <= 1e-6


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(fn, *shapes):
        rules.product.cache_clear()
        with on_an_h100():
            traced = jax.jit(lambda *args: fn(*args)).trace(*shapes)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("config", [None, Config(4, 1, 3, 132), Config(2, 4, 2, 7)])
def test_the_kernel_lowers_for_cuda(lower_for_cuda, config, transposed, dtype):
    product = functools.partial(
        gemv, transposed=transposed, implementation="mosaic_gpu", config=config
    )
    a = jax.ShapeDtypeStruct((512, 65536), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((512 if transposed else 65536,), dtype)
    assert lower_for_cuda(product, a, x).count("mosaic_gpu_v2") == 1


@pytest.mark.parametrize("m", [2048, 4096, 6144, 8192])
def test_every_candidate_for_a_large_window_fits_into_shared_memory(lower_for_cuda, m):
    a, x = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((m, 65536), (m,)))
    found = Problem(1, m, 65536, "bfloat16", "bfloat16", transposed=True).candidates()
    assert found
    for config in found:
        how = {"transposed": True, "implementation": "mosaic_gpu", "config": config}
        # Mosaic counts the bytes when it lowers.
        text = lower_for_cuda(functools.partial(gemv, **how), a, x)
        assert text.count("mosaic_gpu_v2") == 1


@pytest.mark.parametrize(
    ("n", "dtype", "pads"),
    [(65536, jnp.bfloat16, 0), (65536 + 128, jnp.bfloat16, 1), (65536, jnp.float32, 1)],
)
def test_x_of_bfloat16_is_not_copied_where_its_folds_divide(lower_for_cuda, n, dtype, pads):
    product = functools.partial(gemv, implementation="mosaic_gpu", config=Config(2, 2, 3, 66))
    shapes = jax.ShapeDtypeStruct((512, n), jnp.bfloat16), jax.ShapeDtypeStruct((n,), dtype)
    assert lower_for_cuda(product, *shapes).count("stablehlo.pad") == pads


def test_a_window_takes_the_kernel_where_it_was_measured_to_win(lower_for_cuda, monkeypatch):
    keys = [
        Problem(1, 128, 4096, "bfloat16", "bfloat16").key,
        Problem(1, 128, 4096, "bfloat16", "float32", transposed=True).key,
    ]

    def step(win, g):
        win = window_push(win, g)
        return precondition_row(win, 0, 1e-3)

    def lowered(dtype, implementation, **more):
        entry = {"implementation": implementation, "config": vars(Config())}
        entries = dict.fromkeys(keys, entry)
        table = {"jax": jax.__version__, "layout": 1, "entries": entries, **more}
        monkeypatch.setattr(measured, "_table", lambda op, kind: table)
        like = {"large": jnp.zeros((64, 64)), "small": jnp.zeros(63)}
        win = jax.eval_shape(lambda: window_init(128, like, dtype))
        return lower_for_cuda(step, win, like)

    assert lowered(jnp.bfloat16, "mosaic_gpu").count("mosaic_gpu_v2") == 2
    assert lowered(jnp.bfloat16, "xla").count("mosaic_gpu_v2") == 0
    assert lowered(jnp.float32, "mosaic_gpu").count("mosaic_gpu_v2") == 0
    # Between sizes where it won there are some that it does not take: those stay as they were.
    won = {"implementation": "mosaic_gpu", "rows": [1, 1], "n": [128, 128], "k": [1, 10**6]}
    within = lowered(jnp.bfloat16, "mosaic_gpu", won={"bfloat16/m128": [won]})
    assert within.count("mosaic_gpu_v2") == 2
    assert within.count("dot_general") == lowered(jnp.bfloat16, "xla").count("dot_general") - 1
    for name in ("mosaic_gpu", "xla"):
        monkeypatch.setenv(dispatch.EVERYWHERE, name)
        kernels = lowered(jnp.bfloat16, "xla").count("mosaic_gpu_v2")
        assert kernels == (2 if name == "mosaic_gpu" else 0)


@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives_and_batches_are_those_of_the_product(transposed):
    a, x, exact = operands(5, 8, transposed)
    product = functools.partial(gemv, transposed=transposed)

    def plain(a, x):
        a = a.astype(jnp.float32)
        return jnp.matmul(a.T if transposed else a, x, precision="highest")

    def loss(fn, a, x):
        return jnp.sum(jnp.sin(fn(a, x)))

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, f), (0, 1)))(a, x) for f in (product, plain)
    )
    assert off(got[0], expected[0]) <= 2**-8  # bfloat16, as `a` is
    assert off(got[1], expected[1]) <= 1e-6
    y, tangent = jax.jvp(functools.partial(product, a), (x,), (2 * x,))
    np.testing.assert_allclose(tangent, 2 * y, rtol=1e-6, atol=1e-6)
    hessians = [jax.hessian(functools.partial(loss, f, a))(x) for f in (product, plain)]
    assert off(*hessians) <= 1e-5
    batch = jnp.stack([x, 2 * x])
    y = jax.vmap(functools.partial(product, a))(batch)
    assert off(y, np.stack([exact, 2 * exact])) <= 1e-6
    twice = jax.vmap(product)(jnp.stack([a, a + a]), batch)
    assert off(twice, np.stack([exact, 4 * exact])) <= 1e-6


def test_what_it_does_not_take():
    a, x, _ = operands(128, 256)
    with pytest.raises(TypeError, match="a must be bfloat16, not float32"):
        gemv(a.astype(jnp.float32), x)
    with pytest.raises(TypeError, match="x must be bfloat16 or float32, not int32"):
        gemv(a, jnp.arange(256))
    for transposed, wrong, right in ((False, 128, 256), (True, 256, 128)):
        says = (
            rf"x of shape \({wrong},\) does not meet a of \(128, 256\), "
            rf"transposed={transposed}; nearest: \({right},\)"
        )
        with pytest.raises(ValueError, match=says):
            gemv(a, x[:wrong], transposed=transposed)
        assert not wins(a, x[:wrong], transposed=transposed)
    with pytest.raises(ValueError, match=r"a of shape \(256,\) must have two axes"):
        gemv(a[0], x)
    with pytest.raises(NotImplementedError, match="needs a GPU"):
        gemv(a, x, implementation="mosaic_gpu")
    problem = Problem(1, 128, 256, "bfloat16", "float32")
    assert not problem.refuse(Config())
    for change, says in [
        ({"rows": 2}, "2 vectors"),
        ({"m": 96}, "96 is no multiple of 64 x 2"),
        ({"n": 0}, "0 is no multiple of 64 x 2"),
        ({"dtype": "float32"}, "a is float32"),
        ({"x_dtype": "float16"}, "x is float16"),
    ]:
        assert says in problem._replace(**change).refuse(Config())
    for config, says in [
        (Config(tall=5), "tall=5; it takes 1 to 4"),
        (Config(stages=0), "stages=0"),
        (Config(stages=33), "32 barriers"),
        (Config(stages=9), "bytes of shared memory"),
    ]:
        assert says in problem.refuse(config)


def test_the_plain_product_has_the_names_that_measurements_are_stored_under():
    problem = Problem(1, 512, 7813632, "bfloat16", "bfloat16")
    assert problem.family == "bfloat16/m512"
    assert problem.key == "bfloat16/m512/n7813632/b1"
    turned = problem._replace(transposed=True)
    assert turned.key == "At/bfloat16/m512/n7813632/b1"
    assert turned.sizes == problem.sizes[::-1]


@pytest.mark.parametrize("transposed", [False, True])
def test_every_candidate_fits(transposed):
    for m, n, least in ((512, 7813632, 8), (128, 64, 1), (1024, 65536, 8)):
        problem = Problem(1, m, n, "bfloat16", "float32", transposed)
        found = problem.candidates()
        assert len(set(found)) == len(found) >= least
        assert not any(problem.refuse(config) for config in found)
        assert problem.cut(vars(found[-1])) == found[-1]
