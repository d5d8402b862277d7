"""MKOR as an optimizer: its steps in NumPy, its options, and optax's wrappers around it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxlab.optim.mkor import (
    Hybrid,
    MkorState,
    Tap,
    init_taps,
    merge_stats,
    mkor,
    scale_by_eva,
    scale_by_mkor,
    value_grad_stats,
)
from jaxlab.optim.observing import statistics_of

PARAMS = {
    "up": {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.ones(3)},
    "scale": jnp.ones(2),
}
SGD = lambda rate: optax.sgd(rate, momentum=0.9)  # noqa: E731


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def loss_fn(params, x):
    y = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None, :]) * params["scale"][0]
    return jnp.mean(y**2) + jnp.sum(params["scale"] ** 2)


def batch(step):
    return jax.random.normal(jax.random.key(step), (8, 4)) + 1


STEP = jax.jit(value_grad_stats(loss_fn))
TAPS = init_taps(PARAMS)


def run(tx, steps, *, state=None, params=PARAMS, first=0):
    """Parameters, state and the updates of every step."""
    traces, seen = [], []

    @jax.jit
    def update(grads, state, params, stats, value):
        traces.append(None)
        return tx.update(grads, state, params, stats=stats, value=value)

    state = tx.init(params) if state is None else state
    for step in range(first, first + steps):
        value, grads, stats = STEP(params, TAPS, batch(step))
        updates, state = update(grads, state, params, stats, value)
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    assert len(traces) <= 1
    return params, state, seen


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def mkor_state(state):
    is_state = lambda x: isinstance(x, MkorState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x))


def test_steps_in_numpy():
    gamma, rate = 0.9, 0.1
    tx = mkor(rate, optax.sgd, gamma=gamma, update_every=2)
    got, _, _ = run(tx, 4)
    params, ja, jg = PARAMS, np.eye(5), np.eye(3)
    inverse = lambda j, v: np.linalg.inv(  # noqa: E731
        np.linalg.inv(gamma * j + (1 - gamma) * np.eye(len(v))) + np.outer(v, v)
    )
    for step in range(4):
        x = batch(step)
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), jax.grad(loss_fn)(params, x))
        if step % 2 == 0:
            ja = inverse(ja, np.append(np.asarray(x, np.float64).mean(0), 1))
            jg = inverse(jg, grads["up"]["bias"])
        m = np.vstack([grads["up"]["kernel"], grads["up"]["bias"]])
        p = ja @ m @ jg
        p *= np.linalg.norm(m) / np.linalg.norm(p)
        new = {"up": {"kernel": p[:-1], "bias": p[-1]}, "scale": grads["scale"]}
        params = jax.tree.map(lambda w, u: jnp.asarray(w - rate * u, jnp.float32), params, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), got, params)


def test_identities_are_the_inner_optimizer():
    narrow = mkor(0.1, SGD, max_dim=1)
    same(run(narrow, 3)[0], run(optax.with_extra_args_support(SGD(0.1)), 3)[0])
    assert mkor_state(narrow.init(PARAMS)).factors["up/kernel"] == (None, None)
    one_sided = scale_by_mkor(max_dim=3).init(PARAMS).factors["up/kernel"]
    assert one_sided.ja is None
    assert one_sided.jg.shape == (3, 3)


@pytest.mark.parametrize("mode", ["ema", "interp"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_lowers_the_loss(mode, dtype):
    tx = mkor(0.05, SGD, factor_update=mode, factor_dtype=dtype, update_every=3)
    params, state, _ = run(tx, 12)
    assert loss_fn(params, batch(0)) < 0.5 * loss_fn(PARAMS, batch(0))
    assert mkor_state(state).factors["up/kernel"].ja.dtype == dtype


def test_first_steps_may_all_update():
    tx = scale_by_mkor(update_every=100, warmup_steps=2)
    factors = []
    state = tx.init(PARAMS)
    for step in range(4):
        _, state, _ = run(tx, 1, state=state, first=step)
        factors.append(state.factors["up/kernel"].ja)
    assert not np.array_equal(factors[0], factors[1])
    same(factors[1], factors[3])


def test_statistics_that_say_nothing_leave_the_factors():
    tx = scale_by_mkor(update_every=1)
    _, state, _ = run(tx, 1)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    for a in (jnp.full(5, jnp.nan), jnp.zeros(5)):
        stats = {"up/kernel": Tap(a, jnp.ones(3))}
        _, after = tx.update(grads, state, stats=stats)
        same(after.factors, state.factors)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, state, stats=stats)
    same(updates, zeros)


def constant(step):
    return jnp.float32(1.0)


def falling(step):
    return jnp.float32(0.9**step)


@pytest.mark.parametrize(("value", "switches"), [(constant, 12), (falling, None)])
def test_the_hybrid_falls_back_for_good(value, switches):
    tx = scale_by_mkor(update_every=1, hybrid=Hybrid(patience=5, min_steps=8))
    _, grads, stats = STEP(PARAMS, TAPS, batch(0))
    update = jax.jit(lambda state, value: tx.update(grads, state, stats=stats, value=value))
    state, first = tx.init(PARAMS), None
    for step in range(20):
        before = state
        updates, state = update(state, value(step))
        if state.hybrid.switched:
            first = step if first is None else first
            same(updates, grads)
            same(state.factors, before.factors)
    assert first == switches
    _, after = update(state, jnp.float32(jnp.nan))
    same(after.hybrid, state.hybrid)


def test_no_array_of_a_first_state_is_there_twice():
    # A step that donates its state could not give up one buffer for two.
    leaves = jax.tree.leaves(mkor(0.1, SGD, hybrid=Hybrid()).init(PARAMS))
    assert len({id(x) for x in leaves}) == len(leaves)


def labels(tree):
    return {k: {"up": "second", "scale": "first"}[k] for k in tree}


WRAPPED = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), mkor(0.1, SGD)),
    "masked": lambda: optax.masked(mkor(0.1, SGD), {"up": True, "scale": False}),
    "multi": lambda: optax.multi_transform(
        {"second": mkor(0.1, optax.adamw), "first": optax.sgd(0.1)}, labels
    ),
    "hyper": lambda: optax.inject_hyperparams(lambda rate, gamma: mkor(rate, SGD, gamma=gamma))(
        rate=0.1, gamma=0.9
    ),
    "parts": lambda: optax.MultiSteps(mkor(0.1, SGD), 2),
    "eva": lambda: optax.chain(scale_by_eva(), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_inside_optax_and_resumed_bit_for_bit(name, tmp_path):
    tx = WRAPPED[name]()
    half, state, _ = run(tx, 3)
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", state)
    again, resumed, _ = run(tx, 3, state=restored, params=half, first=3)
    whole, straight, _ = run(tx, 6)
    same((again, resumed), (whole, straight))
    assert not np.array_equal(whole["up"]["kernel"], PARAMS["up"]["kernel"])


def test_what_it_wants_is_said():
    assert statistics_of(mkor(0.1)) is not None
    assert statistics_of(optax.sgd(0.1)) is None
    grads, tx = jax.tree.map(jnp.ones_like, PARAMS), scale_by_mkor()
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="update needs the argument stats="):
        tx.update(grads, state)
    with pytest.raises(ValueError, match="stats has no 'up/kernel'; did you mean 'up/kernels'"):
        tx.update(grads, state, stats={"up/kernels": TAPS["up/kernel"]})
    with pytest.raises(ValueError, match="are of 8 inputs and 3 outputs; its factors are of 5"):
        tx.update(grads, state, stats={"up/kernel": Tap(jnp.ones(9), jnp.ones(3))})
    hybrid = scale_by_mkor(hybrid=Hybrid())
    with pytest.raises(ValueError, match=r"hybrid needs the loss: update\(\.\.\., value=loss\)"):
        hybrid.update(grads, hybrid.init(PARAMS), stats=TAPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.0}, r"gamma=1.0 must be in \(0, 1\)"),
        ({"update_every": 0}, "update_every=0 must be 1 or more"),
        ({"factor_update": "exact"}, "factor_update='exact'"),
        ({"rescale": "norm"}, "rescale='norm'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        scale_by_mkor(**settings)


def test_parameters_must_be_floating():
    with pytest.raises(TypeError, match="'n' is int32; parameters must be floating"):
        scale_by_mkor().init({"n": jnp.ones(2, jnp.int32)})


def test_multi_steps_with_merged_statistics_is_the_whole_batch():
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 2))}
    x = jax.random.normal(jax.random.key(1), (8, 3)) + jnp.arange(8.0)[:, None]
    step = value_grad_stats(lambda p, x: jnp.mean((x @ p["kernel"]) ** 2))
    parts = [step(params, init_taps(params), part)[1:] for part in (x[:4], x[4:])]
    _, grads, stats = step(params, init_taps(params), x)
    whole = mkor(0.1, optax.sgd, update_every=1)
    expected, _ = whole.update(grads, whole.init(params), params, stats=stats)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        tx = optax.MultiSteps(mkor(0.1, optax.sgd, update_every=1), 2)
        state = tx.init(params)
        _, state = tx.update(parts[0][0], state, params, stats=parts[0][1])
        merged = merge_stats([part[1] for part in parts])
        updates, _ = tx.update(parts[1][0], state, params, stats=merged)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_hyperparameters_are_injected():
    params, stats = (
        {"kernel": jnp.ones((2, 1))},
        {"kernel": Tap(jnp.array([3.0, 4, 1]), jnp.ones(1))},
    )
    grads = {"kernel": jnp.array([[3.0], [4.0]])}
    plain = mkor(0.1, optax.sgd, gamma=0.9)
    injected = optax.inject_hyperparams(mkor, static_args=("inner", "max_dim"))(
        0.1, optax.sgd, gamma=0.9
    )
    updates = []
    with jax.numpy_dtype_promotion("standard"):
        for tx in (plain, injected):
            state = jax.jit(tx.init)(params)
            updates.append(jax.jit(tx.update)(grads, state, params, stats=stats)[0])
    chex.assert_trees_all_close(*updates, rtol=1e-6)


def test_a_wide_bias_beside_a_narrow_kernel_keeps_its_digits():
    params = {"kernel": jnp.ones((2, 1), jnp.bfloat16), "bias": jnp.ones(1)}
    grads = {"kernel": jnp.zeros((2, 1), jnp.bfloat16), "bias": jnp.array([1.001])}
    stats = {"kernel": Tap(jnp.zeros(3), jnp.zeros(1))}
    tx = scale_by_mkor()
    assert float(tx.update(grads, tx.init(params), stats=stats)[0]["bias"][0]) == np.float32(1.001)


def test_eva_counts_only_the_statistics_that_it_saw():
    params, grads = {"kernel": jnp.ones((2, 1))}, {"kernel": jnp.array([[1.0], [0.5]])}
    none = {"kernel": Tap(jnp.zeros(3), jnp.zeros(1))}
    some = {"kernel": Tap(jnp.array([1.0, 1.0, 1.0]), jnp.ones(1))}
    tx = scale_by_eva(decay=0.9)
    late = tx.init(params)
    for _ in range(3):
        late = tx.update(grads, late, stats=none)[1]
    updates = [tx.update(grads, state, stats=some)[0] for state in (tx.init(params), late)]
    chex.assert_trees_all_close(*updates, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"update_every": 2.5}, {"warmup_steps": -5}, {"clip": -1}, {"factor_dtype": "int8"}],
)
def test_numbers_out_of_range(settings):
    with pytest.raises(ValueError, match=f"mkor: {next(iter(settings))}="):
        scale_by_mkor(**settings)
