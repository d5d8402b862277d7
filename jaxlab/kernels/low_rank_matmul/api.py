"""The product of few rows with two thin factors."""

import math

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.low_rank_matmul.reference import xla
from jaxlab.kernels.low_rank_matmul.shapes import Config, Problem, problem_of
from jaxlab.kernels.rules import product


def low_rank_matmul(
    x: jax.Array,
    down: jax.Array,
    up: jax.Array,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`y = (x @ down) @ up`.

    What lies between is rounded to x's dtype, as that of two products is. Reverse mode gives
    gradients to all three; under `jax.vmap` over x alone it stays one pair of products. On several
    devices call it inside `jax.shard_map`.

    Args:
      x: floating, (..., k).
      down: (k, rank), in x's dtype.
      up: (rank, n), in x's dtype.
      implementation: None takes the kernels where they were measured to win and XLA elsewhere;
        "xla" or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernels on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., n), in x's dtype.

    Raises:
      TypeError: x is not floating, or a factor has another dtype.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> low_rank_matmul(jnp.ones((1, 3)), jnp.ones((3, 2)), jnp.ones((2, 2))).tolist()
    [[6.0, 6.0]]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"low_rank_matmul: x must be floating, not {x.dtype}")
    for name, factor in (("down", down), ("up", up)):
        if factor.dtype != x.dtype:
            raise TypeError(
                f"low_rank_matmul: {name} must be {x.dtype} as x is, not {factor.dtype}"
            )
        if factor.ndim != 2:
            raise ValueError(f"low_rank_matmul: {name} of {factor.shape} must have two axes")
    if x.ndim < 1 or x.shape[-1] != down.shape[0]:
        raise ValueError(f"low_rank_matmul: x of shape {x.shape} does not end in k={down.shape[0]}")
    if down.shape[1] != up.shape[0]:
        raise ValueError(
            f"low_rank_matmul: down of {down.shape} does not meet up of {up.shape}; nearest: "
            f"up of ({down.shape[1]}, {up.shape[1]})"
        )
    named = dispatch.asked("low_rank_matmul", implementation, interpret, config)
    lead, n = x.shape[:-1], up.shape[1]
    rows = x.reshape((-1, x.shape[-1]))
    if rows.shape[0] == 0:
        return jnp.zeros((*lead, n), x.dtype)
    op = "low_rank_matmul"
    matmul = product(op, op, _problem, xla, named, config, interpret)
    return matmul(rows, (), (down, up)).reshape((*lead, n))


def wins(x: jax.Array, down: jax.Array, up: jax.Array) -> bool:
    """Whether the kernels may run for these products: `JAXLAB_KERNELS` names them, or they were
    measured to win on this kind of device, and one device has the whole product.

    False for what `low_rank_matmul` does not take.
    """
    if x.ndim < 1 or down.ndim != 2 or up.ndim != 2 or not x.dtype == down.dtype == up.dtype:
        return False
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[-1] != down.shape[0]:
        return False
    rows = jax.ShapeDtypeStruct((math.prod(x.shape[:-1]), x.shape[-1]), x.dtype)
    return dispatch.takes("low_rank_matmul", problem_of(rows, down, up))


def _problem(x: jax.Array, packed: tuple[()], floating: tuple[jax.Array, jax.Array]) -> Problem:
    return problem_of(x, *floating)
