"""What a Monarch product means, and how XLA computes it and the gradients of the factors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.core.matrix import accumulator

Product = Callable[[str, jax.Array, jax.Array], jax.Array]


def reference(
    x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool, transpose: bool
) -> jax.Array:
    """Both products in float32 or better, the middle rounded to x's dtype as the others have it.

    Args:
      x: (rows, k p), or (rows, l s) if `transpose`.
      w1: (k, q, p), cast to x's dtype, as w2 is.
      w2: (l, s, r).
      blocked: the order of outputs.
      transpose: whether to multiply with the transpose.
    """
    wide = accumulator(x.dtype)

    def product(spec: str, a: jax.Array, w: jax.Array) -> jax.Array:
        a, w = a.astype(wide), w.astype(x.dtype).astype(wide)
        return jnp.einsum(spec, a, w, precision=lax.Precision.HIGHEST).astype(x.dtype)

    return _two_products(product, x, w1, w2, blocked, transpose)


def xla(x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool, transpose: bool) -> jax.Array:
    """The same with operands in x's dtype."""
    return _two_products(_product, x, w1, w2, blocked, transpose)


def factor_gradients(
    x: jax.Array, g: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool
) -> tuple[jax.Array, jax.Array]:
    """The gradients of w1 and w2, where g is that of the product of x; not of its transpose."""
    (k, q, p), (l, s, r) = w1.shape, w2.shape  # noqa: E741
    rows = x.shape[0]
    order, sizes = ("ls", (l, s)) if blocked else ("sl", (s, l))
    x, g = x.reshape(rows, k, p), g.reshape(rows, *sizes)
    middle = _product("bkp,kqp->bkq", x, w1).reshape(rows, r, l)
    d_w2 = _product(f"b{order},brl->lsr", g, middle)
    d_middle = _product(f"b{order},lsr->brl", g, w2).reshape(rows, k, q)
    d_w1 = _product("bkq,bkp->kqp", d_middle, x)
    return d_w1.astype(w1.dtype), d_w2.astype(w2.dtype)


def by_rank(w1: jax.Array, l: int) -> jax.Array:  # noqa: E741
    """Rows of w1 in the order of the blocks of w2 that they feed, where l divides q."""
    k, q, p = w1.shape
    return w1 if l == q else w1.reshape(k, q // l, l, p).swapaxes(1, 2).reshape(k, q, p)


def _product(spec: str, a: jax.Array, w: jax.Array) -> jax.Array:
    w, wide = w.astype(a.dtype), accumulator(a.dtype)

    def narrow(a: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, w, preferred_element_type=wide)

    def cast(a: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a.astype(wide), w.astype(wide))

    if a.dtype == wide:
        return narrow(a, w)
    # XLA has no batched product of 16-bit operands with sums in float32 on every CPU.
    return lax.platform_dependent(a, w, cpu=cast, default=narrow).astype(a.dtype)


def _two_products(
    product: Product, x: jax.Array, w1: jax.Array, w2: jax.Array, blocked: bool, transpose: bool
) -> jax.Array:
    (k, q, p), (l, s, r) = w1.shape, w2.shape  # noqa: E741
    rows = x.shape[0]
    order, sizes = ("ls", (l, s)) if blocked else ("sl", (s, l))
    if transpose:
        u = product(f"b{order},lsr->brl", x.reshape(rows, *sizes), w2)
        return product("bkq,kqp->bkp", u.reshape(rows, k, q), w1).reshape(rows, k * p)
    x = x.reshape(rows, k, p)
    if blocked and q % l == 0:
        # Whole runs of the middle move then, and no single entries.
        h = product("bkp,kqp->bkq", x, by_rank(w1, l)).reshape(rows, k, l, q // l)
        u = jnp.moveaxis(h, 2, 0).reshape(l, rows, r)
        return product("lbr,lsr->bls", u, w2).reshape(rows, l * s)
    u = product("bkp,kqp->bkq", x, w1).reshape(rows, r, l)
    return product(f"brl,lsr->b{order}", u, w2).reshape(rows, l * s)
