"""What an optimizer's state becomes when parameters change: cohorts, policies, first updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlab
from jaxlab.core.match import leaf_paths
from jaxlab.optim.carry import densify_state
from jaxlab.optim.cohorts import in_cohorts

RULES = [("up/kernel", "low_rank", {"rank": 3})]


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def params():
    kernels = jax.random.normal(jax.random.key(0), (2, 8, 8)) / 3
    dense = {"up": {"kernel": kernels[0], "bias": jnp.zeros(8)}, "down": {"kernel": kernels[1]}}
    return jaxlab.compress(dense, RULES)


def loss_of(p, x):
    y = jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"][None, :]) @ p["down"]["kernel"]
    return jnp.mean((y - jnp.sin(x)) ** 2)


def batch(step):
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (16, 8))


def trained(tx, p, state, start, stop):
    @jax.jit
    def step(p, state, x):
        updates, state = tx.update(jax.grad(loss_of)(p, x), state, p)
        return optax.apply_updates(p, updates), state, updates

    updates = None
    for i in range(start, stop):
        p, state, updates = step(p, state, batch(i))
    return p, state, updates


def test_one_cohort_is_the_optimizer_itself():
    plain, wrapped = optax.adamw(1e-2), in_cohorts(optax.adamw(1e-2))
    expected, _, _ = trained(plain, params(), plain.init(params()), 0, 5)
    actual, _, _ = trained(wrapped, params(), wrapped.init(params()), 0, 5)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_function_is_the_same_after_densifying():
    tx = in_cohorts(optax.adam(1e-2))
    p, state, _ = trained(tx, params(), tx.init(params()), 0, 20)
    dense, _ = densify_state(p, state, tx)
    np.testing.assert_allclose(loss_of(dense, batch(0)), loss_of(p, batch(0)), rtol=1e-5)


def test_each_cohort_is_an_adam_of_its_own():
    """The converted kernel's updates are those of an optimizer that knows nothing else."""
    tx, alone = in_cohorts(optax.adam(1e-2)), optax.adam(1e-2)
    p, state, _ = trained(tx, params(), tx.init(params()), 0, 20)
    p, state = densify_state(p, state, tx)
    fresh, old = alone.init(p["up"]["kernel"]), state.states[0]
    assert jax.tree.leaves(old)[0] == 20
    for i in range(20, 24):
        grads = jax.grad(loss_of)(p, batch(i))
        updates, state = tx.update(grads, state, p)
        expected, fresh = alone.update(grads["up"]["kernel"], fresh)
        np.testing.assert_allclose(updates["up"]["kernel"], expected, rtol=1e-6)
        kept = {"up": {"kernel": None, "bias": grads["up"]["bias"]}, "down": grads["down"]}
        expected, old = alone.update(kept, (old[0], old[1]))
        np.testing.assert_allclose(updates["down"]["kernel"], expected["down"]["kernel"], rtol=1e-6)
        p = optax.apply_updates(p, updates)


def test_no_first_update_is_larger_than_adam_allows():
    """With the old count and moments of 0 the first updates would be 3 times the learning rate."""
    for policy in ("reset_converted", "reset_all", "map_first_moment"):
        tx = in_cohorts(optax.adam(1e-2))
        p, state, _ = trained(tx, params(), tx.init(params()), 0, 50)
        p, state = densify_state(p, state, tx, policy=policy)
        _, _, updates = trained(tx, p, state, 50, 51)
        assert np.abs(updates["up"]["kernel"]).max() <= 1.2e-2, policy


def test_reset_all_begins_anew():
    tx = in_cohorts(optax.adam(1e-2))
    p, state, _ = trained(tx, params(), tx.init(params()), 0, 3)
    p, state = densify_state(p, state, tx, policy="reset_all")
    jax.tree.map(np.testing.assert_array_equal, state, tx.init(p))


def test_a_mapped_moment_is_the_derivative_of_the_product():
    tx = in_cohorts(optax.adam(1e-2))
    p, state, _ = trained(tx, params(), tx.init(params()), 0, 5)
    w, mu = p["up"]["kernel"], optax.tree.get(state, "mu")["up"]["kernel"]
    _, new = densify_state(p, state, tx, policy="map_first_moment")
    pushed = optax.tree.get(new, "mu")["up"]["kernel"]
    np.testing.assert_allclose(pushed, mu.u @ w.v + w.u @ mu.v, rtol=1e-5, atol=1e-8)
    root = jnp.sqrt(optax.tree.get(new, "nu")["up"]["kernel"])
    assert (root >= 0.999 * jnp.abs(pushed) * np.sqrt(1 - 0.999**5) / (1 - 0.9**5)).all()
    assert optax.tree.get(new, "count") == 5


def test_a_second_change_keeps_the_cohorts_apart():
    tx = in_cohorts(optax.adam(1e-2))
    dense = jax.tree.map(jnp.asarray, {**params(), "down": {"kernel": jnp.eye(8)}})
    p = jaxlab.compress(dense, [("down/kernel", "low_rank", {"rank": 2})])
    p, state, _ = trained(tx, p, tx.init(p), 0, 4)
    p, state = densify_state(p, state, tx, path="up/.*")
    p, state, _ = trained(tx, p, state, 4, 7)
    p, state = densify_state(p, state, tx, path="down/.*")
    assert state.paths == (("up/kernel",), ("down/kernel",))
    counts = [int(c) for _, c in optax.tree.get_all_with_path(state, "count")]
    assert counts == [7, 3, 0]
    assert set(leaf_paths(state.states[1])) >= {"0/mu/up/kernel", "0/nu/up/kernel"}
    p, state, _ = trained(tx, p, state, 7, 9)
    assert np.isfinite(loss_of(p, batch(0)))


def test_what_is_refused():
    tx = optax.adam(1e-2)
    state = tx.init(params())
    wants = "densify_state: policy='reset_converted' wants one in_cohorts.*policy='reset_all'"
    with pytest.raises(ValueError, match=wants):
        densify_state(params(), state, tx)
    with pytest.raises(
        ValueError, match="densify_state: policy='reset-all': did you mean 'reset_all'"
    ):
        densify_state(params(), state, tx, policy="reset-all")
    with pytest.raises(ValueError, match="matches no path"):
        densify_state(params(), state, tx, path="head/kernel")
    dense, _ = densify_state(params(), state, tx, policy="reset_all")
    assert dense["up"]["kernel"].shape == (8, 8)
