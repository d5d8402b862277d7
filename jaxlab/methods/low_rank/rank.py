"""Ranks: how many parameters they cost, and where they stop paying."""

import jax
import jax.numpy as jnp

from jaxlab.core.gram import Gram, check_gram
from jaxlab.core.matrix import accumulator, check_weights


def breakeven_rank(o: int, i: int) -> float:
    """The rank at which two factors hold as many parameters as the dense matrix: o i / (o + i).

    >>> breakeven_rank(6144, 24576), breakeven_rank(384, 1536)
    (4915.2, 307.2)
    """
    return o * i / (o + i)


def rank_from_ratio(o: int, i: int, ratio: float, align: int = 1) -> int:
    """The largest rank whose two factors hold at most `ratio` of the dense parameters.

    Args:
      o: rows or columns of the dense matrix.
      i: the other of the two; the result is the same.
      ratio: kept fraction of `o * i` parameters, in (0, 1].
      align: the rank is rounded down to a multiple of it.

    Returns:
      `floor(ratio * o * i / (o + i))` as a multiple of `align`, at least `align` and at most
      `min(o, i)`: a very small ratio may therefore be exceeded.

    Raises:
      ValueError: `ratio` is not in (0, 1], or `align` below 1.

    >>> rank_from_ratio(4096, 11008, 0.8), rank_from_ratio(4096, 11008, 0.8, align=128)
    (2388, 2304)
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"low_rank: ratio={ratio} must be in (0, 1]; nearest: 1.0")
    check_align(align)
    rank = int(o * i * ratio / (o + i))
    return min(max(rank // align * align, align), o, i)


def check_align(align: int) -> None:
    """Raises a ValueError unless `align` is 1 or more."""
    if align < 1:
        raise ValueError(f"low_rank: align={align} must be 1 or more; nearest: 1")


def check_rank(w: jax.Array, rank: int) -> None:
    """Raises unless `w` is floating with two axes or more, and `rank` is one of such a matrix."""
    check_weights("low_rank", w)
    o, i = w.shape[-2:]
    if not 1 <= rank <= min(o, i):
        raise ValueError(
            f"low_rank: rank={rank} must be in [1, {min(o, i)}] for a matrix of {o} x {i}; "
            f"nearest: {min(max(rank, 1), min(o, i))}"
        )


def moments(
    w: jax.Array, gram: Gram, *, axis: int = -1, center: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`w` and the second moments of vectors along one of its axes, ready to be multiplied.

    Args:
      w: (..., o, i).
      gram: of vectors of w's length along `axis`, one for each matrix of a stack or one for all.
      axis: -1 or -2.
      center: whether the moments are about the mean.

    Returns:
      `w` and (..., d, d), with the same leading axes, in float32 or better.

    Raises:
      ValueError: `gram` does not fit and, outside jit, has seen nothing or is not finite.
    """
    d, stack = w.shape[axis], w.shape[:-2]
    check_gram("low_rank", gram, d, stack)
    dtype = jnp.promote_types(accumulator(w.dtype), gram.m2.dtype)
    moment = gram.moment(center=center).astype(dtype)
    wide = jax.lax.stop_gradient(w.astype(dtype))
    return wide, jax.lax.stop_gradient(jnp.broadcast_to(moment, (*stack, d, d)))
