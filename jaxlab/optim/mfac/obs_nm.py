"""Optimal Brain Surgeon in N:M groups: of every m weights the set goes that the loss misses least.

Source: E. Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022, for sets of weights that are
chosen and dropped as one; the rest as in `obs`.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from jaxlab.optim.mfac.blocks import block_factor, block_groups
from jaxlab.optim.mfac.factor import check_gradients
from jaxlab.optim.mfac.obs import joint_saliency, obs_update, refuse_unknown

# Sets of weights of a group that are compared with each other, one after another.
_MOST_SETS = 4096


def obs_nm_step(
    w: jax.Array,
    grads: jax.Array,
    n: int,
    m: int,
    damp: jax.Array | float,
    block: int,
    *,
    mask: jax.Array | None = None,
    living: int | None = None,
    update: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """N:M sparsity: of every m consecutive weights, drops the set with least saliency.

    Args:
      w: (d,), the weights; m divides d.
      grads: (gradients, d).
      n: kept of every m.
      m: group size; divides `block`.
      damp: lambda, positive.
      block: width of the Fisher matrix's blocks; 0 for one block of everything.
      mask: (d,) booleans, what lives; None is all.
      living: how many of every m live in `mask`.
      update: whether the others make up for what is dropped.

    Returns:
      The new weights and their mask, n of every m true. Of equal sets the first is dropped. The
      weights are NaN if a group has no set of finite saliency.

    Raises:
      ValueError: sizes do not fit, or there are more than 4096 sets of weights to drop; smaller
        steps have fewer.

    >>> w, mask = obs_nm_step(jnp.array([1.0, 3.0, 2.0, 4.0]), jnp.eye(4), 2, 4, 1.0, 0)
    >>> mask.tolist()
    [False, True, False, True]
    """
    living = m if living is None else living
    if not 1 <= n < living <= m or w.shape[0] % m:
        raise ValueError(
            f"obs_nm_step: n={n} must be in [1, {living}), what lives of every m={m}, and m "
            f"divide the {w.shape[0]} weights"
        )
    check_nm_sets("obs_nm_step", m, living - n)
    check_gradients("obs_nm_step", grads, damp)
    mask = jnp.ones(w.shape, bool) if mask is None else mask
    if mask.shape != w.shape:
        raise ValueError(f"obs_nm_step: mask of {mask.shape} does not fit w of {w.shape}")
    return _nm_step(w, mask, grads, living - n, m, damp, block, update)


def check_nm_sets(owner: str, m: int, dropped: int) -> None:
    """Raises a ValueError where so many sets of `dropped` weights of m are too many to compare."""
    if math.comb(m, dropped) > _MOST_SETS:
        fewer = max(k for k in range(1, dropped) if math.comb(m, k) <= _MOST_SETS)
        raise ValueError(
            f"{owner}: dropping {dropped} of every {m} compares {math.comb(m, dropped)} sets, more "
            f"than {_MOST_SETS}; nearest: {fewer} at once, in several steps"
        )


@functools.partial(jax.jit, static_argnums=(3, 4, 6, 7))
def _nm_step(w, mask, grads, dropped, m, damp, block, update):
    f = block_factor(jnp.where(mask[None], grads, 0), damp, block)
    w = jnp.where(mask, w, 0)
    inverse, parts = block_groups(f, m), w.astype(f.damp.dtype).reshape(-1, m)
    alive = mask.reshape(-1, m)
    sets = jnp.asarray(list(itertools.combinations(range(m), dropped)), jnp.int32)

    def saliency(q: jax.Array) -> jax.Array:
        rho = joint_saliency(inverse[:, q][:, :, q], parts[:, q])
        return jnp.where(jnp.all(alive[:, q], axis=1), rho, jnp.inf)

    rho = jax.lax.map(saliency, sets)
    best = sets[jnp.argmin(rho, axis=0)]
    drop = jnp.any(jax.nn.one_hot(best, m, dtype=bool), axis=1).reshape(-1)
    left = mask & ~drop
    w = refuse_unknown(w, jnp.min(rho, axis=0))
    if update:
        w = obs_update(w, f, drop, group=m)
    return jnp.where(left, w, 0).astype(w.dtype), left
