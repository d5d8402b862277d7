"""STEP's AdamW: Adam bit for bit up to the freeze, a NumPy reference after it, its transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.optim.chain import check_paths, make_optimizer
from jaxlab.optim.step_adamw import scale_by_frozen_nu, step_adamw

PARAMS = {
    "kernel": jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(3, 4),
    "bias": jnp.ones(4, jnp.bfloat16),
}


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def gradients(steps, seed=0):
    """Gradients of growing size, so that a second moment that goes on differs from a frozen one."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        yield jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape) * (1 + step), p.dtype),  # noqa: B023
            PARAMS,
        )


def run(tx, steps, *, state=None, params=PARAMS, skip=0):
    """Parameters and state after `steps` updates, of which the first `skip` are left out."""
    update = jax.jit(tx.update)
    state = tx.init(params) if state is None else state
    for step, grads in enumerate(gradients(steps)):
        if step >= skip:
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
    return params, state


def adam_state(state):
    return next(
        s
        for s in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    )


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def frozen_adamw(at, rate=0.01):
    return step_adamw(
        learning_rate=rate,
        weight_decay=0.1,
        mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree),
        freeze_nu_at=at,
    )


@pytest.mark.parametrize("at", [6, 10**12])
def test_up_to_the_freeze_it_is_adamw_bit_for_bit(at):
    mask = {"kernel": True, "bias": False}
    expected = run(optax.adamw(0.01, weight_decay=0.1, mask=mask), 6)
    actual = run(frozen_adamw(at), 6)
    assert_same_bits(actual[0], expected[0])
    assert_same_bits(adam_state(actual[1]), adam_state(expected[1]))


def test_the_update_after_the_freeze_is_not_adam_and_keeps_nu():
    _, at_freeze = run(scale_by_frozen_nu(freeze_nu_at=6), 6)
    frozen, after = run(scale_by_frozen_nu(freeze_nu_at=6), 9)
    assert_same_bits(after.nu, at_freeze.nu)
    assert int(after.count) == 9
    moving, _ = run(optax.scale_by_adam(), 9)
    assert np.max(np.abs(frozen["kernel"] - moving["kernel"])) > 0.1


@pytest.mark.parametrize("at", [1, 7])
def test_forty_updates_follow_the_formula_in_float64(at):
    b1, b2, eps, rate, decay = 0.9, 0.99, 1e-8, 0.01, 0.1
    w = np.asarray(PARAMS["kernel"], np.float64)
    mu, nu = np.zeros_like(w), np.zeros_like(w)
    for step, grads in enumerate(gradients(40), start=1):
        g = np.asarray(grads["kernel"], np.float64)
        mu = b1 * mu + (1 - b1) * g
        if step <= at:
            nu = b2 * nu + (1 - b2) * g**2
            nu_hat = nu / (1 - b2**step)
        w = w - rate * (mu / (1 - b1**step) / (np.sqrt(nu_hat) + eps) + decay * w)
    tx = step_adamw(
        learning_rate=rate,
        weight_decay=decay,
        mask=lambda tree: jax.tree.map(lambda x: True, tree),
        freeze_nu_at=at,
        b1=b1,
        b2=b2,
        eps=eps,
    )
    params, _ = run(tx, 40)
    assert np.max(np.abs(w - np.asarray(PARAMS["kernel"]))) > 0.5  # the run goes somewhere
    assert np.linalg.norm(params["kernel"] - w) <= 1e-6 * np.linalg.norm(w)


def test_one_compilation_and_an_exact_resumption_across_the_freeze():
    tx = frozen_adamw(3)
    traces = []

    @jax.jit
    def update(grads, state, params):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    saved = {}
    for step, grads in enumerate(gradients(7)):
        saved[step] = jax.tree.map(np.asarray, (params, state))
        params, state = update(grads, state, params)
    assert len(traces) == 1
    for step in (2, 5):  # before and after the freeze
        old, old_state = saved[step]
        resumed = run(frozen_adamw(3), 7, state=old_state, params=old, skip=step)
        assert_same_bits(resumed, (params, state))


def test_a_run_of_adam_continues_with_its_state():
    params, state = run(optax.scale_by_adam(), 4)
    actual = run(scale_by_frozen_nu(freeze_nu_at=4), 8, state=state, params=params, skip=4)
    assert_same_bits(actual, run(scale_by_frozen_nu(freeze_nu_at=4), 8))


def test_moments_have_the_dtypes_that_optax_gives_them():
    for dtype in (None, jnp.float32):
        actual = run(scale_by_frozen_nu(freeze_nu_at=1, mu_dtype=dtype), 0)[1]
        assert_same_bits(actual, optax.scale_by_adam(mu_dtype=dtype).init(PARAMS))


def test_under_vmap_each_run_freezes_at_its_own_update():
    def last(at):
        tx = scale_by_frozen_nu(freeze_nu_at=at)
        state = tx.init(PARAMS["kernel"])
        for grads in gradients(4):
            updates, state = tx.update(grads["kernel"], state)
        return updates, state.nu

    updates, nu = jax.vmap(last)(jnp.array([1, 3, 4]))
    for row, at in enumerate((1, 3, 4)):
        expected = last(at)
        np.testing.assert_allclose(updates[row], expected[0], rtol=1e-6)
        np.testing.assert_allclose(nu[row], expected[1], rtol=1e-6)
    assert not np.allclose(nu[0], nu[1])


def test_inside_the_wrappers_of_optax():
    kernel = {"kernel": PARAMS["kernel"]}
    grads = [{"kernel": g["kernel"]} for g in gradients(4)]

    def after(tx, repeats=1):
        state, params = tx.init(kernel), kernel
        for g in (g for g in grads for _ in range(repeats)):
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params["kernel"], state

    expected, _ = after(frozen_adamw(2))
    injected, state = after(
        optax.inject_hyperparams(frozen_adamw)(at=2, rate=lambda count: 0.01 + 0 * count)
    )
    np.testing.assert_allclose(injected, expected, rtol=1e-6)
    assert int(state.hyperparams["at"]) == 2
    # Two micro-steps with one gradient are one update: the freeze counts updates.
    accumulated, _ = after(optax.MultiSteps(frozen_adamw(2), 2), repeats=2)
    np.testing.assert_allclose(accumulated, expected, rtol=1e-6)

    def alone_after(steps):
        alone = scale_by_frozen_nu(freeze_nu_at=1)
        state = alone.init(PARAMS["kernel"])
        for g in grads[:steps]:
            updates, state = alone.update(g["kernel"], state)
        return updates

    tx = optax.masked(scale_by_frozen_nu(freeze_nu_at=1), {"kernel": True, "bias": False})
    state = tx.init(PARAMS)
    for g in gradients(3):
        updates, state = tx.update(g, state)
    np.testing.assert_array_equal(updates["bias"], g["bias"])
    np.testing.assert_allclose(updates["kernel"], alone_after(3), rtol=1e-6)


def test_a_config_can_name_it():
    section = {
        "name": "step_adamw",
        "lr": 0.01,
        "schedule": {"name": "constant"},
        "weight_decay": 0.1,
        "freeze_nu_at": 2,
        "b2": 0.99,
    }
    tx, rate = make_optimizer(section, steps=5)
    check_paths(section, ["kernel", "bias"])
    params, state = run(tx, 5)
    moments = adam_state(state)
    assert_same_bits(moments.nu, adam_state(run(tx, 2)[1]).nu)
    assert float(rate(3)) == pytest.approx(0.01)
    assert np.all(np.isfinite(params["kernel"]))
    with pytest.raises(ValueError, match="needs 'freeze_nu_at'"):
        make_optimizer({"name": "step_adamw", "lr": 0.01}, steps=5)
    with pytest.raises(ValueError, match="freeze_nu_at=0 must be a whole number"):
        make_optimizer({**section, "freeze_nu_at": 0}, steps=5)


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "2", jnp.int32(0), jnp.array([2])])
def test_bad_values_are_refused(value):
    with pytest.raises(ValueError, match=r"freeze_nu_at=.* must be a whole number of updates, 1"):
        scale_by_frozen_nu(freeze_nu_at=value)
