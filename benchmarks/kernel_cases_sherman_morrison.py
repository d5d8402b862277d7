"""What `kernels.py` measures of MKOR's update of inverse factors.

The floor reads a factor and writes it, each once; XLA reads it again after the product with the
vector, and MKOR's stabiliser before. At the sizes that the kernel does not take, the rows of the
update without a stabiliser say what a kernel could win there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from kernel_cell import Cell
from kernel_timing import copies_of

from jaxlab.kernels.sherman_morrison import Problem
from jaxlab.kernels.sherman_morrison.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.sherman_morrison.reference import xla
from jaxlab.optim.mkor.factors import sherman_morrison, stabilise


def as_mkor(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
    """The stabiliser, and then the update."""
    gamma, eps, zeta = scalars
    return sherman_morrison(stabilise(j, eps, zeta)[0], v, gamma=gamma)


def update_alone(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
    """Without a stabiliser."""
    return sherman_morrison(j, v, gamma=scalars[0])


def by_sums(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
    """The update alone, whose product with v is a sum of products."""
    gamma, wide = scalars[0], j.astype(jnp.float32)
    u = gamma * jnp.sum(wide * v[:, None, :], axis=2) + (1 - gamma) * v
    eye = jnp.eye(v.shape[1], dtype=jnp.float32)[None]
    below = (1 + jnp.sum(v * u, axis=1))[:, None, None]
    new = gamma * wide + (1 - gamma) * eye - u[:, :, None] * u[:, None, :] / below
    return new.astype(j.dtype)


ALONE = {"xla, no stabiliser": update_alone, "xla, no stabiliser, by sums": by_sums}


def _cell(stack: int, n: int, dtype: str) -> Cell:
    problem = Problem(stack, n, dtype)
    nbytes = 2 * stack * n**2 * jnp.dtype(dtype).itemsize
    configs = problem.candidates()
    scalars = jnp.asarray([0.95, 2.0, 0.9], jnp.float32)
    return Cell(
        problem=problem,
        nbytes=nbytes,
        flops=0,
        peak="float32",
        calls=[
            (*_factor(key, stack, n, dtype), scalars)
            for key in jax.random.split(jax.random.key(1), copies_of(nbytes))
        ],
        configs=configs,
        kernel=lambda config: functools.partial(mosaic_gpu, config=config, interpret=None),
        reference=xla,
        xla={"xla": xla, "xla as MKOR": as_mkor, **({} if configs else ALONE)},
        torch={},
        tolerance=1e-5 if dtype == "float32" else 2**-7,
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _factor(key: jax.Array, stack: int, n: int, dtype: str) -> Any:
    near = jax.random.normal(key, (stack, n, n)) / n
    v = jax.random.normal(key, (stack, n)) / n**0.5
    return (jnp.eye(n) + near + near.mT).astype(dtype), v


CELLS: dict[str, Callable[[], Cell]] = {
    f"{dtype} {n} s{stack}": functools.partial(_cell, stack, n, dtype)
    for dtype, n, stack in (
        ("float32", 512, 12),
        ("float32", 512, 1),
        ("bfloat16", 512, 12),
        ("bfloat16", 512, 1),
        ("float32", 1024, 1),
        ("float32", 2048, 1),
        ("float32", 4096, 1),
        ("bfloat16", 2048, 1),
        ("bfloat16", 4096, 1),
    )
}
