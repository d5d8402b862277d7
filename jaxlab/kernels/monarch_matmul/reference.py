"""What a Monarch product means, and how XLA computes it."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator


def reference(
    x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool, transpose: bool
) -> jax.Array:
    """Both products in float32 or better, the middle rounded to x's dtype as the others have it."""
    wide = accumulator(x.dtype)

    def product(spec: str, a: jax.Array, w: jax.Array) -> jax.Array:
        a, w = a.astype(wide), w.astype(x.dtype).astype(wide)
        return jnp.einsum(spec, a, w, precision=lax.Precision.HIGHEST).astype(x.dtype)

    return _two_products(product, x, w1, w2, blocked, transpose)


def xla(x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool, transpose: bool) -> jax.Array:
    """The same in x's dtype, with sums in float32 or better."""
    wide = accumulator(x.dtype)

    def product(spec: str, a: jax.Array, w: jax.Array) -> jax.Array:
        y = jnp.einsum(spec, a, w.astype(x.dtype), preferred_element_type=wide)
        return y.astype(x.dtype)

    return _two_products(product, x, w1, w2, blocked, transpose)


def by_rank(w1: jax.Array, l: int) -> jax.Array:  # noqa: E741
    """Rows of w1 in the order of the blocks of w2 that they feed."""
    k, q, p = w1.shape
    return w1 if l == q else w1.reshape(k, q // l, l, p).swapaxes(1, 2).reshape(k, q, p)


def _two_products(product, x, w1, w2, blocked, transpose):
    (k, q, p), (l, s, r) = w1.shape, w2.shape  # noqa: E741
    rows = x.shape[0]
    order, sizes = ("ls", (l, s)) if blocked else ("sl", (s, l))
    if transpose:
        u = product(f"b{order},lsr->brl", x.reshape(rows, *sizes), w2)
        return product("bkq,kqp->bkp", u.reshape(rows, k, q), w1).reshape(rows, k * p)
    if blocked and q % l == 0:
        # Whole runs of the middle move then, and no single entries.
        h = product("bkp,kqp->bkq", x.reshape(rows, k, p), by_rank(w1, l))
        u = jnp.moveaxis(h.reshape(rows, k, l, q // l), 2, 0).reshape(l, rows, r)
        return product("lbr,lsr->bls", u, w2).reshape(rows, l * s)
    h = product("bkp,kqp->bkq", x.reshape(rows, k, p), w1)
    return product(f"brl,lsr->b{order}", h.reshape(rows, r, l), w2).reshape(rows, l * s)
