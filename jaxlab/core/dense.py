"""What every method asks of the dense array that it is made from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_dense(method: str, w: Any) -> None:
    """What every `from_dense` asks: a floating array with two axes or more, its entries finite.

    Raises:
      TypeError: `w` is not floating.
      ValueError: `w` has fewer than two axes or, outside jit, is not finite.
    """
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(f"{method}: a kernel must be floating, not {w.dtype}")
    if w.ndim < 2:
        raise ValueError(
            f"{method}: a kernel has two axes (d_in, d_out) or more, not shape {w.shape}"
        )
    check_finite(method, w)


def check_weights(method: str, w: Any) -> None:
    """What `check_dense` asks, and that there is an entry, without which nothing is decomposed.

    Raises:
      TypeError: `w` is not floating.
      ValueError: `w` has fewer than two axes, or an empty one; or it is not finite.
    """
    check_dense(method, w)
    if not w.size:
        raise ValueError(f"{method}: a kernel of shape {w.shape} is empty; leave it dense")


def check_finite(owner: str, a: Any) -> None:
    """Raises a ValueError if `a` has values (is no tracer, no mere shape) that are not finite.

    Some decompositions of such an array do not even return.
    """
    if isinstance(a, Tracer) or not isinstance(a, jax.Array | np.ndarray):
        return
    # An array that a jitted function closes over has values, which jnp would trace all the same.
    with jax.ensure_compile_time_eval():
        count = a.size - int(jnp.sum(jnp.isfinite(a)))
    if count:
        raise ValueError(f"{owner}: {count} of {a.size} entries of the matrix are not finite")
