"""M-FAC as an optimizer: each step in NumPy, its options, and optax's wrappers around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxlab.core import registry
from jaxlab.optim.carry import Trained, carry
from jaxlab.optim.chain import make_optimizer
from jaxlab.optim.cohorts import in_cohorts
from jaxlab.optim.mfac import MfacState, TopK, mfac, scale_by_mfac

PARAMS = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.ones(3)}


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def gradients(steps, seed=0, like=PARAMS):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), like)


def run(tx, steps, *, params=PARAMS, state=None, skip=0):
    """Parameters, state and the updates of every step."""
    update, seen = jax.jit(tx.update), []
    state = tx.init(params) if state is None else state
    for grads in list(gradients(steps, like=params))[skip:]:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    return params, state, seen


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def window_of(state):
    is_state = lambda x: isinstance(x, MfacState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)).window


@pytest.mark.parametrize("normaliser", ["window", "count"])
def test_steps_are_those_of_the_paper(normaliser):
    m, damp, mu, decay, warm, rate = 4, 0.3, 0.9, 0.1, 2, 0.05
    tx = mfac(rate, m, damp, mu, decay, normaliser=normaliser, warmup_steps=warm)
    params, _, _ = run(tx, 7)
    w, v, window = flat(PARAMS), 0.0, np.zeros((m, 15))
    for step, g in enumerate(gradients(7)):
        g = flat(g) + decay * w
        window[step % m] = g
        count = m if normaliser == "window" else min(step + 1, m)
        u = np.linalg.solve(damp * np.eye(15) + window.T @ window / count, g)
        v = mu * v + (1 - mu) * (g if step < warm else u)
        w = w - rate * v
    np.testing.assert_allclose(flat(params), w, rtol=2e-5, atol=2e-6)


def test_decay_enters_the_stored_rows_and_needs_the_parameters():
    tx = scale_by_mfac(m=2, weight_decay=0.5)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    _, state = jax.jit(tx.update)(zero, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(state.window.rows["kernel"][0], 0.5 * PARAMS["kernel"])
    with pytest.raises(ValueError, match="weight_decay wants the parameters"):
        tx.update(zero, state)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counts():
    tx = scale_by_mfac(m=3, damp=0.1, momentum=0.5, compression=TopK(0.5, 4))
    update = jax.jit(tx.update)
    _, state, _ = run(tx, 4)
    for bad in (jnp.nan, jnp.inf, 1e30):
        grads = next(gradients(1))
        grads["bias"] = grads["bias"].at[1].set(bad)
        updates, after = update(grads, state)
        assert not flat(updates).any()
        assert int(after.n_skipped) == int(state.n_skipped) + 1
        assert int(after.count) == int(state.count) + 1
        same = after._replace(count=state.count, n_skipped=state.n_skipped)
        jax.tree.map(np.testing.assert_array_equal, same, state)
        state = after
    updates, state = update(next(gradients(1, seed=2)), state)
    assert np.isfinite(flat(updates)).all()
    assert flat(updates).any()


def test_masked_entries_never_move_and_are_not_stored():
    mask = {"kernel": np.arange(12).reshape(4, 3) % 2 == 0, "bias": False}
    tx = scale_by_mfac(m=3, damp=0.1, mask=mask)
    _, state, seen = run(tx, 4)
    assert state.window.rows["kernel"].shape == (3, 6)
    assert state.window.rows["bias"].shape == (3, 0)
    for updates in seen:
        assert not np.asarray(updates["bias"]).any()
        assert np.array_equal(np.asarray(updates["kernel"]) != 0, mask["kernel"])
    # As if the model had the others only.
    alone = scale_by_mfac(m=3, damp=0.1)
    inner, step = alone.init(jnp.zeros(6)), jax.jit(alone.update)
    for grads, updates in zip(gradients(4), seen, strict=True):
        u, inner = step(grads["kernel"][mask["kernel"]], inner)
        np.testing.assert_allclose(updates["kernel"][mask["kernel"]], u, rtol=1e-5)


def test_wrappers_of_optax():
    expected = run(mfac(0.1, 3, 0.2), 5)[0]
    everything = jax.tree.map(lambda _: True, PARAMS)
    injected = optax.inject_hyperparams(scale_by_mfac, static_args=("m", "warmup_steps"))
    clip = optax.clip_by_global_norm(1e9)
    for tx in (
        optax.chain(clip, optax.masked(injected(m=3, damp=0.2), everything), optax.scale(-0.1)),
        optax.chain(injected(m=3, damp=lambda step: 0.2), optax.scale(-0.1)),
        mfac(0.1, 3, lambda step: 0.2 + 0 * step),
    ):
        np.testing.assert_allclose(flat(run(tx, 5)[0]), flat(expected), rtol=1e-6)
    parts = {"fisher": mfac(0.1, 3, 0.2), "plain": optax.sgd(0.1)}
    params, state, _ = run(optax.multi_transform(parts, {"kernel": "fisher", "bias": "plain"}), 5)
    assert len(jax.tree.leaves(window_of(state).rows)) == 1
    for name, alone in (("kernel", parts["fisher"]), ("bias", parts["plain"])):
        one, state = PARAMS[name], alone.init(PARAMS[name])
        for grads in gradients(5):
            updates, state = alone.update(grads[name], state, one)
            one = optax.apply_updates(one, updates)
        np.testing.assert_allclose(params[name], one, rtol=1e-5, atol=1e-7)


def test_damping_is_that_of_the_step_and_a_clip_comes_before_the_window():
    falling = lambda step: 0.5 / (step + 1)  # noqa: E731
    _, _, seen = run(scale_by_mfac(3, falling), 5)
    for step, updates in enumerate(seen):
        _, _, fixed = run(scale_by_mfac(3, falling(step)), step + 1)
        np.testing.assert_allclose(flat(updates), flat(fixed[-1]), rtol=1e-6)
    small = optax.chain(optax.clip_by_global_norm(0.01), scale_by_mfac(3, 0.2))
    _, state, _ = run(small, 3)
    norms = np.sqrt(np.diag(window_of(state).gram))
    np.testing.assert_allclose(norms, 0.01, rtol=1e-5)


def test_numbers_are_injected_as_they_are_without():
    expected = run(mfac(0.1, 3, 0.2), 3)[0]
    fixed = ("m", "momentum", "weight_decay", "warmup_steps")
    tx = optax.inject_hyperparams(mfac, static_args=fixed)(0.1, 3, 0.2)
    params, state, _ = run(tx, 3)
    np.testing.assert_allclose(flat(params), flat(expected), rtol=1e-6)
    assert state.hyperparams.keys() == {"learning_rate", "damp"}
    for maker in (mfac, scale_by_mfac):
        injected = optax.inject_hyperparams(maker, static_args=("m",))
        tx = injected(0.1, m=3) if maker is mfac else injected(m=3)
        with pytest.raises(ValueError, match=r"weight_decay wants.*inject_hyperparams name it in"):
            tx.update(PARAMS, tx.init(PARAMS))


def test_a_tree_without_leaves_is_a_tree():
    nothing = jax.tree.map(lambda _: False, PARAMS)
    labels = jax.tree.map(lambda _: "plain", PARAMS)
    parts = {"fisher": mfac(0.1, 3), "plain": optax.sgd(0.1)}
    for tx, rate in (
        (optax.multi_transform(parts, labels), -0.1),
        (optax.masked(mfac(0.1, 3, momentum=0.9), nothing), 1.0),
    ):
        _, state, (updates, _) = run(tx, 2)
        np.testing.assert_allclose(flat(updates), rate * flat(next(gradients(1))), rtol=1e-6)
        assert int(window_of(state).count) == 2
    tx = scale_by_mfac(3)
    assert jax.jit(tx.update)({}, tx.init({}))[0] == {}


def test_accumulated_gradients_are_pushed_once():
    tx = optax.MultiSteps(mfac(0.1, 4, 0.2), every_k_schedule=2)
    _, state, seen = run(tx, 6)
    window = window_of(state)
    assert int(window.count) == 3
    assert [bool(flat(u).any()) for u in seen] == [False, True] * 3
    means = [flat(g) for g in gradients(6)]
    expected = np.stack([(means[i] + means[i + 1]) / 2 for i in (0, 2, 4)])
    stored = np.stack([flat(jax.tree.map(lambda r: r[i], window.rows)) for i in range(3)])  # noqa: B023
    np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6)


def test_updates_have_the_dtype_of_their_gradients():
    params = {"kernel": jnp.ones((4, 3), jnp.bfloat16), "bias": jnp.ones(3)}
    _, state, seen = run(scale_by_mfac(m=2, damp=0.1, buffer_dtype="bfloat16"), 2, params=params)
    assert jax.tree.map(lambda u: u.dtype, seen[-1]) == jax.tree.map(lambda p: p.dtype, params)
    assert {x.dtype for x in jax.tree.leaves(state.window.rows)} == {jnp.dtype("bfloat16")}
    assert state.window.gram.dtype == jnp.float32


def test_it_compiles_once_and_resumes_bit_for_bit_in_mid_wrap(tmp_path):
    tx = scale_by_mfac(m=3, damp=0.1, momentum=0.9, compression=TopK(0.5, 4))
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(None)
        return tx.update(grads, state)

    state, every = tx.init(PARAMS), []
    for step, grads in enumerate(gradients(8)):
        if step == 5:
            with ocp.StandardCheckpointer() as saver:
                saver.save(tmp_path / "state", state)
                saver.wait_until_finished()
                resumed = saver.restore(tmp_path / "state", state)
        updates, state = update(grads, state)
        every.append(updates)
    assert len(traces) == 1
    for grads, expected in list(zip(gradients(8), every, strict=True))[5:]:
        updates, resumed = update(grads, resumed)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_a_config_names_it():
    section = {"name": "mfac", "lr": 0.1, "schedule": {"name": "constant"}, "m": 3, "damp": 0.2}
    section |= {"weight_decay": 0.5, "momentum": 0.9}
    params, state, _ = run(make_optimizer(section, steps=5)[0], 5)
    assert window_of(state).rows["kernel"].shape == (3, 4, 3)
    by_hand = optax.chain(
        optax.add_decayed_weights(0.5, {"kernel": True, "bias": False}),
        mfac(0.1, 3, 0.2, 0.9),
    )
    np.testing.assert_allclose(flat(params), flat(run(by_hand, 5)[0]), rtol=1e-6)
    sparse = make_optimizer(section | {"density": 0.25, "block": 4}, steps=5)[0].init(PARAMS)
    assert window_of(sparse).rows["kernel"].value.shape == (3, 3)
    assert "mfac" in registry.names("optimizer")


@pytest.mark.parametrize("policy", ["reset_converted", "reset_all"])
def test_a_change_of_structure_starts_a_window_whose_gram_matrix_is_its_rows(policy):
    tx = in_cohorts(scale_by_mfac(m=3, damp=0.1))
    _, state, _ = run(tx, 4)
    old = Trained(PARAMS, PARAMS)
    kept = carry(tx, state, old, old, policy)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    params = PARAMS | {"kernel": jnp.ones((4, 5))}
    window = window_of(carry(tx, state, old, Trained(params, params), policy))
    rows = np.concatenate([np.asarray(r).reshape(3, -1) for r in jax.tree.leaves(window.rows)], 1)
    np.testing.assert_allclose(window.gram, rows @ rows.T, rtol=1e-5)


def test_a_window_that_begins_anew_warms_up_anew():
    warm = 2
    tx = in_cohorts(scale_by_mfac(m=3, damp=0.1, warmup_steps=warm))
    _, state, _ = run(tx, 5)
    params = PARAMS | {"kernel": jnp.ones((4, 5))}
    state = carry(tx, state, Trained(PARAMS, PARAMS), Trained(params, params), "reset_converted")
    assert len(state.states) == 2
    _, _, seen = run(tx, 4, params=params, state=state)
    for step, (updates, grads) in enumerate(zip(seen, gradients(4, like=params), strict=True)):
        for name in PARAMS:
            assert np.allclose(updates[name], grads[name], rtol=1e-6) == (step < warm)


def test_errors_name_the_argument():
    init = lambda **kw: scale_by_mfac(**{"m": 2, **kw}).init(PARAMS)  # noqa: E731
    for match, settings in [
        ("m=0 must be an int", {"m": 0}),
        ("m=2.5 must be an int", {"m": 2.5}),
        ("mfac: damp=0 must be positive and finite", {"damp": 0}),
        ("damp=inf must be positive and finite", {"damp": jnp.float32(jnp.inf)}),
        (r"momentum=1.0 must be a number in \[0, 1\)", {"momentum": 1.0}),
        ("momentum=-3 must be", {"momentum": -3}),
        ("weight_decay=-1 must be", {"weight_decay": -1}),
        ("warmup_steps=-1 must be", {"warmup_steps": -1}),
        ("buffer_dtype='int8' must be floating", {"buffer_dtype": "int8"}),
        ("normaliser='rows'; valid: count, window", {"normaliser": "rows"}),
        (r"density=0.0 must be in \(0, 1\]", {"compression": TopK(0.0)}),
        ("block=0 must be an int", {"compression": TopK(0.1, 0)}),
        ("mask has the structure", {"mask": {"kernel": True}}),
        (r"mask of shape \(4,\)", {"mask": {"kernel": True, "bias": np.ones(4, bool)}}),
    ]:
        with pytest.raises(ValueError, match=match):
            init(**settings)
    assert init(m=np.int64(3)).window.gram.shape == (3, 3)
    with pytest.raises(ValueError, match=r"\['n'\] is int32; gradients must be floating"):
        scale_by_mfac(m=2).init({"n": jnp.ones(2, jnp.int32)})
