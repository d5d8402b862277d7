"""The product of many small matrices with one pair of factors."""

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.kron_matvec.reference import xla
from jaxlab.kernels.kron_matvec.shapes import Config, Problem, problem_of
from jaxlab.kernels.rules import product


def kron_matvec(
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`Y_s = A X_s B.T`: (A (x) B) times every sample as a vector in C's order.

    Float32 is float32: the kernel takes every number apart into three of bfloat16 and leaves out
    products below 2^-22 of the largest; what is not finite in a sample it may spread to others of
    the same 64 rows (sample, i). `jaxlab.kron.product.kron_matvec` takes any number of
    factors, and stacks of them. Reverse mode gives gradients to all three; under `jax.vmap` over x
    alone it stays one product. On several devices call it inside `jax.shard_map`.

    Args:
      x: floating, (..., n1, n2).
      a: (m1, n1), in x's dtype.
      b: (m2, n2), in x's dtype.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., m1, m2), in x's dtype.

    Raises:
      TypeError: x is not floating, or a factor has another dtype.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> kron_matvec(jnp.ones((5, 2, 3)), jnp.eye(2), 2 * jnp.ones((1, 3)))[0].tolist()
    [[6.0], [6.0]]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"kron_matvec: x must be floating, not {x.dtype}")
    for name, factor in (("a", a), ("b", b)):
        if factor.dtype != x.dtype:
            raise TypeError(f"kron_matvec: {name} must be {x.dtype} as x is, not {factor.dtype}")
        if factor.ndim != 2 or not factor.size:
            raise ValueError(f"kron_matvec: {name} of shape {factor.shape} must have two axes")
    n, m = (a.shape[1], b.shape[1]), (a.shape[0], b.shape[0])
    if x.shape[-2:] != n:
        raise ValueError(f"kron_matvec: x of shape {x.shape} does not end in {n}, as a and b do")
    named = dispatch.asked("kron_matvec", implementation, interpret, config)
    lead = x.shape[:-2]
    if not x.size:
        return jnp.zeros((*lead, *m), x.dtype)
    matvec = product("kron_matvec", "kron_matvec", _problem, xla, named, config, interpret)
    y = matvec(x.reshape((-1, n[0] * n[1])), (), (a, b))
    return y.reshape((*lead, *m))


def _problem(x: jax.Array, packed: tuple[()], floating: tuple[jax.Array, jax.Array]) -> Problem:
    return problem_of(x, *floating)
