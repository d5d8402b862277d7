"""Pruning by saliency: hand cases, quadratics whose loss is known, counts, and what stays dead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac.blocks import block_diag, block_factor
from jaxlab.optim.mfac.factor import static_diag, static_factor
from jaxlab.optim.mfac.obs import obs_prune_step, obs_saliency, obs_update

HAND = jnp.array([[1.0, 0.0], [1.0, 1.0]])


def quadratic(d, seed=0):
    """H, and gradients whose Fisher matrix it is."""
    a = np.random.default_rng(seed).standard_normal((d, d))
    h = a @ a.T / d + 0.2 * np.eye(d)
    return h, np.sqrt(d) * np.linalg.cholesky(h).T


def problem(m=12, d=24, seed=0):
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.standard_normal(d), jnp.float32)
    return w, jnp.ones(d, bool), jnp.asarray(rng.standard_normal((m, d)), jnp.float32)


def test_hand_case():
    f = static_factor(HAND, 1.0)
    rho = obs_saliency(jnp.ones(2), static_diag(f))
    np.testing.assert_allclose(rho, [0.9166667, 0.6875], rtol=1e-6)
    np.testing.assert_allclose(obs_update(jnp.ones(2), f, rho < 0.7), [1.25, 0.0], rtol=1e-6)
    w, mask = obs_prune_step(jnp.ones(2), jnp.ones(2, bool), HAND, 1, 1.0, 0)
    np.testing.assert_allclose(w, [1.25, 0.0], rtol=1e-6)
    assert mask.tolist() == [True, False]


def test_on_a_quadratic_the_loss_rises_by_the_saliency():
    h, g = quadratic(8)
    w = np.random.default_rng(1).standard_normal(8)
    with jax.enable_x64(True):
        f = static_factor(jnp.asarray(g), 1e-9)
        rho = np.asarray(obs_saliency(jnp.asarray(w), static_diag(f)))
        for k in range(8):
            drop = jnp.arange(8) == k
            moved = np.asarray(obs_update(jnp.asarray(w), f, drop)) - w
            np.testing.assert_allclose(moved @ h @ moved / 2, rho[k], rtol=1e-6)


@pytest.mark.parametrize("block", [0, 6])
def test_a_joint_update_is_exact_and_never_worse_than_the_sum(block):
    h, g = quadratic(12)
    if block:
        number = np.arange(12) // block
        h = np.where(number[:, None] == number[None], h, 0)
    w = np.random.default_rng(1).standard_normal(12)
    with jax.enable_x64(True):
        # Blocks of 12 keep the factor with fewer gradients, dense inverses with as many.
        f = block_factor(jnp.asarray(g), 1e-9, block)
        for seed in range(4):
            drop = np.random.default_rng(seed).random(12) < 0.4
            rises = []
            for joint in (True, False):
                new = obs_update(jnp.asarray(w), f, jnp.asarray(drop), joint=joint)
                moved = np.asarray(new) - w
                rises.append(moved @ h @ moved / 2)
            # The least of the loss over all weights that are 0 where dropped.
            inside = np.linalg.inv(h)[np.ix_(drop, drop)]
            least = w[drop] @ np.linalg.solve(inside, w[drop]) / 2
            np.testing.assert_allclose(rises[0], least, rtol=1e-5)
            assert rises[0] <= rises[1] + 1e-12


def test_a_joint_update_by_the_factor_is_that_by_the_inverse():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        g, w = jnp.asarray(rng.standard_normal((5, 9))), jnp.asarray(rng.standard_normal(9))
        drop = jnp.asarray(rng.random(9) < 0.5)
        by_factor = obs_update(w, static_factor(g, 0.1), drop, joint=True)
        same = jnp.concatenate([g, jnp.zeros((4, 9))]) * jnp.sqrt(9 / 5)
        by_inverse = obs_update(w, block_factor(same, 0.1, 0), drop, joint=True)
        np.testing.assert_allclose(by_factor, by_inverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("block", "group"), [(0, 1), (8, 1), (8, 4), (0, 2)])
def test_counts_are_exact_and_the_dead_stay_dead(block, group):
    w, mask, grads = problem()
    alive = 24
    for n_drop in (8, 4, 8, 0, 4):
        w, mask = obs_prune_step(w, mask, grads, n_drop, 1e-3, block, group)
        alive -= n_drop
        assert int(mask.sum()) == alive
        assert np.all(np.asarray(w)[~np.asarray(mask)] == 0)
        members = np.asarray(mask).reshape(-1, group).sum(axis=1)
        assert set(members) <= {0, group}
    assert bool(jnp.all(jnp.isfinite(w)))


def test_pruned_weights_take_no_part_whatever_their_gradients_are():
    w, mask, grads = problem()
    w, mask = obs_prune_step(w, mask, grads, 10, 1e-3, 4)
    dead = ~np.asarray(mask)
    loud = jnp.where(jnp.asarray(dead)[None], 1e3, grads)
    for a, b in zip(
        obs_prune_step(w, mask, grads, 4, 1e-3, 4),
        obs_prune_step(w, mask, loud, 4, 1e-3, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    # Blocks are of the living: the same as if the dead had never been there.
    alone, _ = obs_prune_step(w[~dead], mask[~dead], grads[:, ~dead], 4, 1e-3, 4)
    kept, _ = obs_prune_step(w, mask, grads, 4, 1e-3, 4)
    np.testing.assert_allclose(kept[~dead], alone, rtol=1e-5, atol=1e-6)


def test_equal_saliencies_go_by_index_and_silent_weights_first():
    w, mask = jnp.ones(6), jnp.ones(6, bool)
    grads = jnp.array([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]])
    _, mask = obs_prune_step(w, mask, grads, 2, 1e-2, 1)
    assert mask.tolist() == [True, False, True, False, True, True]


def test_without_the_update_the_others_stay():
    w, mask, grads = problem()
    new, kept = obs_prune_step(w, mask, grads, 9, 1e-3, 8, update=False)
    np.testing.assert_array_equal(new, jnp.where(kept, w, 0))
    moved, same = obs_prune_step(w, mask, grads, 9, 1e-3, 8)
    np.testing.assert_array_equal(same, kept)
    assert float(jnp.abs(moved - new).max()) > 1e-3


def test_a_group_of_two_is_chosen_by_its_joint_saliency():
    w, mask, grads = problem(m=8, d=8)
    inverse = np.linalg.inv(1e-2 * np.eye(8) + np.asarray(grads).T @ np.asarray(grads) / 8)
    rho = [
        np.asarray(w)[i : i + 2] @ np.linalg.solve(inverse[i : i + 2, i : i + 2], w[i : i + 2]) / 2
        for i in range(0, 8, 2)
    ]
    _, kept = obs_prune_step(w, mask, grads, 2, 1e-2, 0, 2)
    assert np.argmin(rho) == np.flatnonzero(~np.asarray(kept))[0] // 2


@pytest.mark.parametrize("is_known", [True, False])
def test_the_group_that_matters_most_is_not_taken_for_the_cheapest(is_known):
    """Fewer weights live than there are gradients, and those are far above the damping."""
    d, m, alive, damp = 256, 128, 32, 1e-5
    rng = np.random.default_rng(0)
    g = rng.standard_normal((m, d)) * np.where(np.arange(d) < 4, 10.0, 1.0)
    w = rng.standard_normal(d) * np.where(np.arange(d) < 4, 3.0, 1.0) * (np.arange(d) < alive)
    fisher = damp * np.eye(alive) + g[:, :alive].T @ g[:, :alive] / m
    inverse = np.linalg.inv(fisher)
    pairs = w[:alive].reshape(-1, 1, 2)
    tiles = [inverse[i : i + 2, i : i + 2] for i in range(0, alive, 2)]
    rho = [float((x @ np.linalg.solve(t, x.T))[0, 0]) for x, t in zip(pairs, tiles, strict=True)]
    step = lambda mask: obs_prune_step(  # noqa: E731
        jnp.asarray(w, jnp.float32), mask, jnp.asarray(g, jnp.float32), 8, damp, 0, 2
    )
    # A mask that nobody knows leaves the factor of all 256; one that is known a dense inverse.
    new, mask = (step if is_known else jax.jit(step))(jnp.arange(d) < alive)
    dropped = np.flatnonzero(~np.asarray(mask)[:alive:2])
    assert sorted(np.argsort(np.argsort(rho))[dropped]) == [0, 1, 2, 3]
    assert bool(jnp.isfinite(new).all())


def test_a_choice_among_unknown_saliencies_is_not_passed_on():
    w, mask, grads = problem(m=4, d=8)
    grads = grads.at[0, 0].set(jnp.nan)
    for update in (True, False):
        # One block of two groups has no numbers: the two others go before them.
        new, kept = obs_prune_step(w, mask, grads, 4, 1e-3, 4, 2, update=update)
        assert kept.tolist() == [True] * 4 + [False] * 4
        assert bool(jnp.isfinite(new[4:]).all())
        new, kept = obs_prune_step(w, mask, grads, 6, 1e-3, 4, 2, update=update)
        assert int(kept.sum()) == 2
        assert not bool(jnp.isfinite(new[kept]).any())


def test_a_traced_count_gives_what_a_fixed_one_does():
    w, mask, grads = problem()
    step = jax.jit(lambda n: obs_prune_step(w, mask, grads, n, 1e-3, 8))
    for n in (3, 11):
        np.testing.assert_array_equal(step(n)[1], obs_prune_step(w, mask, grads, n, 1e-3, 8)[1])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_drop": 25}, "n_drop=25 is more than the 24"),
        ({"n_drop": 3, "group": 2}, "n_drop=3 must be a multiple of group=2; nearest: 4"),
        ({"group": 5}, "group=5 must divide the 24 weights"),
        ({"mask": jnp.ones(3, bool)}, "mask of"),
        ({"mask": jnp.arange(24) > 0, "group": 2}, "mask has groups of 2 that live in part"),
        ({"damp": 0.0}, "damp=0.0"),
    ],
)
def test_what_is_refused(changes, match):
    w, mask, grads = problem()
    arguments = {"w": w, "mask": mask, "grads": grads, "n_drop": 2, "damp": 1e-3, "block": 8}
    with pytest.raises(ValueError, match=match):
        obs_prune_step(**{**arguments, **changes})


def test_sizes_of_an_update_are_checked():
    f = block_factor(jnp.ones((2, 4)), 1.0, 2)
    assert block_diag(f).shape == (4,)
    with pytest.raises(ValueError, match=r"must be of \(4,\)"):
        obs_update(jnp.ones(3), f, jnp.ones(3, bool))
