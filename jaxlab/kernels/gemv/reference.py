"""What the product means, and how XLA computes it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# bfloat16 numbers that add up to a float32 one: 3 x 8 bits of 24.
PARTS = 3


def reference(
    x: jax.Array, packed: Any, floating: tuple[jax.Array], *, transposed: bool
) -> jax.Array:
    """The product in float32, of rows x: (rows, inputs) to (rows, outputs)."""
    a = floating[0].astype(jnp.float32)
    x = x.astype(jnp.float32)
    return jnp.matmul(x, a if transposed else a.T, precision=lax.Precision.HIGHEST)


def xla(x: jax.Array, packed: Any, floating: tuple[jax.Array], *, transposed: bool) -> jax.Array:
    """The same without a float32 copy of the matrix: a product with the parts of the vector."""
    (a,) = floating
    apart = parts(x, a.dtype)
    axes = (((2,), (0 if transposed else 1,)), ((), ()))
    y = lax.dot_general(apart, a, axes, preferred_element_type=jnp.float32)
    return jnp.sum(y, axis=0)


def sums(a: jax.Array, x: jax.Array, *, transposed: bool) -> jax.Array:
    """The same of one vector without tensor cores, as XLA differentiates it."""
    along = x.astype(jnp.float32)[:, None] if transposed else x.astype(jnp.float32)[None]
    return jnp.sum(a.astype(jnp.float32) * along, axis=0 if transposed else 1)


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
