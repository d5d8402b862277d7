"""N:M pruning of a trained kernel in one shot, by the inputs that it sees.

Sources: M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR
2024 (Wanda, equation 1); E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be
Accurately Pruned in One-Shot", ICML 2023 (algorithm 1).

Differs from the authors' code: n counts kept weights, and of equal scores the later one stays, as
everywhere here. SparseGPT multiplies with a triangular factor of the Hessian instead of inverting
it, which is the same algorithm with fewer matrices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram
from jaxlab.core.matrix import accumulator, check_dense
from jaxlab.core.registry import suggest
from jaxlab.methods.nm.mask import NMPattern, check_scores, nm_mask


def wanda_scores(
    w: jax.Array, x: jax.Array | None = None, *, gram: Gram | None = None
) -> jax.Array:
    """`|w_ij| ||x_i||`: what a weight can add to an output, over the inputs seen.

    Args:
      w: (..., d_in, d_out), floating.
      x: (..., d_in), the kernel's inputs; or else
      gram: their statistics, of a stack if `w` is one.

    Returns:
      (..., d_in, d_out) scores in float32, or float64 for float64.

    Raises:
      ValueError: not exactly one of `x` and `gram`, or it is not of d_in inputs.

    >>> wanda_scores(jnp.array([[1.0], [-2.0]]), jnp.array([[3.0, 0.0], [4.0, 1.0]])).ravel()
    Array([5., 2.], dtype=float32)
    """
    if (x is None) == (gram is None):
        raise ValueError("wanda_scores: give one of x and gram")
    dtype = accumulator(w.dtype)
    if gram is not None:
        norms = gram.norms.astype(dtype)
    else:
        assert x is not None
        norms = jnp.sqrt(jnp.sum(jnp.square(x.astype(dtype)), axis=tuple(range(x.ndim - 1))))
    if norms.shape[-1] != w.shape[-2]:
        raise ValueError(
            f"wanda_scores: {norms.shape[-1]} inputs do not fit a kernel of shape {w.shape}; "
            f"nearest: {w.shape[-2]}"
        )
    return jnp.abs(w.astype(dtype)) * jnp.broadcast_to(norms[..., None], w.shape)


def sparsegpt_prune(
    w: jax.Array, h: jax.Array, pattern: NMPattern, block: int = 128, damp: float = 0.01
) -> tuple[jax.Array, jax.Array]:
    """Prunes row by row, and lets the rows to come make up for the change of the outputs.

    Besides `w`, `h` and the result, memory holds two matrices of the size of `h` and `w`, and a
    few of `block` rows.

    Args:
      w: (..., d_in, d_out), floating; computed in float32, or float64 for float64.
      h: (d_in, d_in), or one for each matrix of a stack: X^T X of the inputs X, or a multiple of
        it. An input that was always 0 counts as 1, and its weights as 0.
      pattern: groups along the input, of single weights.
      block: rows that are finished before the others hear of them; the result depends on it by
        rounding only. A multiple of m.
      damp: what is added to h's diagonal, as a fraction of its mean.

    Returns:
      `(w', mask)`: the weights in w's dtype, pruned ones exactly 0, and booleans of their shape
      with exactly n true in every group.

    Raises:
      ValueError: an argument is out of range or, outside jit, `h` with its `damp` is not positive
        definite.

    >>> w, mask = sparsegpt_prune(jnp.array([[1.0], [2.0]]), jnp.ones((2, 2)), NMPattern(1, 2))
    >>> w.round(2).ravel(), mask.ravel()
    (Array([0.  , 2.99], dtype=float32), Array([False,  True], dtype=bool))
    """
    _check_sparsegpt(w, h, pattern, block, damp)
    check_scores(w)
    prune = functools.partial(_sparsegpt, pattern=pattern, block=min(block, w.shape[-2]))
    damp_by = jnp.asarray(damp, accumulator(w.dtype))
    if w.ndim == 2:
        pruned, mask = prune(w, h, damp_by)
    else:
        stack = w.reshape(-1, *w.shape[-2:])
        each = jnp.broadcast_to(h, (*w.shape[:-2], *h.shape[-2:])).reshape(-1, *h.shape[-2:])
        # One after another: a stack of Hessians at once would not fit.
        pruned, mask = jax.lax.map(lambda layer: prune(*layer, damp_by), (stack, each))
        pruned, mask = pruned.reshape(w.shape), mask.reshape(w.shape)
    if not isinstance(pruned, Tracer) and bool(jnp.any(jnp.isnan(pruned))):
        raise ValueError(f"sparsegpt: h is not positive definite with damp={damp}; raise damp")
    return pruned, mask


def _check_sparsegpt(
    w: jax.Array, h: jax.Array, pattern: NMPattern, block: int, damp: float
) -> None:
    check_dense("sparsegpt", w)
    if pattern.axis != -2:
        raise ValueError(
            f"sparsegpt: axis={pattern.axis} must be -2: weights make up for others of the same "
            "output, which lie along the input"
        )
    if pattern.block != 1:
        raise ValueError(
            f"sparsegpt: block={pattern.block} of the pattern must be 1: the score is that of "
            "removing one weight at a time"
        )
    pattern.check(w.shape)
    if block < 1 or block % pattern.m:
        nearest = max(round(block / pattern.m), 1) * pattern.m
        raise ValueError(
            f"sparsegpt: block={block} must be a multiple of m={pattern.m}; nearest: {nearest}"
        )
    if h.shape not in ((w.shape[-2],) * 2, (*w.shape[:-2], w.shape[-2], w.shape[-2])):
        raise ValueError(
            f"sparsegpt: h of shape {h.shape} does not fit a kernel of shape {w.shape}; nearest: "
            f"{(w.shape[-2],) * 2}"
        )
    if not 0 <= damp < float("inf"):
        raise ValueError(f"sparsegpt: damp={damp} must be 0 or more; nearest: 0.01")


@functools.partial(jax.jit, static_argnames=("pattern", "block"))
def _sparsegpt(
    w: jax.Array, h: jax.Array, damp: jax.Array, *, pattern: NMPattern, block: int
) -> tuple[jax.Array, jax.Array]:
    # In the paper H^-1 = U^T U, and a row i that changes by e_i U_ii moves the rows after it by
    # e_i U_ij. With H = G^T G, G lower triangular, U is G^-T, and when all rows before a block J
    # are done, it stands at w_J + U_JJ^T (G d)_J, where d is the change so far, old minus new. So U
    # is needed for one block at a time, and there it is the inverse of G_JJ^T.
    d_in, dtype = w.shape[0], accumulator(w.dtype)
    dead = jnp.diagonal(h) == 0
    g = _reverse_cholesky(h, _damped_diagonal(h.astype(dtype), dead, damp), block)

    def advance(start: Any, size: int, state: tuple) -> tuple:
        change, mask = state
        rows = jax.lax.dynamic_slice_in_dim(g, start, size)
        own = jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)
        u = jax.scipy.linalg.solve_triangular(own.T, jnp.eye(size, dtype=dtype), lower=False)
        old = jax.lax.dynamic_slice_in_dim(w, start, size).astype(dtype)
        alive = ~jax.lax.dynamic_slice_in_dim(dead, start, size)
        old = jnp.where(alive[:, None], old, jnp.zeros_like(old))
        # Rows of `change` from `start` on are 0 still.
        moved = jnp.matmul(rows, change, precision="highest")
        now = old + jnp.matmul(u.T, moved, precision="highest")
        new, keep = _prune_block(now, jnp.triu(u), pattern)
        change = jax.lax.dynamic_update_slice_in_dim(change, old - new, start, axis=0)
        return change, jax.lax.dynamic_update_slice_in_dim(mask, keep, start, axis=0)

    whole, rest = divmod(d_in, block)
    state = jnp.zeros(w.shape, dtype), jnp.zeros(w.shape, bool)
    state = jax.lax.fori_loop(0, whole, lambda i, state: advance(i * block, block, state), state)
    change, mask = advance(whole * block, rest, state) if rest else state
    kept = jnp.where(dead[:, None], jnp.zeros_like(change), w.astype(dtype)) - change
    return jnp.where(mask, kept, jnp.zeros_like(kept)).astype(w.dtype), mask


def _damped_diagonal(h: jax.Array, dead: jax.Array, damp: jax.Array) -> jax.Array:
    diagonal = jnp.where(dead, jnp.ones_like(dead, h.dtype), jnp.diagonal(h))
    return diagonal + damp * jnp.mean(diagonal)


def _reverse_cholesky(h: jax.Array, diagonal: jax.Array, block: int) -> jax.Array:
    """Lower triangular G with G^T G = H, of h with another diagonal.

    Rows are computed from the last to the first, into one buffer: the library's factorisation would
    take three, with those that reverse the order and arrange the memory.
    """
    d, dtype = len(h), diagonal.dtype

    def advance(start: Any, size: int, g: jax.Array) -> jax.Array:
        row, column = start + jnp.arange(size)[:, None], jnp.arange(d)[None, :]
        own = jax.lax.dynamic_slice_in_dim(diagonal, start, size)
        # Columns, turned: the solver wants them so, and h would be copied for it.
        rows = jax.lax.dynamic_slice_in_dim(h, start, size, axis=1).T.astype(dtype)
        rows = jnp.where(row == column, own[:, None], rows)
        # Of g, rows after the block are done, and the others 0 still.
        above = jax.lax.dynamic_slice_in_dim(g, start, size, axis=1)
        rows -= jnp.matmul(above.T, g, precision="highest")
        corner = jax.lax.dynamic_slice_in_dim(rows, start, size, axis=1)
        upper = jnp.linalg.cholesky(corner[::-1, ::-1])[::-1, ::-1]
        rows = jax.scipy.linalg.solve_triangular(upper, rows, lower=False)
        rows = jnp.where(row >= column, rows, jnp.zeros_like(rows))
        return jax.lax.dynamic_update_slice_in_dim(g, rows, start, axis=0)

    whole, rest = divmod(d, block)
    g = jnp.zeros((d, d), dtype)
    g = advance(whole * block, rest, g) if rest else g
    return jax.lax.fori_loop(0, whole, lambda i, g: advance((whole - 1 - i) * block, block, g), g)


def _prune_block(now: jax.Array, u: jax.Array, pattern: NMPattern) -> tuple[jax.Array, jax.Array]:
    """SparseGPT on rows: (size, d_out) whose u: (size, size) is upper triangular."""
    m = pattern.m
    weight = 1 / jnp.diagonal(u)

    def prune_group(g: Any, state: tuple) -> tuple:
        rows = jax.lax.dynamic_slice_in_dim(state[0], g * m, m, axis=0)
        own = jax.lax.dynamic_slice_in_dim(weight, g * m, m)
        # Roots of the paper's scores, relative within the group: the same order, no underflow, and
        # equal weights are 1 exactly, so that nothing but magnitudes decides.
        kept = nm_mask(jnp.abs(rows) * (own / jnp.max(own))[:, None], pattern)
        keep = jax.lax.dynamic_update_slice_in_dim(state[1], kept, g * m, axis=0)
        return jax.lax.fori_loop(g * m, (g + 1) * m, prune_row, (state[0], keep))

    def prune_row(i: Any, state: tuple) -> tuple:
        now, keep = state
        error = jnp.where(keep[i], jnp.zeros_like(now[i]), now[i]) * weight[i]
        return now - u[i][:, None] * error[None, :], keep

    state = (now, jnp.zeros(now.shape, bool))
    now, keep = jax.lax.fori_loop(0, len(now) // m, prune_group, state)
    return jnp.where(keep, now, jnp.zeros_like(now)), keep


def _by_magnitude(
    w: jax.Array, pattern: NMPattern, gram: Gram | None
) -> tuple[jax.Array, jax.Array]:
    return _masked(w, nm_mask(jnp.abs(w), pattern))


def _by_wanda(w: jax.Array, pattern: NMPattern, gram: Gram | None) -> tuple[jax.Array, jax.Array]:
    return _masked(w, nm_mask(wanda_scores(w, gram=gram), pattern))


def _by_sparsegpt(
    w: jax.Array, pattern: NMPattern, gram: Gram | None
) -> tuple[jax.Array, jax.Array]:
    assert gram is not None
    # The scale matters for inputs that were always 0 alone: the Hessian of the mean squared error.
    h = 2 * gram.second_moment / gram.count[..., None, None]
    return sparsegpt_prune(w, h, pattern, block=max(128 // pattern.m, 1) * pattern.m)


def check_gram(scores: str, gram: Gram | None, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless there are statistics of the inputs of a kernel of this shape."""
    if gram is None:
        raise ValueError(
            f"nm: scores={scores!r} needs the Gram of the layer's inputs: set calibrate.batches "
            "(in a phase: batches), or use compress_calibrated"
        )
    if gram.mean.shape not in ((shape[-2],), shape[:-1]):
        raise ValueError(
            f"nm: a gram of inputs of shape {gram.mean.shape} does not fit a kernel of shape "
            f"{shape}; nearest: {shape[:-1]}"
        )


def _masked(w: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(mask, w, jnp.zeros_like(w)), mask


# By name: the pruning, and whether it needs the inputs' statistics.
_ONE_SHOT: dict[str, tuple[Callable, bool]] = {
    "magnitude": (_by_magnitude, False),
    "wanda": (_by_wanda, True),
    "sparsegpt": (_by_sparsegpt, True),
}


def nm_one_shot(
    w: jax.Array, pattern: NMPattern, *, scores: str = "magnitude", gram: Gram | None = None
) -> tuple[jax.Array, jax.Array]:
    """Prunes a kernel to a pattern, without training.

    Args:
      w: (..., d_in, d_out), floating.
      pattern: what to keep.
      scores: "magnitude", "wanda" or "sparsegpt", which also changes the weights that it keeps.
      gram: statistics of the kernel's inputs, for the latter two.

    Returns:
      `(w', mask)`, the weights with pruned ones exactly 0, and booleans of their shape.

    Raises:
      ValueError: `scores` is unknown, its `gram` is missing, or the pattern does not fit.

    >>> nm_one_shot(jnp.array([[1.0], [-2.0]]), NMPattern(1, 2))[0].ravel().tolist()
    [0.0, -2.0]
    """
    if scores not in _ONE_SHOT:
        raise ValueError(f"nm: scores={scores!r} is unknown; {suggest(scores, _ONE_SHOT)}")
    check_dense("nm", w)
    pattern.check(w.shape)
    check_scores(w)
    prune, needs_gram = _ONE_SHOT[scores]
    if needs_gram:
        check_gram(scores, gram, w.shape)
    return prune(w, pattern, gram)
