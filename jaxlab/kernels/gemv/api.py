"""The product of a matrix of bfloat16, or of its transpose, and a vector."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.gemv.reference import sums, xla
from jaxlab.kernels.gemv.shapes import Config, Problem, problem_of
from jaxlab.kernels.rules import product


def gemv(
    a: jax.Array,
    x: jax.Array,
    *,
    transposed: bool = False,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`A @ x`, or `A.T @ x`, of all digits of x.

    The name is that of BLAS. The matrix is read once, as it is stored: a float32 vector is three of
    bfloat16, whose products with others are exact, and sums are float32's. It has derivatives in
    both, but for `jax.linear_transpose`. On several devices call it inside `jax.shard_map`.

    Args:
      a: bfloat16, (m, n).
      x: bfloat16 or float32, (n,), or (m,) if `transposed`. Above 3.38e38 it counts as infinite.
      transposed: whether rows are summed, and not columns.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      float32, (m,), or (n,) if `transposed`. Infinite or NaN where a number of `a` that takes part
      is not finite.

    Raises:
      TypeError: another dtype.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> gemv(jnp.ones((2, 3), jnp.bfloat16), jnp.array([1.0, 0.5, 2**-9])).tolist()
    [1.501953125, 1.501953125]
    >>> gemv(jnp.ones((2, 3), jnp.bfloat16), jnp.array([1.0, 0.5]), transposed=True).tolist()
    [1.5, 1.5, 1.5]
    """
    if a.dtype != jnp.bfloat16:
        raise TypeError(f"gemv: a must be bfloat16, not {a.dtype}")
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        raise TypeError(f"gemv: x must be bfloat16 or float32, not {x.dtype}")
    if a.ndim != 2:
        raise ValueError(f"gemv: a of shape {a.shape} must have two axes")
    inputs = a.shape[0 if transposed else 1]
    if x.shape != (inputs,):
        raise ValueError(
            f"gemv: x of shape {x.shape} does not meet a of {a.shape}, transposed={transposed}; "
            f"nearest: ({inputs},)"
        )
    named = dispatch.asked("gemv", implementation, interpret, config)
    if not a.size:
        return jnp.zeros(a.shape[1 if transposed else 0], jnp.float32)
    matvec = product("gemv", "gemv", _problem, xla, named, config, interpret, transposed=transposed)
    return _differentiable(lambda a, x: matvec(x[None], (), (a,))[0], transposed)(a, x)


def wins(a: Any, x: Any, *, transposed: bool = False) -> bool:
    """Whether the kernel may run for this product: `JAXLAB_KERNELS` names it, or it was measured to
    win on this kind of device, and one device has the whole product.

    Of both nothing but shape and dtype is read. False for what `gemv` does not take.
    """
    if a.dtype != jnp.bfloat16 or x.dtype not in (jnp.bfloat16, jnp.float32) or a.ndim != 2:
        return False
    if x.shape != (a.shape[0 if transposed else 1],):
        return False
    problem = problem_of(jax.ShapeDtypeStruct((1, *x.shape), x.dtype), a, transposed)
    # A size between those where it won may be none that it takes.
    return bool(problem.candidates(1)) and dispatch.takes("gemv", problem)


def _differentiable(matvec: Callable[..., jax.Array], transposed: bool) -> Callable[..., jax.Array]:
    """The product with every derivative, from sums that round no cotangent to bfloat16."""
    fn = jax.custom_jvp(matvec)

    def jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (a, x), (d_a, d_x) = primals, tangents
        # A matrix that nothing is asked of has no zeros for a derivative, either.
        pairs = (d_a, x), (a, d_x)
        terms = [sums(*p, transposed=transposed) for p in pairs if not any(map(_is_zero, p))]
        y = fn(a, x)
        return y, functools.reduce(jnp.add, terms, jnp.zeros_like(y))

    fn.defjvp(jvp, symbolic_zeros=True)
    return fn


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _problem(
    x: jax.Array, packed: tuple[()], floating: tuple[jax.Array], *, transposed: bool
) -> Problem:
    return problem_of(x, floating[0], transposed)
