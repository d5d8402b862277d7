"""M-FAC across a phase that prunes: the window forgets what died, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.optim.chain import make_optimizer
from jaxlab.optim.mfac import MfacState
from jaxlab.training.state import init_state, restructure

M, DAMP, SHAPE = 4, 0.05, (6, 4)


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def gradient(step):
    # A mean far above the spread: rows have much in common, also at what dies.
    rng = np.random.default_rng(step)
    return {"bias": 1 + rng.standard_normal(4), "kernel": 1 + rng.standard_normal(SHAPE)}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def prune(params, opt, key):
    return jaxlab.compress(params, [("kernel", "sparse", {"sparsity": 0.5})]), None


@pytest.mark.parametrize("compressed", [False, True])
def test_the_updates_after_a_pruning_are_those_of_what_lives(compressed):
    section = {"name": "mfac", "lr": 1.0, "m": M, "damp": DAMP, "schedule": {"name": "constant"}}
    # All entries are kept, so that both kinds of rows are the same ones.
    section |= {"density": 0.999, "block": 8} if compressed else {}
    tx, _ = make_optimizer(section, steps=10)
    rng = np.random.default_rng(99)
    params = {"kernel": rng.standard_normal(SHAPE), "bias": np.ones(4)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state, update = init_state(params, tx, freeze=(), ema=0.0), jax.jit(tx.update)
    seen = []
    for step in range(M):
        seen.append(gradient(step))
        _, opt = update(jax.tree.map(jnp.float32, seen[-1]), state.opt, params)
        state = dataclasses.replace(state, opt=opt)
    new = restructure(state, prune, tx, freeze=(), key=jax.random.key(0))
    mask = np.asarray(new.params["kernel"].mask)
    assert mask.sum() == 12
    everything = flat({"bias": np.ones(4, bool), "kernel": mask})
    opt = new.opt
    for step in range(M, 2 * M):
        g = gradient(step)
        g["kernel"] = g["kernel"] * mask
        seen.append(g)
        rows = np.stack([flat(x) for x in seen[-M:]]) * everything
        expected = -np.linalg.solve(DAMP * np.eye(28) + rows.T @ rows / M, flat(g))
        given = jax.tree.unflatten(
            jax.tree.structure(new.trainable), [jnp.asarray(g[n], jnp.float32) for n in sorted(g)]
        )
        updates, opt = update(given, opt, new.trainable)
        np.testing.assert_allclose(flat(updates), expected, rtol=1e-3, atol=1e-4)
    is_state = lambda x: isinstance(x, MfacState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt, is_leaf=is_state) if is_state(x)]
    assert int(found[0].window.count) == 2 * M
