"""The product of signs with signs, or of int8 with signs."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch, plan
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.rules import product
from jaxlab.kernels.sign_matmul.reference import xla
from jaxlab.kernels.sign_matmul.shapes import Config, Problem, problem_of

OP = "sign_matmul"


def sign_matmul(
    a: jax.Array | Planar,
    b: Planar,
    scale: jax.Array | None = None,
    *,
    dtype: Any = None,
    implementation: dispatch.Choice = None,
    config: Config | plan.Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`(a @ b.T) * scale`, with b of -1 and +1, packed; the sums are exact in int32.

    A layer of binary weights and activations makes `a` on the fly, `jnp.where(x < 0, -1, 1)` as
    int8, and never packs it; eight bits of `a` may hold other numbers just as well. The operands
    are integers and get no cotangents: a layer brings its own rule for the gradients that it passes
    straight through. Reverse mode gives the scale one. Under `jax.vmap` over `a` alone it stays one
    product. On several devices call it inside `jax.shard_map`.

    Args:
      a: int8, (..., k); or packed, of kind "binary", (..., k), in blocks as wide as those of b.
      b: (n, k), of kind "binary", from `pack`.
      scale: floating, (n,); None is 1.
      dtype: of the result; None is int32, or the scale's.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu", a `Config`, or a `plan.Config` for up to 64 rows of a; None takes the
        stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., n), rounded once if the dtype is floating.

    Raises:
      TypeError: an operand of another dtype; a scale with an integer result.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> from jaxlab.kernels.packing import pack
    >>> b = pack(jnp.array([[1, -1, 1], [-1, -1, -1]]), "binary")
    >>> sign_matmul(jnp.array([[1, -1, -1]], jnp.int8), b).tolist()
    [[1, 1]]
    >>> sign_matmul(b, b, jnp.array([1.0, 0.5])).tolist()
    [[3.0, -0.5], [-1.0, 1.5]]
    """
    left = _checked(a, b)
    dtype = _result(b, scale, dtype)
    named = dispatch.asked(OP, implementation, interpret, config)
    rows = left.reshape((-1, left.shape[-1]))
    shape = (*left.shape[:-1], b.shape[0])
    if rows.shape[0] == 0:
        return jnp.zeros(shape, dtype)
    matmul = product(OP, OP, _problem, xla, named, config, interpret, dtype=dtype)
    return matmul(rows, b, scale).reshape(shape)


def _checked(a: jax.Array | Planar, b: Planar) -> jax.Array:
    """The left operand as int8, (..., k), or uint16 words."""
    for name, operand in (("a", a), ("b", b)):
        if not isinstance(operand, Planar):
            continue
        if operand.kind != "binary":
            raise ValueError(f"{OP}: {name} is of kind {operand.kind!r}; nearest: 'binary'")
        if operand.words.dtype != jnp.uint16:
            raise TypeError(f"{OP}: {name}.words must be uint16, not {operand.words.dtype}")
        operand.check(OP)
    if b.words.ndim != 2:
        raise ValueError(f"{OP}: b of shape {b.shape} must be of two axes, (n, k)")
    if not a.shape or a.shape[-1] != b.length:
        raise ValueError(f"{OP}: a of shape {a.shape} does not end in k={b.length}")
    if not isinstance(a, Planar):
        if a.dtype != jnp.int8:
            raise TypeError(f"{OP}: a must be int8 or packed, not {a.dtype}")
        return a
    if a.width != b.width:
        raise ValueError(f"{OP}: a.width={a.width} must be that of b; nearest: {b.width}")
    return a.words


def _result(b: Planar, scale: jax.Array | None, dtype: Any) -> Any:
    """The dtype of the result."""
    if scale is None:
        return jnp.dtype(jnp.int32 if dtype is None else dtype)
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(f"{OP}: scale must be floating, not {scale.dtype}")
    if scale.shape != b.shape[:1]:
        raise ValueError(f"{OP}: scale of shape {scale.shape} must be {b.shape[:1]}")
    dtype = jnp.dtype(scale.dtype if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{OP}: dtype={dtype.name} with a scale; nearest: {scale.dtype.name}")
    return dtype


def _problem(a: jax.Array, b: Planar, scale: jax.Array | None, *, dtype: Any) -> Problem:
    return problem_of(a, b, dtype)
