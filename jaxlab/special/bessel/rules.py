"""Products of partial derivatives with tangents, where derivatives may be infinite.

Whether a tangent is 0 is mostly not known while tracing, and infinity times 0 would be NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def total_change(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    primals: Any,
    tangents: Any,
    *partials: Callable[..., jax.Array],
) -> Any:
    """The sum of partial derivatives by tangents, of which some may be `SymbolicZero`.

    One that is known to be zero is left out, because the derivative that it multiplies may be dear.
    """
    terms = [
        product(partial_fn(*primals), tangent)
        for partial_fn, tangent in zip(partials, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(primals[0])


@jax.custom_jvp
def _finite(slope: jax.Array) -> jax.Array:
    return jnp.clip(slope, jnp.finfo(slope.dtype).min, jnp.finfo(slope.dtype).max)


@_finite.defjvp
def _finite_jvp(primals, tangents):
    # What is infinite has an infinite derivative, too, which clip would take for 0.
    return _finite(*primals), tangents[0]


def times(slope: jax.Array, tangent: jax.Array) -> jax.Array:
    """The product, linear in the tangent, where infinity times 0 is 0."""
    largest = jnp.full_like(slope, jnp.finfo(slope.dtype).max)
    again = jnp.where(jnp.isinf(slope), largest, jnp.ones_like(slope))
    return _finite(slope) * tangent * again


def bounded_times(slope: jax.Array, tangent: jax.Array) -> jax.Array:
    """The same, but never infinite: it will itself be multiplied by a tangent."""
    return _finite(slope) * tangent
