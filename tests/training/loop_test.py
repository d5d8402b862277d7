"""The step: against the same step by hand, over parts, over devices, with everything it carries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlab
from jaxlab.core.match import leaf_paths
from jaxlab.optim.chain import make_optimizer
from jaxlab.training.loop import compile_step, make_train_step
from jaxlab.training.sharding import make_mesh, param_specs, put_batch, put_tree, state_shardings
from jaxlab.training.state import init_state, restructure

STEPS = 6


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def params(rules=()):
    up, down = jax.random.split(jax.random.key(0))
    dense = {
        "up": {"kernel": jax.random.normal(up, (16, 32)) / 4, "bias": jnp.zeros(32)},
        "down": {"kernel": jax.random.normal(down, (32, 8)) / 6, "bias": jnp.zeros(8)},
    }
    return jaxlab.compress(dense, rules) if rules else dense


RULES = [("up/kernel", "nm", {"n": 2, "m": 4}), ("down/kernel", "low_rank", {"rank": 4})]


def loss_fn(params, batch, key):
    h = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None, :])
    y = h @ params["down"]["kernel"] + params["down"]["bias"][None, :]
    return jnp.mean((y - batch["y"]) ** 2), {"size": jnp.mean(jnp.abs(y))}


def batch(step, rows=8):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(rows, 16)).astype(np.float32)
    return {"x": x, "y": np.sin(x[:, :8]).astype(np.float32)}


def optimizer(**changes):
    section = {
        "name": "adamw",
        "lr": 1e-2,
        "weight_decay": 0.1,
        "clip": 1.0,
        "schedule": {"name": "cosine", "warmup": 0.0},
    }
    return make_optimizer({**section, **changes}, steps=STEPS)[0]


def run(params, tx, *, mesh=None, rules=(), freeze=(), ema=0.0, accumulate=1, steps=STEPS):
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    state = init_state(params, tx, freeze=freeze, ema=ema)
    place = state_shardings(state, param_specs(state.params, rules, mesh), mesh)
    state = put_tree(jax.tree.map(jnp.copy, state), place)
    step = make_train_step(loss_fn, tx, steps=STEPS, accumulate=accumulate, ema=ema)
    traces = [0]
    fn = compile_step(step, place, traces)
    losses = []
    for i in range(steps):
        state, metrics = fn(state, put_batch(batch(i), mesh))
        losses.append(float(metrics["loss"]))
    assert traces == [1]
    return state, losses


def test_equals_the_same_loop_written_by_hand():
    state, losses = run(params(), optimizer())
    hand = params()
    mask = {"up": {"kernel": True, "bias": False}, "down": {"kernel": True, "bias": False}}
    rate = optax.cosine_decay_schedule(1e-2, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1, mask=mask))
    opt, expected = tx.init(hand), []
    for i in range(STEPS):
        loss, grads = jax.value_and_grad(lambda p, b: loss_fn(p, b, None)[0])(hand, batch(i))
        updates, opt = tx.update(grads, opt, hand)
        hand = optax.apply_updates(hand, updates)
        expected.append(float(loss))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, hand)


def test_accumulation_over_parts_changes_nothing():
    whole, _ = run(params(RULES), optimizer())
    parts, _ = run(params(RULES), optimizer(), accumulate=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), whole.params, parts.params
    )


def test_statistics_of_parts_and_of_shards_are_those_of_the_whole():
    tx = optimizer(name="mkor", lr=0.1, update_every=1)
    whole, _ = run(params(RULES), tx)
    parts, _ = run(params(RULES), tx, accumulate=4)
    shards, _ = run(params(RULES), tx, mesh=make_mesh(2, 1))
    for other in (parts, shards):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.opt, other.opt)


@pytest.mark.parametrize(("data", "model"), [(2, 1), (1, 2)])
def test_two_devices_equal_one(data, model):
    rules = [("up/kernel", (None, "model")), ("down/kernel", ("model", None))]
    one, one_losses = run(params(RULES), optimizer())
    mesh = make_mesh(data, model)
    two, two_losses = run(params(RULES), optimizer(), mesh=mesh, rules=rules)
    np.testing.assert_allclose(one_losses, two_losses, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), one.params, two.params
    )
    if model == 2:
        weight = two.trainable["up"]["kernel"].weight
        assert weight.sharding.spec == jax.sharding.PartitionSpec(None, "model")
        assert two.trainable["down"]["kernel"].u.sharding.spec[0] == "model"
        # The optimizer's moments lie where their parameters lie.
        moments = [x for x in jax.tree.leaves(two.opt) if x.shape == weight.shape]
        assert moments
        assert all(m.sharding.is_equivalent_to(weight.sharding, 2) for m in moments)


def test_frozen_leaves_stay_and_have_no_moments():
    before = params(RULES)
    tx = optimizer(decay_paths=())
    state, _ = run(before, tx, freeze=("up/.*",))
    np.testing.assert_array_equal(
        state.params["up"]["kernel"].weight, before["up"]["kernel"].weight
    )
    assert not np.array_equal(state.params["down"]["bias"], before["down"]["bias"])
    assert not [x for x in jax.tree.leaves(state.opt) if x.shape == (16, 32)]
    # A matrix's path holds all of its children.
    state, _ = run(before, tx, freeze=("down/kernel",))
    np.testing.assert_array_equal(state.params["down"]["kernel"].u, before["down"]["kernel"].u)


def test_learning_rates_by_path():
    slow = optimizer(
        name="sgd",
        momentum=0.0,
        weight_decay=0.0,
        clip=0.0,
        lr=0.1,
        lr_paths=(("up/.*", 0.0), ("down/bias", 0.5)),
        schedule={"name": "constant"},
    )
    fast = optimizer(
        name="sgd", momentum=0.0, weight_decay=0.0, clip=0.0, lr=0.1, schedule={"name": "constant"}
    )
    start = params()
    one, _ = run(start, slow, steps=1)
    two, _ = run(start, fast, steps=1)
    np.testing.assert_array_equal(one.params["up"]["kernel"], start["up"]["kernel"])
    np.testing.assert_array_equal(one.params["down"]["kernel"], two.params["down"]["kernel"])
    np.testing.assert_allclose(
        2 * one.params["down"]["bias"], two.params["down"]["bias"], rtol=1e-6, atol=1e-9
    )


def test_running_average():
    tx = optimizer()
    state, _ = run(params(), tx, ema=0.9, steps=2)
    first, _ = run(params(), tx, steps=1)
    second, _ = run(params(), tx, steps=2)
    start = params()["up"]["kernel"]
    # Decay min(0.9, (1 + t) / (10 + t)) at t = 0, 1.
    average = start + (1 - 1 / 10) * (first.params["up"]["kernel"] - start)
    average = average + (1 - 2 / 11) * (second.params["up"]["kernel"] - average)
    np.testing.assert_allclose(state.eval_params["up"]["kernel"], average, rtol=1e-5)
    np.testing.assert_allclose(state.params["up"]["kernel"], second.params["up"]["kernel"])


RATES = {"sgd": 0.1, "lion": 3e-3, "adamw": 2e-2, "lamb": 2e-2, "muon": 2e-2}
RATES |= {"mfac": 2e-2, "mkor": 0.1, "eva": 0.1}


@pytest.mark.parametrize("name", RATES)
def test_every_optimizer_trains_matrices(name):
    own = {"mfac": {"m": 3, "damp": 0.1}, "mkor": {"update_every": 2}}.get(name, {})
    schedule = {"name": "constant"}
    tx = optimizer(name=name, lr=RATES[name], weight_decay=1e-4, schedule=schedule, **own)
    state, losses = run(params(RULES), tx)
    assert np.isfinite(losses).all()
    assert loss_fn(state.params, batch(0), None)[0] < losses[0]


def test_a_phase_keeps_what_fits_of_the_optimizer():
    tx = optimizer()
    state, _ = run(params(), tx)

    def compress(p, opt, key):
        return jaxlab.compress(p, RULES[:1]), None

    new = restructure(state, compress, tx, freeze=(), key=jax.random.key(0))
    assert int(new.step) == STEPS
    old_adam = optax.tree.get(state.opt, "mu")
    adam = optax.tree.get(new.opt, "mu")
    np.testing.assert_array_equal(adam["up"]["bias"], old_adam["up"]["bias"])
    # The dense kernel is now the matrix's master weight: same entries, same moments.
    np.testing.assert_array_equal(adam["up"]["kernel"].weight, old_adam["up"]["kernel"])
    assert counts(new.opt) == {STEPS}


def test_new_parameters_have_moments_and_a_count_of_their_own():
    tx = optimizer()
    state, _ = run(params(), tx, ema=0.9)

    def compress(p, opt, key):
        return jaxlab.compress(p, RULES), None

    new = restructure(state, compress, tx, freeze=(), key=jax.random.key(0))
    old_mu = optax.tree.get(state.opt, "mu")
    kept, joined = (mu for _, mu in optax.tree.get_all_with_path(new.opt, "mu"))
    np.testing.assert_array_equal(kept["up"]["kernel"].weight, old_mu["up"]["kernel"])
    np.testing.assert_array_equal(kept["down"]["bias"], old_mu["down"]["bias"])
    assert {path for path, x in leaf_paths(joined).items() if not np.any(x)} == {
        "down/kernel/u",
        "down/kernel/v",
    }
    # Adam corrects the new ones' bias from the start; all others and the schedule go on.
    assert sorted(int(c) for _, c in optax.tree.get_all_with_path(new.opt, "count")) == [
        0,
        STEPS,
        STEPS,
    ]
    # The average of two decompositions would be the average of neither.
    jax.tree.map(np.testing.assert_array_equal, new.ema, new.trainable)


def test_a_matrix_that_becomes_dense_keeps_its_average():
    tx = optimizer()
    state, _ = run(params(RULES), tx, ema=0.9)

    def densify(p, opt, key):
        return {**p, "down": {**p["down"], "kernel": p["down"]["kernel"].to_dense()}}, None

    new = restructure(state, densify, tx, freeze=(), key=jax.random.key(0))
    average = state.ema["down"]["kernel"].to_dense()
    np.testing.assert_array_equal(new.ema["down"]["kernel"], average)
    np.testing.assert_array_equal(new.ema["down"]["bias"], state.ema["down"]["bias"])


def test_all_may_begin_anew_but_the_schedule():
    tx = optimizer()
    state, _ = run(params(), tx)

    def compress(p, opt, key):
        return jaxlab.compress(p, RULES), None

    new = restructure(state, compress, tx, freeze=(), key=jax.random.key(0), policy="reset_all")
    assert not any(np.any(x) for x in jax.tree.leaves(optax.tree.get(new.opt, "mu")))
    assert counts(new.opt) == {0, STEPS}


def test_a_square_kernel_of_full_rank_shares_no_buffer():
    """Both factors have the kernel's shape; neither may take its moments."""
    tx = optimizer()
    dense = {
        "up": {"kernel": jnp.eye(16), "bias": jnp.zeros(16)},
        "down": {"kernel": jnp.ones((16, 8)) / 8, "bias": jnp.zeros(8)},
    }
    state, _ = run(dense, tx, steps=1)

    def compress(p, opt, key):
        return jaxlab.compress(p, [("up/kernel", "low_rank", {"rank": 16})]), None

    new = restructure(state, compress, tx, freeze=(), key=jax.random.key(0))
    step = make_train_step(loss_fn, tx, steps=STEPS)
    jax.jit(step, donate_argnums=0)(new, batch(0))


def test_densify_keeps_the_moments_of_the_master():
    tx = optimizer()
    state, _ = run(params(RULES[:1]), tx, ema=0.5)

    def densify(p, opt, key):
        return {**p, "up": {**p["up"], "kernel": p["up"]["kernel"].to_dense()}}, None

    new = restructure(state, densify, tx, freeze=(), key=jax.random.key(0))
    old_mu = optax.tree.get(state.opt, "mu")["up"]["kernel"].weight
    np.testing.assert_array_equal(optax.tree.get(new.opt, "mu")["up"]["kernel"], old_mu)
    np.testing.assert_array_equal(new.ema["up"]["kernel"], state.ema["up"]["kernel"].to_dense())


def counts(opt):
    return {int(c) for _, c in optax.tree.get_all_with_path(opt, "count")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adamv"}, "did you mean 'adamw'"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"b3": 0.9}, "takes no 'b3'; did you mean 'b1'|takes no 'b3'; did you mean 'b2'"),
        ({"schedule": {"name": "cosine", "warmup": 2.0}}, "warmup=2.0"),
        ({"schedule": {"name": "cosin"}}, "did you mean 'cosine'"),
        ({"decay_paths": ((".*", 0.5),)}, "0 and 1"),
        ({"decay_paths": (".*kernel", 1.0)}, "needs a tuple around it"),
        ({"clip": "no"}, "clip='no'"),
    ],
)
def test_bad_optimizer_sections(changes, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**changes)


def test_bad_meshes_and_sharding_rules():
    with pytest.raises(ValueError, match="nearest: data=-1, model=2"):
        make_mesh(1, 3)
    mesh = make_mesh(1, 2)
    with pytest.raises(ValueError, match="valid axes: None, data, model"):
        param_specs(params(), [("up/kernel", ("modell",))], mesh)
    with pytest.raises(ValueError, match="mesh.rules: pattern 'u/kernel'"):
        param_specs(params(), [("u/kernel", ("model",))], mesh)
