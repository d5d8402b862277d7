"""Which of many scores are the lowest: exact counts, without a sort."""

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator


# Jitted here as elsewhere: op by op these are dozens of small launches.
@jax.jit
def lowest(scores: jax.Array, n: jax.Array | int) -> jax.Array:
    """Marks the n lowest scores; of equal ones the first.

    The n-th lowest is found bit by bit, by counting: nothing is sorted, and memory holds a few
    arrays of the scores' size, however many there are.

    Args:
      scores: (d,), float32, or float64; narrower ones are widened. NaN counts as infinite.
      n: how many, at most d; may be traced.

    Returns:
      (d,) booleans, exactly n of them true.

    >>> lowest(jnp.array([2.0, 1.0, 3.0, 1.0, 1.0]), 2).astype(int).tolist()
    [0, 1, 0, 1, 0]
    """
    keys = _ordered(scores.astype(accumulator(scores.dtype)))
    width = 8 * keys.dtype.itemsize
    count = jnp.asarray(n, jnp.int32)

    def narrow(i: jax.Array, threshold: jax.Array) -> jax.Array:
        bit = jnp.asarray(1, keys.dtype) << (width - 1 - i).astype(keys.dtype)
        trial = threshold | bit
        below = jnp.sum(keys < trial, dtype=jnp.int32)
        return jnp.where(below < count, trial, threshold)

    threshold = jax.lax.fori_loop(0, width, narrow, jnp.zeros((), keys.dtype))
    below, tied = keys < threshold, keys == threshold
    missing = count - jnp.sum(below, dtype=jnp.int32)
    return below | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= missing))


def _ordered(x: jax.Array) -> jax.Array:
    """Unsigned integers in the order of floats."""
    wide = jnp.uint64 if x.dtype == jnp.float64 else jnp.uint32
    # The two zeros are equal scores, but not equal bits.
    x = jnp.where(x == 0, jnp.zeros((), x.dtype), jnp.where(jnp.isnan(x), jnp.inf, x))
    bits = jax.lax.bitcast_convert_type(x, wide)
    sign = jnp.asarray(1 << (8 * bits.dtype.itemsize - 1), wide)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
