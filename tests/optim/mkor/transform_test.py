"""MKOR as an optimizer: its steps in NumPy, and its options."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.optim.mkor import (
    Hybrid,
    MkorState,
    Tap,
    init_taps,
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
    return np.float32(np.random.default_rng(step).normal(1, 1, size=(8, 4)))


STEP = jax.jit(value_grad_stats(loss_fn))
TAPS = init_taps(PARAMS)


def run(tx, steps, *, state=None, params=PARAMS, first=0):
    """Parameters, state and the updates of every step."""
    seen, update = [], compiled(tx)
    state = tx.init(params) if state is None else state
    for step in range(first, first + steps):
        value, grads, stats = STEP(params, TAPS, batch(step))
        params, state, updates = update(grads, state, params, stats, value)
        seen.append(updates)
    assert update._cache_size() == 1
    return params, state, seen


@functools.cache
def compiled(tx):
    @jax.jit
    def update(grads, state, params, stats, value=None):
        updates, state = tx.update(grads, state, params, stats=stats, value=value)
        return optax.apply_updates(params, updates), state, updates

    return update


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
        grads = jax.tree.map(lambda g: np.asarray(g, np.float64), STEP(params, TAPS, x)[1])
        if step % 2 == 0:
            ja = inverse(ja, np.append(np.asarray(x, np.float64).mean(0), 1))
            jg = inverse(jg, grads["up"]["bias"])
        m = np.vstack([grads["up"]["kernel"], grads["up"]["bias"]])
        p = ja @ m @ jg
        p *= np.linalg.norm(m) / np.linalg.norm(p)
        new = {"up": {"kernel": p[:-1], "bias": p[-1]}, "scale": grads["scale"]}
        params = jax.tree.map(lambda w, u: jnp.asarray(w - rate * u, jnp.float32), params, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), got, params)


def test_factors_that_are_identities_are_the_inner_optimizer():
    tx = mkor(0.1, SGD, update_every=10**6)
    rule, inner = tx.init(PARAMS)
    state = rule._replace(count=jnp.ones((), jnp.int32)), inner  # past the update of the first step
    got, state, _ = run(tx, 3, state=state)
    same(got, run(optax.with_extra_args_support(SGD(0.1)), 3)[0])
    same(tuple(mkor_state(state).factors["up/kernel"]), (np.eye(5), np.eye(3)))


def test_sides_that_are_too_wide_have_no_factors():
    narrow = mkor(0.1, SGD, max_dim=1)
    same(run(narrow, 3)[0], run(optax.with_extra_args_support(SGD(0.1)), 3)[0])
    assert mkor_state(narrow.init(PARAMS)).factors["up/kernel"] == (None, None)
    one_sided = scale_by_mkor(max_dim=3).init(PARAMS).factors["up/kernel"]
    assert one_sided.ja is None
    assert one_sided.jg.shape == (3, 3)


@pytest.mark.parametrize(("mode", "dtype"), [("ema", "float32"), ("interp", "bfloat16")])
def test_it_lowers_the_loss(mode, dtype):
    tx = mkor(0.05, SGD, factor_update=mode, factor_dtype=dtype, update_every=3)
    params, state, _ = run(tx, 12)
    assert STEP(params, TAPS, batch(0))[0] < 0.5 * STEP(PARAMS, TAPS, batch(0))[0]
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
        _, after, _ = compiled(tx)(grads, state, PARAMS, stats, jnp.float32(0))
        same(after.factors, state.factors)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    same(compiled(tx)(zeros, state, PARAMS, stats, jnp.float32(0))[2], zeros)


def constant(step):
    return 1.0


def falling(step):
    return 0.9**step


@pytest.mark.parametrize(("value", "switches"), [(constant, 12), (falling, None)])
def test_the_hybrid_falls_back_for_good(value, switches):
    tx = scale_by_mkor(update_every=1, hybrid=Hybrid(patience=5, min_steps=8))
    _, grads, stats = STEP(PARAMS, TAPS, batch(0))
    update = jax.jit(lambda state, value: tx.update(grads, state, stats=stats, value=value))
    values = np.float32([value(step) for step in range(20)])
    state, first = tx.init(PARAMS), None
    for step in range(20):
        before = state
        updates, state = update(state, values[step])
        if state.hybrid.switched:
            first = step if first is None else first
            same(updates, grads)
            same(state.factors, before.factors)
        assert int(state.hybrid.switched_at) == (-1 if first is None else first)
    assert first == switches
    _, after = update(state, np.float32(np.nan))
    same(after.hybrid, state.hybrid)


@pytest.mark.parametrize("inner", [optax.lamb, optax.adamw])
@pytest.mark.parametrize("hybrid", [None, Hybrid(patience=2, min_steps=3)])
def test_the_inner_optimizer_gets_what_is_preconditioned(inner, hybrid):
    whole, first, second = mkor(0.1, inner, hybrid=hybrid), scale_by_mkor(hybrid=hybrid), inner(0.1)
    states = whole.init(PARAMS), first.init(PARAMS), second.init(PARAMS)
    params = PARAMS

    @jax.jit
    def update(states, params, grads, stats, value):
        got, whole_state = whole.update(grads, states[0], params, stats=stats, value=value)
        scaled, scale_state = first.update(grads, states[1], params, stats=stats, value=value)
        expected, inner_state = second.update(scaled, states[2], params)
        return (whole_state, scale_state, inner_state), got, expected, scaled

    plain = []
    for step in range(30):  # the loss does not fall: the hybrid gives up
        _, grads, stats = STEP(params, TAPS, batch(step))
        states, got, expected, scaled = update(states, params, grads, stats, np.float32(1))
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-8)
        plain.append(np.array_equal(scaled["up"]["kernel"], grads["up"]["kernel"]))
        params = optax.apply_updates(params, got)
    assert update._cache_size() == 1
    assert plain[-1] == (hybrid is not None)
    assert not plain[1]


def test_no_array_of_a_first_state_is_there_twice():
    # A step that donates its state could not give up one buffer for two.
    leaves = jax.tree.leaves(mkor(0.1, SGD, hybrid=Hybrid()).init(PARAMS))
    assert len({id(x) for x in leaves}) == len(leaves)


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
        ({"update_every": np.int64(0)}, "update_every=0 must be 1 or more"),
        ({"update_every": np.float32(1.5)}, "update_every=1.5 must be 1 or more, and whole"),
        ({"warmup_steps": True}, "warmup_steps=True must be 0 or more"),
        ({"max_dim": np.int64(0)}, "max_dim=0 must be 1 or more"),
        ({"gamma": np.nan}, "gamma=nan must be in"),
        ({"zeta": jnp.float32(1)}, "zeta=1.0 must be in"),
        ({"eps": np.nan}, "eps=nan must be positive"),
        ({"eps": np.float32(0)}, "eps=0.0 must be positive"),
        ({"clip": np.nan}, "clip=nan must be positive"),
        ({"hybrid": Hybrid(patience=0)}, "hybrid.patience=0 must be 1 or more"),
        ({"hybrid": Hybrid(min_steps=-1)}, "hybrid.min_steps=-1 must be 0 or more"),
        ({"hybrid": Hybrid(tau=np.nan)}, "hybrid.tau=nan must be a finite number"),
        ({"hybrid": Hybrid(slow=1.0)}, r"hybrid.slow=1.0 must be in \[0, 1\)"),
        ({"hybrid": Hybrid(fast=0.99)}, "hybrid.fast=0.99 must be below slow=0.99"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        scale_by_mkor(**settings)


@pytest.mark.parametrize("rule", [scale_by_mkor, scale_by_eva])
def test_kernels_that_are_not_there(rule):
    tx = rule(spec=["up/kernl"])
    with pytest.raises(ValueError, match="'up/kernl' matches no path; .*did you mean 'up/kernel'"):
        tx.init(PARAMS)
    # A part of the parameters need not have them: the rest may.
    everything = jax.tree.map(lambda _: False, PARAMS)
    for part in ({**PARAMS, "up": None}, {**PARAMS, "scale": None}):
        tx.init(part)
    optax.masked(tx, everything).init(PARAMS)


@pytest.mark.parametrize("settings", [{"decay": np.float64(1)}, {"damping": np.nan}, {"clip": 0}])
def test_bad_settings_of_eva(settings):
    with pytest.raises(ValueError, match=f"eva: {next(iter(settings))}="):
        scale_by_eva(**settings)


@pytest.mark.parametrize("inner", ["sgd", optax.sgd(0.1)])
def test_the_inner_optimizer_is_a_function_of_the_rate(inner):
    with pytest.raises(TypeError, match=r"mkor: inner=.* learning rate; nearest: optax\.sgd"):
        mkor(0.1, inner)


def test_parameters_must_be_floating():
    with pytest.raises(TypeError, match="'n' is int32; parameters must be floating"):
        scale_by_mkor().init({"n": jnp.ones(2, jnp.int32)})


def test_a_wide_bias_beside_a_narrow_kernel_keeps_its_digits():
    params = {"kernel": jnp.ones((2, 1), jnp.bfloat16), "bias": jnp.ones(1)}
    grads = {"kernel": jnp.zeros((2, 1), jnp.bfloat16), "bias": jnp.array([1.001])}
    stats = {"kernel": Tap(jnp.zeros(3), jnp.zeros(1))}
    tx = scale_by_mkor()
    updates = jax.jit(tx.update)(grads, tx.init(params), stats=stats)[0]
    assert float(updates["bias"][0]) == np.float32(1.001)


def test_eva_counts_only_the_statistics_that_it_saw():
    params, grads = {"kernel": jnp.ones((2, 1))}, {"kernel": jnp.array([[1.0], [0.5]])}
    none = {"kernel": Tap(jnp.zeros(3), jnp.zeros(1))}
    some = {"kernel": Tap(jnp.array([1.0, 1.0, 1.0]), jnp.ones(1))}
    tx = scale_by_eva(decay=0.9)
    late = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(3):
        late = update(grads, late, stats=none)[1]
    updates = [update(grads, state, stats=some)[0] for state in (tx.init(params), late)]
    chex.assert_trees_all_close(*updates, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"update_every": 2.5}, {"warmup_steps": -5}, {"clip": -1}, {"factor_dtype": "int8"}],
)
def test_numbers_out_of_range(settings):
    with pytest.raises(ValueError, match=f"mkor: {next(iter(settings))}="):
        scale_by_mkor(**settings)
