"""What the product means, and how XLA computes it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# bfloat16 numbers that add up to a float32 one: 3 x 8 bits of 24.
PARTS = 3


def reference(x: jax.Array, packed: Any, floating: tuple[jax.Array]) -> jax.Array:
    """The product in float32, of rows x: (rows, n) to (rows, m)."""
    a = floating[0].astype(jnp.float32)
    return jnp.matmul(x.astype(jnp.float32), a.T, precision=lax.Precision.HIGHEST)


def xla(x: jax.Array, packed: Any, floating: tuple[jax.Array]) -> jax.Array:
    """The same without a float32 copy of the matrix: a product with the parts of the vector."""
    (a,) = floating
    apart = parts(x, a.dtype)
    y = lax.dot_general(apart, a, (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return jnp.sum(y, axis=0)


def sums(a: jax.Array, x: jax.Array) -> jax.Array:
    """The same of one vector without tensor cores, as XLA differentiates it."""
    return jnp.sum(a.astype(jnp.float32) * x.astype(jnp.float32)[None], axis=1)


def parts(x: jax.Array, dtype: Any) -> jax.Array:
    """(k, ...) numbers of the dtype that add up to x: one where x has no more digits than it."""
    if dtype != jnp.bfloat16 or x.dtype == dtype:
        return x.astype(dtype)[None]
    x, found = x.astype(jnp.float32), []
    for _ in range(PARTS):
        # XLA may take a conversion there and back for none at all, and this it may not.
        top = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        found.append(top)
        # An infinity less itself would be no number.
        x = jnp.where(jnp.isfinite(top), x - top, jnp.zeros_like(x))
    return jnp.stack(found).astype(dtype)
