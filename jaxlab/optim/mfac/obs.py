"""Optimal Brain Surgeon: which weights the loss misses least, and how the others make up for them.

Sources: B. Hassibi and D. Stork, "Second order derivatives for network pruning: Optimal Brain
Surgeon", NeurIPS 1992; E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free
Approximations of Second-Order Information", NeurIPS 2021, with the empirical Fisher matrix in the
place of the Hessian; E. Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022, for groups.

Differs from the authors' code: counts are exact, of equal saliencies the first goes, and the Fisher
matrix is that of all gradients that it is divided by.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlab.core.selection import lowest
from jaxlab.optim.mfac.blocks import (
    BlockFactor,
    block_diag,
    block_factor,
    block_groups,
    block_ihvp,
    split_blocks,
)
from jaxlab.optim.mfac.factor import FisherFactor, check_gradients

_HIGHEST = jax.lax.Precision.HIGHEST


def obs_saliency(w: jax.Array, diag: jax.Array) -> jax.Array:
    """`w^2 / (2 diag)`: by how much the loss rises without a weight, once the others have adapted.

    Args:
      w: (d,), the weights.
      diag: (d,), the diagonal of F^-1, positive.

    >>> obs_saliency(jnp.array([1.0, 1.0]), jnp.array([0.5, 1.0])).tolist()
    [1.0, 0.5]
    """
    return jnp.square(w.astype(diag.dtype)) / (2 * diag)


def obs_update(
    w: jax.Array,
    factor: FisherFactor | BlockFactor,
    drop_mask: jax.Array,
    *,
    joint: bool = False,
    group: int = 1,
) -> jax.Array:
    """The weights after some are dropped: those at 0, the others moved to make up for them.

    Args:
      w: (d,), the weights.
      factor: of F^-1.
      drop_mask: (d,) booleans.
      joint: whether the weights of a block are dropped as one set. False adds up the updates that
        dropping each group alone would need, which is what M-FAC does.
      group: c; weights of c consecutive coordinates are dropped together, as one set.

    Returns:
      (d,), of w's dtype, exactly 0 where dropped.

    Raises:
      ValueError: sizes do not fit.

    >>> f = block_factor(jnp.array([[1.0, 0.0], [1.0, 1.0]]), 1.0, 0)
    >>> obs_update(jnp.ones(2), f, jnp.array([False, True])).tolist()
    [1.25, 0.0]
    """
    f = _as_blocks(factor)
    if w.shape != (f.size,) or drop_mask.shape != w.shape:
        raise ValueError(
            f"obs_update: w of {w.shape} and drop_mask of {drop_mask.shape} must be of ({f.size},)"
        )
    return _update(w, f, drop_mask, joint, group)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _update(
    w: jax.Array, f: BlockFactor, drop_mask: jax.Array, joint: bool, group: int
) -> jax.Array:
    dropped = jnp.where(drop_mask, w.astype(f.damp.dtype), 0)
    if joint:
        t = _joint(f, dropped, drop_mask)
    elif group == 1:
        t = dropped / block_diag(f)
    else:
        parts = dropped.reshape(-1, group)
        t = _solve(block_groups(f, group), parts, drop_mask.reshape(-1, group)).reshape(-1)
    moved = w.astype(t.dtype) - block_ihvp(f, t)
    return jnp.where(drop_mask, 0, moved).astype(w.dtype)


def obs_prune_step(
    w: jax.Array,
    mask: jax.Array,
    grads: jax.Array,
    n_drop: int | jax.Array,
    damp: jax.Array | float,
    block: int,
    group: int = 1,
    *,
    joint: bool = False,
    update: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Drops the weights of least saliency, and moves those that live on.

    The Fisher matrix is that of the living weights, in blocks of consecutive ones: what is dead
    takes no part, and stays 0.

    Args:
      w: (d,), the weights.
      mask: (d,) booleans, what lives; of a group all or nothing, which is checked unless traced.
      grads: (m, d), gradients of m mini-batches' mean losses at w.
      n_drop: how many weights to drop, a multiple of `group`.
      damp: lambda, positive.
      block: width of the Fisher matrix's blocks; 0 for one block of everything.
      group: c; c consecutive weights live or die together.
      joint: see `obs_update`.
      update: False only drops, and leaves the other weights as they are.

    Returns:
      The new weights and the new mask, with exactly n_drop weights fewer. The weights are NaN if
      some had to be dropped whose saliency is not finite: a gradient is not, or damp is too small.

    Raises:
      ValueError: sizes do not fit, a group lives in part, or n_drop is more than what lives.

    >>> g = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> w, mask = obs_prune_step(jnp.ones(2), jnp.ones(2, bool), g, 1, 1.0, 0)
    >>> w.tolist(), mask.tolist()
    ([1.25, 0.0], [True, False])
    """
    check_gradients("obs_prune_step", grads, damp)
    _check_step(w, mask, grads, n_drop, block, group)
    block = _narrowed(mask, grads.shape[0], block, group)
    return _step(w, mask, grads, n_drop, damp, block, group, joint, update)


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _step(w, mask, grads, n_drop, damp, block, group, joint, update):
    d = w.shape[0]
    alive = jnp.any(mask.reshape(-1, group), axis=1)
    # The living first, in their order: blocks are then of living weights, and every step has the
    # shapes of the first. Coordinates without gradients at the end couple to nothing.
    place = _places(alive)
    order = jnp.zeros_like(place).at[place].set(jnp.arange(d // group, dtype=jnp.int32))
    index = _spread(order, group)
    w_sorted, mask_sorted = jnp.where(mask, w, 0)[index], mask[index]
    f = block_factor(jnp.where(mask[None], grads, 0)[:, index], damp, block)
    if group == 1:
        scores = obs_saliency(w_sorted, block_diag(f))
    else:
        parts = w_sorted.astype(f.damp.dtype).reshape(-1, group)
        scores = joint_saliency(block_groups(f, group), parts)
    # Of infinite ones the first go, and those live.
    scores = jnp.where(alive[order], scores, jnp.inf)
    fewest = lowest(scores, jnp.asarray(n_drop, jnp.int32) // group)
    drop = jnp.repeat(fewest, group)
    w_sorted = refuse_unknown(w_sorted, jnp.where(fewest, scores, 0))
    if update:
        w_sorted = obs_update(w_sorted, f, drop, joint=joint, group=group)
    mask_sorted = mask_sorted & ~drop
    w_sorted = jnp.where(mask_sorted, w_sorted, 0)
    back = _spread(place, group)
    return w_sorted[back].astype(w.dtype), mask_sorted[back]


def _narrowed(mask: jax.Array, m: int, block: int, group: int) -> int:
    """The width of blocks, or one that holds all that lives where that is inverted densely.

    It is the same matrix, without the cancellation in the factor of a wider block.
    """
    dense = m // group * group
    if isinstance(mask, Tracer) or 0 < block <= dense or np.sum(mask) > dense:
        return block
    return dense


def _as_blocks(f: FisherFactor | BlockFactor) -> BlockFactor:
    if isinstance(f, BlockFactor):
        return f
    return BlockFactor(None, f.z[None], f.damp, f.z.shape[1])


def _solve(inverse: jax.Array, w: jax.Array, chosen: jax.Array) -> jax.Array:
    """`(F^-1[Q, Q])^-1 w_Q` for the chosen Q of every block, 0 elsewhere.

    inverse: (k, b, b); w, chosen: (k, b).
    """
    both = chosen[:, :, None] & chosen[:, None, :]
    eye = jnp.eye(inverse.shape[-1], dtype=inverse.dtype)[None]
    # What is not chosen gets an equation of its own, t = 0.
    system = jnp.where(both, inverse, eye)
    return solve_positive(system, jnp.where(chosen, w, 0))


def solve_positive(a: jax.Array, b: jax.Array) -> jax.Array:
    """a^-1 b by Cholesky's factors for every block, NaN where rounding left `a` indefinite.

    a: (k, c, c); b: (k, c). Other factorisations would answer with a negative saliency there.
    """
    solve = lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b)  # noqa: E731
    return jax.vmap(solve)(a, b)


def joint_saliency(tiles: jax.Array, w: jax.Array) -> jax.Array:
    """`w_Q^T (F^-1[Q, Q])^-1 w_Q / 2` for sets Q, infinite where rounding left it no number.

    tiles: (k, c, c), the parts of F^-1; w: (k, c). An indefinite tile is that of a set whose
    weights matter more than the precision can tell: it must be the last to go, not the first.
    """
    rho = jnp.sum(w * solve_positive(tiles, w), axis=1) / 2
    return jnp.where(rho >= 0, rho, jnp.inf)


def refuse_unknown(w: jax.Array, chosen: jax.Array) -> jax.Array:
    """The weights, or NaN if any saliency of what was chosen is not finite: nobody knew better."""
    return jnp.where(jnp.all(jnp.isfinite(chosen)), w, jnp.nan)


def _joint(f: BlockFactor, dropped: jax.Array, drop_mask: jax.Array) -> jax.Array:
    parts, chosen = split_blocks(f, dropped), split_blocks(f, drop_mask) != 0
    if f.inverse is not None:
        return _solve(f.inverse, parts, chosen).reshape(-1)[: f.size]
    assert f.z is not None

    def solve(z: jax.Array, w: jax.Array, q: jax.Array) -> jax.Array:
        # (I - z_Q^T z_Q)^-1 by the identity of Woodbury: a system of m equations, not of |Q|.
        z = jnp.where(q[None], z, 0)
        small = jnp.eye(z.shape[0], dtype=z.dtype) - jnp.matmul(z, z.T, precision=_HIGHEST)
        inside = jnp.linalg.solve(small, jnp.matmul(z, w, precision=_HIGHEST))
        return f.damp * (w + jnp.matmul(inside, z, precision=_HIGHEST))

    return jax.vmap(solve)(f.z, parts, chosen).reshape(-1)[: f.size]


def _places(alive: jax.Array) -> jax.Array:
    """Where each goes if the living come first: two running counts, and no sort."""
    living = jnp.cumsum(alive, dtype=jnp.int32)
    dead = jnp.cumsum(~alive, dtype=jnp.int32)
    return jnp.where(alive, living - 1, living[-1] + dead - 1)


def _spread(groups: jax.Array, group: int) -> jax.Array:
    """Indices of groups as indices of their members."""
    members = jnp.arange(group, dtype=groups.dtype)
    return (groups[:, None] * group + members[None]).reshape(-1)


def check_groups(owner: str, mask: jax.Array, group: int) -> None:
    """Raises a ValueError for a known mask, (d,), under which a group lives in part.

    Such a group would count as a whole one, and a step would drop fewer weights than it was told.
    """

    def is_whole(c: int) -> bool:
        # NumPy, because a known mask may stand inside a program that is traced.
        members = np.asarray(mask).reshape(-1, c)
        return bool(np.all(members.all(axis=1) == members.any(axis=1)))

    if not isinstance(mask, Tracer) and not is_whole(group):
        nearest = max(c for c in range(1, group) if group % c == 0 and is_whole(c))
        raise ValueError(
            f"{owner} has groups of {group} that live in part: it was pruned in other groups; "
            f"nearest: group={nearest}"
        )


def _check_step(w, mask, grads, n_drop, block, group) -> None:
    d = w.shape[0]
    if mask.shape != w.shape or grads.shape[1:] != w.shape:
        raise ValueError(
            f"obs_prune_step: mask of {mask.shape} and grads of {grads.shape} do not fit w of "
            f"{w.shape}"
        )
    if group < 1 or d % group or block % group:
        raise ValueError(
            f"obs_prune_step: group={group} must divide the {d} weights and block={block}; "
            "nearest: 1"
        )
    check_groups("obs_prune_step: mask", mask, group)
    if isinstance(n_drop, int | np.integer):
        if n_drop < 0 or n_drop % group:
            raise ValueError(
                f"obs_prune_step: n_drop={n_drop} must be a multiple of group={group}; nearest: "
                f"{max(round(n_drop / group), 0) * group}"
            )
        if not isinstance(mask, Tracer) and n_drop > (alive := int(np.sum(mask))):
            raise ValueError(
                f"obs_prune_step: n_drop={n_drop} is more than the {alive} weights that live"
            )
