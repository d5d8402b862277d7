"""MKOR inside optax's wrappers, against plain MKOR, resumed, and told its statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxlab.optim.mkor import init_taps, merge_stats, mkor, scale_by_eva, value_grad_stats
from jaxlab.optim.observing import statistics_of, wrapped


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


PARAMS = {
    "up": {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.ones(3)},
    "scale": jnp.ones(2),
}
SGD = functools.partial(optax.sgd, momentum=0.9)
PLAIN = mkor(0.1, SGD, gamma=0.9, update_every=2)


def loss_fn(params, x):
    y = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"][None, :]) * params["scale"][0]
    return jnp.mean(y**2) + jnp.sum(params["scale"] ** 2)


@functools.cache
def stream():
    """Gradients and statistics of four batches."""
    step = jax.jit(value_grad_stats(loss_fn))
    rng = np.random.default_rng(0)
    batches = np.float32(rng.normal(1, 1, size=(4, 8, 4)))
    return [step(PARAMS, init_taps(PARAMS), x)[1:] for x in batches]


@functools.cache
def compiled(tx):
    return jax.jit(lambda grads, state, stats: tx.update(grads, state, PARAMS, stats=stats))


def run(tx, steps, state=None):
    """The updates of every step, and the last state."""
    state, seen = tx.init(PARAMS) if state is None else state, []
    for grads, stats in steps:
        updates, state = compiled(tx)(grads, state, stats)
        seen.append(updates)
    return seen, state


def plain(steps):
    return run(PLAIN, steps)[0]


def clipped(steps):
    """What `clip_by_global_norm` leaves of the gradients."""
    norms = [float(optax.tree.norm(grads)) for grads, _ in steps]
    assert max(norms) > 0.5
    cut = lambda norm: lambda g: g * min(1, 0.5 / norm)  # noqa: E731
    return [(jax.tree.map(cut(n), g), s) for n, (g, s) in zip(norms, steps, strict=True)]


def raw_scale(steps):
    return [{**u, "scale": g["scale"]} for u, (g, _) in zip(plain(steps), steps, strict=True)]


def slow_scale(steps):
    return [
        {**u, "scale": -0.2 * g["scale"]} for u, (g, _) in zip(plain(steps), steps, strict=True)
    ]


def in_pairs(steps):
    """Every second call is one of plain MKOR with the mean of two gradients."""
    grads = [jax.tree.map(lambda a, b: (a + b) / 2, steps[i][0], steps[i + 1][0]) for i in (0, 2)]
    first, second = plain([(grads[0], steps[1][1]), (grads[1], steps[3][1])])
    none = jax.tree.map(jnp.zeros_like, first)
    return [none, first, none, second]


def labels(tree):
    return {k: {"up": "second", "scale": "first"}[k] for k in tree}


WRAPPED = {
    "chain": (
        optax.chain(optax.clip_by_global_norm(0.5), PLAIN),
        lambda steps: plain(clipped(steps)),
    ),
    "masked": (optax.masked(PLAIN, {"up": True, "scale": False}), raw_scale),
    "multi": (
        optax.multi_transform({"second": PLAIN, "first": optax.sgd(0.2)}, labels),
        slow_scale,
    ),
    "hyper": (
        optax.inject_hyperparams(mkor, static_args=("inner", "max_dim"))(
            0.1, SGD, gamma=0.9, update_every=2
        ),
        plain,
    ),
    "parts": (wrapped(optax.MultiSteps(PLAIN, 2), PLAIN), in_pairs),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_changes_nothing_else(name):
    tx, expected = WRAPPED[name]
    for got, want in zip(run(tx, stream())[0], expected(stream()), strict=True):
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)
    assert compiled(tx)._cache_size() == 1


@pytest.mark.parametrize("name", [*WRAPPED, "eva"])
def test_resumed_bit_for_bit(name, tmp_path):
    eva = optax.chain(scale_by_eva(), optax.sgd(0.1))
    tx = eva if name not in WRAPPED else WRAPPED[name][0]
    straight, last = run(tx, stream())
    _, state = run(tx, stream()[:3])
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(tmp_path / "state", state)
    # Where arrays have been told to live is no part of them, and would compile the step anew.
    again = run(tx, stream()[3:], jax.tree.map(np.asarray, restored))
    jax.tree.map(np.testing.assert_array_equal, again, (straight[3:], last))


def test_multi_steps_with_merged_statistics_is_the_whole_batch():
    steps = stream()[:2]
    merged = merge_stats([stats for _, stats in steps])
    grads = jax.tree.map(lambda a, b: (a + b) / 2, steps[0][0], steps[1][0])
    parts = [steps[0], (steps[1][0], merged)]
    got = run(WRAPPED["parts"][0], parts)[0][1]
    chex.assert_trees_all_close(got, plain([(grads, merged)])[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "outer",
    [
        optax.chain(optax.clip(1.0), PLAIN),
        optax.masked(PLAIN, {"up": True, "scale": False}),
        optax.MultiSteps(PLAIN, 2),
    ],
)
def test_a_wrapper_that_hides_what_is_wanted_is_told_so_and_cured(outer):
    grads, stats = stream()[0]
    assert statistics_of(outer) is None
    with pytest.raises(ValueError, match=r"argument stats=; .*observing\.wrapped\(wrapper, rule\)"):
        # MultiSteps calls it in a branch, which is traced.
        jax.eval_shape(outer.update, grads, outer.init(PARAMS), PARAMS)
    cured = wrapped(outer, PLAIN)
    wanted = statistics_of(cured)
    assert wanted is not None
    assert {path: t.a.shape for path, t in wanted.init(PARAMS).items()} == {"up/kernel": (5,)}
    step = functools.partial(cured.update, grads, cured.init(PARAMS), PARAMS)
    assert jax.eval_shape(step, stats=stats)[0]["up"]["kernel"].shape == (4, 3)
