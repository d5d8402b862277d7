"""The product of activations with a Monarch matrix or its transpose."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.monarch_matmul import reference
from jaxlab.kernels.monarch_matmul.shapes import Config, problem_of
from jaxlab.kernels.rules import folding

OP = "monarch_matmul"


def monarch_matmul(
    x: jax.Array,
    w1: jax.Array,
    w2: jax.Array,
    *,
    blocked: bool = False,
    transpose: bool = False,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """Two block-diagonal products with a fixed permutation between them, and one after.

    The factors are those of `jaxlab.methods.monarch.monarch_apply`: the middle index m = kk q + a
    of the first product is slot m div l of block m mod l of the second. Sums are in float32; the
    middle is rounded to x's dtype. Reverse mode gives gradients to all three, that of x by the
    same implementation; there is no forward mode. Under `jax.vmap` over x alone it stays one
    product. On several devices call it inside `jax.shard_map`.

    Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
    Training", ICML 2022, section 3.

    Args:
      x: floating, (..., k p), or (..., l s) if `transpose`.
      w1: floating, (k, q, p); cast to x's dtype, as w2 is.
      w2: floating, (l, s, r) with l r = k q.
      blocked: whether entry t of block j of w2 is output j s + t, and not t l + j.
      transpose: whether to multiply with the transpose.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can. Gradients fall
        back to XLA.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., l s), or (..., k p) if `transpose`, in x's dtype.

    Raises:
      TypeError: an array is not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> monarch_matmul(jnp.ones(6), jnp.ones((2, 2, 3)), jnp.ones((2, 4, 2)))
    Array([6., 6., 6., 6., 6., 6., 6., 6.], dtype=float32)
    """
    width = _check(x, w1, w2, transpose)
    named = dispatch.asked(OP, implementation, interpret, config)
    rows = x.reshape((-1, x.shape[-1]))
    if rows.shape[0] == 0:
        return jnp.zeros((*x.shape[:-1], width), x.dtype)
    y = _product(named, config, interpret, blocked, transpose)(rows, w1, w2)
    return y.reshape((*x.shape[:-1], width))


def takes_kernel(
    x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool = False, transpose: bool = False
) -> bool:
    """Whether the kernel may run here: `JAXLAB_KERNELS` names it, or a stored measurement says that
    it wins, and one device has the whole product.

    False for what `monarch_matmul` does not take, and unless named, on a CPU.

    Args:
      x: as for `monarch_matmul`, likewise the others.
      w1: (k, q, p).
      w2: (l, s, r).
      blocked: the order of outputs.
      transpose: whether it is the product with the transpose.
    """
    if x.ndim < 1 or (w1.ndim, w2.ndim) != (3, 3):
        return False
    if not all(jnp.issubdtype(array.dtype, jnp.floating) for array in (x, w1, w2)):
        return False
    if x.dtype != jnp.bfloat16 and not dispatch.asked(OP, None, None):
        return False  # problems do not tell dtypes apart
    problem = problem_of(math.prod(x.shape[:-1]), w1, w2, blocked=blocked, transpose=transpose)
    return dispatch.takes(OP, problem)


def _check(x: jax.Array, w1: jax.Array, w2: jax.Array, transpose: bool) -> int:
    """The number of outputs, if the operands fit."""
    for name, array in (("x", x), ("w1", w1), ("w2", w2)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{OP}: {name} must be floating, not {array.dtype}")
    for name, array in (("w1", w1), ("w2", w2)):
        if array.ndim != 3:
            raise ValueError(f"{OP}: {name} of shape {array.shape} must have three axes")
    (k, q, p), (l, s, r) = w1.shape, w2.shape  # noqa: E741
    if k * q != l * r:
        raise ValueError(
            f"{OP}: w1 of shape {w1.shape} gives {k} x {q} = {k * q} numbers, and w2 of shape "
            f"{w2.shape} takes {l} x {r} = {l * r}"
        )
    inputs, outputs = (l * s, k * p) if transpose else (k * p, l * s)
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"{OP}: x of shape {x.shape} does not end in {inputs}")
    return outputs


# Once for each setting: jax knows functions with rules of their own by identity.
@functools.cache
def _product(
    named: tuple[str, ...],
    config: Config | None,
    interpret: bool | None,
    blocked: bool,
    transpose: bool,
) -> dispatch.Implementation:
    """(x, w1, w2) to the product, x of two axes, with the rules of derivative and batching."""
    xla = functools.partial(reference.xla, blocked=blocked, transpose=transpose)

    def forward(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
        # Here and not before, so that a batch that was folded into the rows is counted.
        problem = problem_of(x.shape[0], w1, w2, blocked=blocked, transpose=transpose)
        chosen = dispatch.choice(OP, problem, config, named)
        kernel = functools.partial(
            dispatch.on_demand(OP, "mosaic_gpu"),
            blocked=blocked,
            transpose=transpose,
            config=chosen.config,
            interpret=interpret,
        )
        kernels = {"mosaic_gpu": kernel, "xla": xla}
        return dispatch.run(OP, kernels, x, w1, w2, named=named, chosen=chosen)

    folded = folding(OP, forward, xla, named)

    @jax.custom_vjp
    def product(x: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
        return folded(x, w1, w2)

    def ahead(x: jax.Array, w1: jax.Array, w2: jax.Array) -> tuple[jax.Array, Any]:
        # By the function that has a derivative, so that derivatives have one.
        return product(x, w1, w2), (x, w1, w2)

    def back(residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, w1, w2 = residuals
        others = (*named, "xla") if named and "xla" not in named else named
        d_x = _product(others, config, interpret, blocked, not transpose)(g, w1, w2)
        # x . (W' g) is g . (W x): the transpose has the same gradient with the two exchanged.
        ends = (g, x) if transpose else (x, g)
        return d_x, *reference.factor_gradients(*ends, w1, w2, blocked=blocked)

    product.defvjp(ahead, back)
    return jax.jit(product)
