"""What a run asks of the matrices of a tree: every one is asked, nested ones with their path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlab
from jaxlab.core.lifecycle import diagnose, matrices, supports, weight_decays
from jaxlab.core.match import leaf_paths
from jaxlab.optim.chain import add_decoupled_decay, hold_moments

NESTED = [
    ("up", "low_rank", {"rank": 8}),
    ("up/u", "nm", {"n": 1, "m": 4, "recipe": "asp", "total_steps": 10}),
    (
        "up/v",
        "nm",
        {"n": 1, "m": 4, "recipe": "srste", "srste_mode": "decoupled", "lam": 0.5},
    ),
]


@pytest.fixture
def tree():
    params = {"up": jax.random.normal(jax.random.key(0), (16, 12)), "bias": jnp.ones(12)}
    return jaxlab.compress(params, NESTED)


def test_matrices_are_found_at_any_depth(tree):
    assert [type(w).name for w in matrices(tree).values()] == ["low_rank", "nm", "nm"]
    assert list(matrices(tree)) == ["up", "up/u", "up/v"]


def test_factors_are_scheduled_advanced_and_held(tree):
    later = jnp.float32(0.5)
    assert supports(tree, later).keys() == {"up/u/weight"}
    assert weight_decays(tree, later).keys() == {"up/v/weight"}
    # A fixed mask came into effect at once: the first step already leaves zeros.
    moved = jaxlab.advance(tree, later)
    mask = moved["up"].u.mask
    assert (moved["up"].u.weight[~mask] == 0).all()
    np.testing.assert_array_equal(moved["up"].v.weight, tree["up"].v.weight)
    np.testing.assert_array_equal(jaxlab.at(moved, later)["up"].u.to_dense(), moved["up"].u.weight)


def test_decay_of_a_factor_reaches_its_updates(tree):
    now = jnp.float32(0.5)
    decay = weight_decays(tree, now)
    trainable, _ = jaxlab.partition(tree, jaxlab.trainable_mask(tree))
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    tx = add_decoupled_decay()
    updates, _ = tx.update(zeros, tx.init(trainable), trainable, decay=decay)
    v = tree["up"].v
    pruned = ~v.at(now).mask
    np.testing.assert_allclose(updates["up"].v.weight, jnp.where(pruned, -0.5 * v.weight, 0.0))
    assert (updates["up"].u.weight == 0).all()
    unchanged, _ = tx.update(zeros, tx.init(trainable), trainable)
    assert unchanged is zeros


def test_moments_are_held_by_path_and_shape():
    params = {"a": {"w": jnp.ones((2, 2))}, "b": {"a": {"w": jnp.ones((2, 2))}}}
    opt = jax.tree.map(lambda x: x + 1, optax.adam(1.0).init(params))
    alive = jnp.array([[True, False], [False, True]])
    for path, other in (("b/a/w", "a/w"), ("a/w", "b/a/w")):  # the one path ends in the other
        held = hold_moments(opt, {path: alive}, params)
        for moment in (held[0].mu, held[0].nu):
            np.testing.assert_array_equal(leaf_paths(moment)[path], alive)
            np.testing.assert_array_equal(leaf_paths(moment)[other], jnp.ones((2, 2)))
    assert hold_moments(opt, {}, params) is opt


def test_diagnostics_carry_the_path(tree):
    quantities = {"grad_abs": {"up/u/weight": jnp.ones((16, 8)), "bias": jnp.ones(12)}}
    changed = {**tree, "up": dataclasses.replace(tree["up"], v=jaxlab.to_dense(tree["up"].v))}
    assert matrices(changed).keys() == {"up", "up/u"}
    found = diagnose(tree, tree, quantities, jnp.float32(0.1), jnp.float32(0.2))
    assert found["up/u/grad_abs_kept"] == found["up/u/grad_abs_pruned"] == 1
    assert found["up/u/flip_rate"] == 0
    assert "up/v/flip_rate" in found
    root = diagnose(tree["up"].v, tree["up"].v, {"nu": {"weight": jnp.ones((8, 12))}}, 0.1, 0.2)
    assert root["nu_kept"] == 1
    assert "up/v/grad_abs_kept" not in found
