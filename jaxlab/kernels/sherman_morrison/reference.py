"""What the update means, and how XLA computes it without an array between."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator


def xla(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
    """The update of every factor of a stack.

    What the stabiliser makes of J is a J + b I, so that J is read for its largest entry and the
    product with v, and again for the result.

    Args:
      j: (stack, n, n).
      v: (stack, n).
      scalars: gamma, eps and zeta.
    """
    gamma, eps, zeta = scalars
    wide = j.astype(accumulator(j.dtype))
    fired = jnp.max(jnp.abs(wide), axis=(1, 2)) > eps
    a = jnp.where(fired, zeta, 1)[:, None]
    b = jnp.where(fired, 1 - zeta, 0)[:, None]
    product = jnp.einsum("sij,sj->si", wide, v, precision=lax.Precision.HIGHEST)
    u = gamma * (a * product + b * v) + (1 - gamma) * v
    eye = jnp.eye(v.shape[1], dtype=wide.dtype)[None]
    shift = (gamma * b + (1 - gamma))[:, :, None] * eye
    below = (1 + jnp.sum(v * u, axis=1))[:, None, None]
    new = (gamma * a)[:, :, None] * wide + shift - u[:, :, None] * u[:, None, :] / below
    return new.astype(j.dtype)
