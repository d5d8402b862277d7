"""Inverse factors: the three updates, the stabiliser, the product with a gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxlab.optim.mkor import (
    init_taps,
    precondition,
    scale_by_mkor,
    sherman_morrison,
    stabilise,
    value_grad_stats,
)

GAMMA = 0.9
UPDATE = jax.jit(sherman_morrison, static_argnames="mode")
PRODUCT = jax.jit(precondition, static_argnames=("rescale", "bias"))


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("n", [1, 3, 17, 128])
def test_updates_are_inverses(n):
    with jax.enable_x64(True):
        j, inverse = jnp.eye(n), np.eye(n)
        for step in range(5):
            v = draw(step, n)
            j = UPDATE(j, jnp.asarray(v), mode="ema", gamma=GAMMA)
            inverse = GAMMA * inverse + (1 - GAMMA) * np.outer(v, v)
        np.testing.assert_allclose(j, np.linalg.inv(inverse), rtol=1e-10, atol=1e-10)
        got = UPDATE(j, jnp.asarray(v), gamma=GAMMA)
        pulled = GAMMA * np.asarray(j) + (1 - GAMMA) * np.eye(n)
        expected = np.linalg.inv(np.linalg.inv(pulled) + np.outer(v, v))
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
        nothing = jnp.zeros(n)
        np.testing.assert_allclose(UPDATE(j, nothing, gamma=GAMMA), pulled, rtol=1e-12)
        by_ema = UPDATE(j, nothing, mode="ema", gamma=GAMMA)
        np.testing.assert_allclose(by_ema, np.asarray(j) / GAMMA, rtol=1e-12)


def test_a_gamma_near_1_forgets_nothing_and_others_are_refused():
    with jax.enable_x64(True):
        j = UPDATE(jnp.eye(3), jnp.asarray(draw(0, 3)), gamma=GAMMA)
        v, gamma = jnp.asarray(draw(1, 3)), 1 - 1e-14
        np.testing.assert_allclose(UPDATE(j, jnp.zeros(3), gamma=gamma), j, rtol=1e-12, atol=1e-13)
        expected = np.linalg.inv(np.linalg.inv(j) + np.outer(v, v))
        np.testing.assert_allclose(UPDATE(j, v, gamma=gamma), expected, rtol=1e-11, atol=1e-12)
    for gamma in (0, 1.0, 1.5, -0.1, np.nan, np.float64(1), jnp.float32(1)):
        with pytest.raises(ValueError, match=r"mkor: gamma=.* must be in \(0, 1\)"):
            sherman_morrison(jnp.eye(2), jnp.ones(2), gamma=gamma)


@pytest.mark.parametrize(
    ("name", "values", "legal"),
    [("eps", (-1, 0.0, np.nan), "positive"), ("zeta", (2, 0, 1.0, np.nan), r"in \(0, 1\)")],
)
def test_a_stabiliser_out_of_its_range_is_refused(name, values, legal):
    j, v = jnp.eye(2), jnp.ones(2)
    for value in values:
        given = {"eps": 2.0, "zeta": 0.9, name: value}
        for refused in (lambda g: sherman_morrison(j, v, **g), lambda g: stabilise(j, **g)):
            with pytest.raises(ValueError, match=f"mkor: {name}={value} must be {legal}"):
                refused(given)
    with pytest.raises(ValueError, match="mkor: zeta=2"):
        sherman_morrison(j, v, zeta=2)


def test_scalars_of_the_three_formulas():
    with jax.enable_x64(True):
        j, v = jnp.full((1, 1), 2.0), jnp.ones(1)
        expected = {"ema": 1.818182, "interp": 0.655172, "paper": 2.218497}
        for mode, value in expected.items():
            got = sherman_morrison(j, v, mode=mode, gamma=GAMMA).item()
            assert abs(got - value) < 1e-6


def test_interpolated_factors_stay_between_0_and_1():
    rng = np.random.default_rng(0)
    v = rng.normal(size=(10_000, 6))
    v *= 10 ** rng.uniform(-3, 3, size=(10_000, 1)) / np.linalg.norm(v, axis=1, keepdims=True)
    step = lambda j, v: (sherman_morrison(j, v), None)  # noqa: E731
    j, _ = jax.jit(lambda v: jax.lax.scan(step, jnp.eye(6), v))(np.float32(v))
    np.testing.assert_array_equal(j, j.T)
    values = np.linalg.eigvalsh(np.asarray(j, np.float64))
    assert values[0] > 0
    assert values[-1] <= 1 + 1e-6


def test_bfloat16_factors_point_where_float32_ones_do_on_digits():
    """After 200 updates of a run, the same gradient by factors of the same statistics."""
    data = load_digits()
    x, y = jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target)
    sizes, keys = [64, 64, 64, 10], jax.random.split(jax.random.key(0), 4)
    params = {
        str(i): {"kernel": jax.random.normal(keys[i], (n, o)) / n**0.5, "bias": jnp.zeros(o)}
        for i, (n, o) in enumerate(itertools.pairwise(sizes))
    }

    def loss(params, rows):
        h = x[rows]
        for i in range(3):
            h = jax.nn.relu(h) if i else h
            h = h @ params[str(i)]["kernel"] + params[str(i)]["bias"][None]
        return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(64), y[rows]])

    wide, narrow = (scale_by_mkor(update_every=1, factor_dtype=d) for d in ("float32", "bfloat16"))
    inner = optax.sgd(0.1, momentum=0.9)

    def step(carried, rows):
        params, state, other, opt = carried
        _, grads, stats = value_grad_stats(loss)(params, init_taps(params), rows)
        p, state = wide.update(grads, state, stats=stats)
        q, other = narrow.update(grads, other, stats=stats)
        updates, opt = inner.update(p, opt)
        return (optax.apply_updates(params, updates), state, other, opt), (p, q)

    start = params, wide.init(params), narrow.init(params), inner.init(params)
    batches = jax.random.randint(keys[3], (200, 64), 0, len(y))
    _, both = jax.jit(lambda *a: jax.lax.scan(step, *a))(start, batches)
    for i in range(3):
        p, q = (np.asarray(u[str(i)]["kernel"][-1], np.float64).ravel() for u in both)
        assert p @ q / np.linalg.norm(p) / np.linalg.norm(q) >= 0.999


def test_stacks_are_updated_one_by_one():
    j = jnp.asarray([np.eye(3), 0.5 * np.eye(3)], jnp.float32)
    v = jnp.asarray(draw(0, 2, 3), jnp.float32)
    got = UPDATE(j, v)
    for k in range(2):
        np.testing.assert_allclose(got[k], UPDATE(j[k], v[k]), atol=1e-6)
    half = UPDATE(j.astype(jnp.bfloat16), v)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), got, atol=0.01)


def test_the_stabiliser_pulls_what_has_grown():
    j = jnp.asarray([[[1000.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [1.0, 2.0]]])
    pulled, fired = stabilise(j, 2.0, 0.9)
    assert fired.tolist() == [True, False]
    np.testing.assert_allclose(pulled[0], [[900.1, 0.0], [0.0, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(pulled[1], j[1])


@pytest.mark.parametrize("mode", ["interp", "ema", "paper"])
def test_an_update_may_stabilise_on_the_way(mode):
    j = np.float32(draw(0, 3, 17, 17)) / 8
    grown = np.eye(17) * np.array([0, 4, 12])[:, None, None]
    j = jnp.asarray(j + j.swapaxes(-1, -2) + grown, "float32")
    v = jnp.asarray(draw(1, 3, 17), "float32")
    left, fired = stabilise(j, 2.0, 0.8)
    assert fired.tolist() == [False, True, True]
    got = UPDATE(j, v, mode=mode, eps=2.0, zeta=0.8)
    expected = UPDATE(left, v, mode=mode)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * jnp.abs(expected).max())
    np.testing.assert_array_equal(got, got.swapaxes(-1, -2))


def test_the_product_is_kroneckers():
    with jax.enable_x64(True):
        m, a, g = draw(0, 5, 3), draw(1, 5, 5), draw(2, 3, 3)
        ja, jg = a @ a.T, g @ g.T
        got = PRODUCT(*map(jnp.asarray, (m, ja, jg)), rescale="none")
        # Columns one below the other: vec(A M G) = (G^T kron A) vec(M).
        vec = np.kron(jg, ja) @ m.reshape(-1, order="F")
        np.testing.assert_allclose(got.reshape(-1, order="F"), vec, rtol=1e-12)
        joint = PRODUCT(*map(jnp.asarray, (m, ja, jg)))
        np.testing.assert_allclose(np.linalg.norm(joint), np.linalg.norm(m), rtol=1e-12)
        np.testing.assert_allclose(joint / joint[0, 0], got / got[0, 0], rtol=1e-9)
        split = PRODUCT(*map(jnp.asarray, (m, ja, jg)), rescale="split_sum", bias=True)
        size = lambda x: np.linalg.norm(x[:-1]) + np.linalg.norm(x[-1])  # noqa: E731
        np.testing.assert_allclose(size(np.asarray(split)), size(m), rtol=1e-12)
    nothing = PRODUCT(jnp.zeros((2, 3)), jnp.eye(2), jnp.eye(3))
    np.testing.assert_array_equal(nothing, jnp.zeros((2, 3)))
    tiny = PRODUCT(jnp.full((2, 3), 1e-8, jnp.bfloat16), 0.5 * jnp.eye(2), None)
    np.testing.assert_allclose(tiny, 1e-8, rtol=1e-2)


@pytest.mark.parametrize("rescale", ["joint", "split_sum"])
@pytest.mark.parametrize("size", [1e20, 1.0, 1e-23, 1e-30])
def test_norms_are_those_of_any_float32(size, rescale):
    m, ja = np.float32(size * draw(0, 4, 3)), np.float32(np.diag([1, 0.5, 0.1, 0.25]))
    got = np.asarray(PRODUCT(m, ja, None, rescale=rescale), np.float64)
    np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(np.float64(m)), rtol=1e-6)
    np.testing.assert_allclose(got / got[0, 0], ja @ m / m[0, 0], rtol=1e-5)


def test_unknown_formulas_are_refused():
    with pytest.raises(ValueError, match="factor_update='exact'; .*valid: ema, interp, paper"):
        sherman_morrison(jnp.eye(2), jnp.ones(2), mode="exact")
    with pytest.raises(ValueError, match="rescale='norm'; .*valid: joint, none, split_sum"):
        precondition(jnp.ones((2, 2)), None, None, "norm")
