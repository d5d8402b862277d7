"""What the two products mean, and how XLA computes them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator


def reference(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`(x @ down) @ up`: sums in float32 or better, each product rounded once to x's dtype."""
    for w in floating:
        dtype = accumulator(x.dtype)
        wide = jnp.matmul(x.astype(dtype), w.astype(dtype), precision=lax.Precision.HIGHEST)
        x = wide.astype(x.dtype)
    return x


def xla(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The same with what matrix units have."""
    down, up = floating
    return jnp.matmul(jnp.matmul(x, down), up)
