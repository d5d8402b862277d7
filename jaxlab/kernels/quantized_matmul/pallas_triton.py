"""The same product through Pallas' Triton backend, which jax deprecates: a second opinion.

One program computes 64 rows of W (fewer where n is small) for all rows of x. It compiles where
Mosaic GPU does not, before Hopper.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels.dispatch import require_gpu
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.quantized_matmul.pallas_mosaic_gpu import zero_points
from jaxlab.kernels.quantized_matmul.shapes import Problem, problem_of
from jaxlab.kernels.streamed import MOST_ROWS
from jaxlab.kernels.unpacking import bfloat16_field

TILE = 32


def triton(
    x: jax.Array,
    packed: Planar,
    floating: tuple[jax.Array, jax.Array | None],
    *,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    try:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton as plt
    except ImportError as error:
        raise NotImplementedError("triton: this jax has no Triton backend") from error
    require_gpu(interpret)
    scale, zero = floating
    problem = problem_of(x.shape[0], packed, scale.shape[0])
    if reason := _refuse(problem, x):
        raise NotImplementedError(f"triton: {reason}")
    rows = max(16, pl.next_power_of_2(problem.rows))
    padded = jnp.pad(x, ((0, rows - problem.rows), (0, 0)))
    y = pl.pallas_call(
        functools.partial(_body, pl, problem),
        out_shape=jax.ShapeDtypeStruct((rows, problem.n), jnp.float32),
        grid=(problem.n // TILE,),
        in_specs=[
            pl.BlockSpec((rows, problem.k), lambda n: (0, 0)),
            pl.BlockSpec((TILE, packed.words.shape[1]), lambda n: (n, 0)),
            pl.BlockSpec((scale.shape[0], TILE), lambda n: (0, n)),
        ],
        out_specs=pl.BlockSpec((rows, TILE), lambda n: (0, n)),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4),
        interpret=bool(interpret),
    )(padded, packed.words, scale)[: problem.rows]
    if zero is not None:
        y = y - zero_points(x, scale, zero)
    return y.astype(x.dtype)


def _refuse(problem: Problem, x: jax.Array) -> str:
    block = FORMATS[problem.kind].fields * problem.width
    if x.dtype != jnp.bfloat16:
        return f"x is {x.dtype}; the kernel takes bfloat16"
    if problem.rows > MOST_ROWS or problem.n % TILE or problem.k % block:
        return f"no tiles for {problem.rows} rows, n={problem.n}, k={problem.k}"
    if problem.group and (problem.group % problem.width or block % problem.group):
        return f"groups of {problem.group}; it takes multiples of {problem.width} to {block}"
    return ""


def _body(pl: Any, problem: Problem, x_ref: Any, w_ref: Any, s_ref: Any, out_ref: Any) -> None:
    fields, width = FORMATS[problem.kind].fields, problem.width
    grouped = problem.plan.groups
    each = fields // grouped if grouped else fields

    def scaled(part: jax.Array, group: Any) -> jax.Array:
        return part * s_ref[pl.ds(group, 1), :].astype(jnp.float32)

    def step(b: jax.Array, total: jax.Array) -> jax.Array:
        words = w_ref[:, pl.ds(b * width, width)]
        part = jnp.zeros_like(total)
        for p in range(fields):
            column = b * (fields * width) + p * width
            w = bfloat16_field(words, problem.kind, p)
            x = x_ref[:, pl.ds(column, width)]
            part += jnp.dot(x, w.T, preferred_element_type=jnp.float32)
            if (p + 1) % each == 0 and grouped:
                total += scaled(part, b * grouped + p // each)
                part = jnp.zeros_like(total)
        return total if grouped else total + part

    start = jnp.zeros(out_ref.shape, jnp.float32)
    total = lax.fori_loop(0, problem.k // (fields * width), step, start)
    out_ref[...] = total if grouped else scaled(total, 0)
