"""What the product means, and how XLA computes it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator


def grids(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The rows of x, (samples, n1 n2), as (samples, n1, n2)."""
    return x.reshape((x.shape[0], a.shape[1], b.shape[1]))


def reference(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`A X_s B.T` of every row of x, every sum in float32 or better, rounded once."""
    a, b = (f.astype(accumulator(f.dtype)) for f in floating)
    wide = grids(x, a, b).astype(a.dtype)
    y = jnp.einsum("pi,sij,qj->spq", a, wide, b, precision=lax.Precision.HIGHEST)
    return y.reshape((x.shape[0], a.shape[0] * b.shape[0])).astype(x.dtype)


def xla(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The same as two products that all samples share, each with all of them folded into its rows.

    What lies between has float32; float32 is multiplied with all its digits.
    """
    a, b = floating
    dtype, exact = accumulator(x.dtype), lax.Precision.HIGHEST
    wide = lax.dot_general(
        *(grids(x, a, b), b),
        (((2,), (1,)), ((), ())),
        precision=exact,
        preferred_element_type=dtype,
    )
    y = lax.dot_general(wide, a.astype(dtype), (((1,), (1,)), ((), ())), precision=exact)
    return jnp.swapaxes(y, 1, 2).reshape((x.shape[0], a.shape[0] * b.shape[0])).astype(x.dtype)
