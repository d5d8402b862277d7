"""N:M groups by saliency: the set of each group, near the end of float32 and beyond it."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac.obs_nm import obs_nm_step


def test_n_of_m_drops_the_set_of_least_saliency():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal(8), jnp.float32)
    grads = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)
    inverse = np.linalg.inv(1e-2 * np.eye(8) + np.asarray(grads).T @ np.asarray(grads) / 8)
    new, mask = obs_nm_step(w, grads, 2, 4, 1e-2, 0)
    for start in (0, 4):

        def rho(pair, start=start):
            q = start + np.array(pair)
            return np.asarray(w)[q] @ np.linalg.solve(inverse[np.ix_(q, q)], np.asarray(w)[q])

        best = min(itertools.combinations(range(4), 2), key=rho)
        assert tuple(np.flatnonzero(~np.asarray(mask)[start : start + 4])) == best
    assert np.all(np.asarray(new)[~np.asarray(mask)] == 0)


@pytest.mark.parametrize(("size", "is_told"), [(5e5, True), (5e7, False)])
def test_sets_beyond_the_precision_are_told_and_not_guessed(size, is_told):
    """`size` is |g|^2 / (m damp), with fewer gradients than weights and more than have any."""
    d, m, damp, active = 128, 64, 1e-5, 48
    rng = np.random.default_rng(0)
    alive = np.arange(d) % 4 < 3
    w = rng.standard_normal(d) * alive
    g = rng.standard_normal((m, d)) * alive * (np.arange(d) < active)
    g *= np.sqrt(size * m * damp / np.mean(np.sum(g**2, axis=1)))
    rho = w**2 / np.diag(np.linalg.inv(damp * np.eye(d) + g.T @ g / m))
    best = np.argmin(np.where(alive, rho, np.inf)[:active].reshape(-1, 4), axis=1)
    given = [jnp.asarray(x, jnp.float32) for x in (w, g)]
    how = {"mask": jnp.asarray(alive), "living": 3}
    for update in (True, False):
        new, mask = obs_nm_step(*given, 2, 4, damp, 0, update=update, **how)
        assert bool(jnp.isfinite(new).all()) == is_told
        if is_told:
            went = (alive & ~np.asarray(mask))[:active].reshape(-1, 4)
            np.testing.assert_array_equal(np.argmax(went, axis=1), best)
