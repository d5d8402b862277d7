"""Products with a Monarch matrix and its transpose, and its inverse, from the two factors.

Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
Training", ICML 2022, section 3: two batched products and a fixed permutation after each.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxlab.core.matrix import accumulator
from jaxlab.methods.monarch.shape import MonarchShape, shape_of

Params = Mapping[str, jax.Array]


def monarch_apply(
    params: Params,
    x: jax.Array,
    shape: MonarchShape | None = None,
    *,
    precision: Any = None,
    preferred_dtype: Any = None,
    save_h: bool = False,
    blocked: bool = False,
) -> jax.Array:
    """`W x`: the middle index m = kk q + a of the first product is slot m div l of block m mod l
    of the second, and entry t of its block j is output t l + j.

    Args:
      params: {"w1": (k, q, p), "w2": (l, s, r)}.
      x: (..., n_in); the factors are cast to its dtype, unless they are complex and it is real.
      shape: None if nothing is padded.
      precision: of both products, as for `jnp.einsum`.
      preferred_dtype: what they accumulate in; None is float32 or better. Between them the middle
        is rounded to x's dtype.
      save_h: whether the backward pass keeps the middle (..., k q) instead of computing it again
        from x.
      blocked: whether entry t of block j is output j s + t instead, which spares a pass over the
        outputs.

    Returns:
      (..., n_out), in x's dtype, or the factors' if only they are complex.

    Raises:
      ValueError: x or the factors do not fit the shape.
      TypeError: x or a factor is an integer.

    >>> ones = {"w1": jnp.ones((2, 2, 3)), "w2": jnp.ones((2, 4, 2))}
    >>> monarch_apply(ones, jnp.ones(6))
    Array([6., 6., 6., 6., 6., 6., 6., 6.], dtype=float32)
    """
    shape, dtype = _checked("monarch_apply", params, x, shape, "n_in")

    def product(w1, w2, x):
        w1, w2, x = w1.astype(dtype), w2.astype(dtype), x.astype(dtype)
        x = _pad(x, shape.k * shape.p).reshape(*x.shape[:-1], shape.k, shape.p)
        if blocked and shape.q % shape.l == 0:
            # Rows of w1 in the order of the blocks that they feed: the factor is smaller than the
            # middle, and then whole runs of the middle move and no single entries.
            w1 = w1.reshape(shape.k, -1, shape.l, shape.p).swapaxes(1, 2)
            w1 = w1.reshape(shape.k, shape.q, shape.p)
            h = _einsum("...kp,kqp->...kq", precision, preferred_dtype, x, w1)
            h = h.reshape(*h.shape[:-2], shape.k, shape.l, shape.q // shape.l)
            u = jnp.moveaxis(h, -2, 0).reshape(shape.l, *h.shape[:-3], shape.r)
            z = _einsum("l...r,lsr->...ls", precision, preferred_dtype, u, w2)
        else:
            h = _einsum("...kp,kqp->...kq", precision, preferred_dtype, x, w1)
            u = h.reshape(*h.shape[:-2], shape.r, shape.l)
            order = "ls" if blocked else "sl"
            z = _einsum(f"...rl,lsr->...{order}", precision, preferred_dtype, u, w2)
        return z.reshape(*z.shape[:-2], shape.s * shape.l)[..., : shape.n_out]

    return (product if save_h else jax.checkpoint(product))(params["w1"], params["w2"], x)


def monarch_apply_t(
    params: Params,
    y: jax.Array,
    shape: MonarchShape | None = None,
    *,
    precision: Any = None,
    preferred_dtype: Any = None,
    save_h: bool = False,
    blocked: bool = False,
) -> jax.Array:
    """`W^T y`, not conjugated: the same two products in reverse order.

    The transpose is in general no Monarch matrix of the same kind: its factors come in the other
    order.

    Args:
      params: as for `monarch_apply`.
      y: (..., n_out).
      shape: None if nothing is padded.
      precision: as for `monarch_apply`.
      preferred_dtype: likewise.
      save_h: likewise.
      blocked: likewise.

    Returns:
      (..., n_in), in y's dtype, or the factors' if only they are complex.

    Raises:
      ValueError: y or the factors do not fit the shape.
      TypeError: y or a factor is an integer.

    >>> ones = {"w1": jnp.ones((2, 2, 3)), "w2": jnp.ones((2, 4, 2))}
    >>> monarch_apply_t(ones, jnp.ones(8))
    Array([8., 8., 8., 8., 8., 8.], dtype=float32)
    """
    shape, dtype = _checked("monarch_apply_t", params, y, shape, "n_out")

    def product(w1, w2, y):
        w1, w2, y = w1.astype(dtype), w2.astype(dtype), y.astype(dtype)
        order, sizes = ("ls", (shape.l, shape.s)) if blocked else ("sl", (shape.s, shape.l))
        z = _pad(y, shape.s * shape.l).reshape(*y.shape[:-1], *sizes)
        u = _einsum(f"...{order},lsr->...rl", precision, preferred_dtype, z, w2)
        h = u.reshape(*u.shape[:-2], shape.k, shape.q)
        x = _einsum("...kq,kqp->...kp", precision, preferred_dtype, h, w1)
        return x.reshape(*x.shape[:-2], shape.k * shape.p)[..., : shape.n_in]

    return (product if save_h else jax.checkpoint(product))(params["w1"], params["w2"], y)


def monarch_solve(params: Params, y: jax.Array) -> jax.Array:
    """`W^-1 y`, block by block.

    Args:
      params: factors with square blocks, p = q and s = r; computed in float32 or better.
      y: (..., n), floating or complex.

    Returns:
      (..., n), in y's dtype, or the factors' if only they are complex.

    Raises:
      ValueError: blocks are not square, or y does not fit.

    >>> twice = {"w1": 2 * jnp.stack([jnp.eye(2)] * 3), "w2": jnp.stack([jnp.eye(3)] * 2)}
    >>> monarch_solve(twice, jnp.arange(6.0))
    Array([0. , 0.5, 1. , 1.5, 2. , 2.5], dtype=float32)
    """
    shape, dtype = _checked("monarch_solve", params, y, None, "n_out")
    _check_square("monarch_solve", shape)
    wide = _wide(dtype)
    w1, w2 = (params[name].astype(wide) for name in ("w1", "w2"))
    z = y.astype(wide).reshape(-1, shape.s, shape.l)
    u = jnp.linalg.solve(w2, z.transpose(2, 1, 0))  # (l, r, B)
    h = u.transpose(1, 0, 2).reshape(shape.k, shape.q, -1)
    x = jnp.linalg.solve(w1, h)  # (k, p, B)
    return x.reshape(shape.n_in, -1).T.reshape(y.shape).astype(dtype)


def monarch_slogdet(params: Params) -> tuple[jax.Array, jax.Array]:
    """Sign and logarithm of the size of the determinant.

    The two permutations are inverse to each other, so it is the product of the determinants of all
    blocks.

    Args:
      params: factors with square blocks, p = q and s = r.

    Returns:
      `(sign, logabsdet)`, as `jnp.linalg.slogdet`.

    Raises:
      ValueError: blocks are not square.

    >>> twice = {"w1": 2 * jnp.stack([jnp.eye(2)] * 3), "w2": jnp.stack([jnp.eye(3)] * 2)}
    >>> float(jnp.exp(monarch_slogdet(twice)[1]).round())
    64.0
    """
    _check_square("monarch_slogdet", shape_of(params))
    found = [jnp.linalg.slogdet(w.astype(_wide(w.dtype))) for w in (params["w1"], params["w2"])]
    (sign1, log1), (sign2, log2) = found
    return jnp.prod(sign1) * jnp.prod(sign2), jnp.sum(log1) + jnp.sum(log2)


# The derivative is a rule because that of a product which accumulates in float32 multiplies float32
# cotangents with 16-bit operands, which matrix units do not; here all its products are in the
# operands' dtype. A rule for tangents, and not for cotangents, leaves forward mode alive.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _einsum(spec: str, precision: Any, preferred: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    if preferred is None and not jnp.iscomplexobj(x):
        preferred = accumulator(x.dtype)
    result = jnp.einsum(spec, x, w, precision=precision, preferred_element_type=preferred)
    return result.astype(x.dtype)


def _einsum_jvp(spec, precision, preferred, primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    multiply = functools.partial(jnp.einsum, spec, precision=precision)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(multiply(dx, w))
    if not isinstance(dw, SymbolicZero):
        terms.append(multiply(x, dw))
    result = _einsum(spec, precision, preferred, x, w)
    return result, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(result)


_einsum.defjvp(_einsum_jvp, symbolic_zeros=True)


def _checked(
    owner: str, params: Params, x: jax.Array, shape: MonarchShape | None, side: str
) -> tuple[MonarchShape, Any]:
    """The shape, and the dtype to compute in."""
    w1, w2 = params["w1"], params["w2"]
    for name, array in (("w1", w1), ("w2", w2), ("the operand", x)):
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(f"{owner}: {name} is {array.dtype}; cast it to a floating dtype")
    if shape is None:
        shape = shape_of(params)
    expected = (shape.k, shape.q, shape.p), (shape.l, shape.s, shape.r)
    if (w1.shape, w2.shape) != expected:
        raise ValueError(
            f"{owner}: factors of shapes {w1.shape} and {w2.shape} are not of {shape}, "
            f"{expected[0]} and {expected[1]}"
        )
    length = getattr(shape, side)
    if x.ndim == 0 or x.shape[-1] != length:
        raise ValueError(
            f"{owner}: the last axis of an operand of shape {x.shape} must be {side}={length}"
        )
    only_factors = jnp.iscomplexobj(w1) and not jnp.iscomplexobj(x)
    return shape, w1.dtype if only_factors else x.dtype


def _check_square(owner: str, shape: MonarchShape) -> None:
    if (shape.p, shape.s) != (shape.q, shape.r):
        raise ValueError(
            f"{owner}: blocks must be square, not {shape.q} x {shape.p} and {shape.s} x {shape.r}"
        )


def _wide(dtype: Any) -> Any:
    return dtype if jnp.issubdtype(dtype, jnp.complexfloating) else accumulator(dtype)


def _pad(x: jax.Array, length: int) -> jax.Array:
    missing = length - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
