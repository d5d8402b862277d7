"""The kernels for Hopper: `persistent`, of many rows; of few, b streams through registers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import _compat, plan
from jaxlab.kernels._compat import load, plgpu
from jaxlab.kernels.packing import Planar, unpack
from jaxlab.kernels.sign_matmul.persistent import persistent
from jaxlab.kernels.sign_matmul.reference import as_int8, scaled
from jaxlab.kernels.sign_matmul.shapes import Config, Problem, problem_of, refuse
from jaxlab.kernels.streamed import Piece, streamed
from jaxlab.kernels.unpacking import bfloat16_field, bfloat16_field_in_registers

DTYPES = ("int32", "float32", "bfloat16", "float16")


def mosaic_gpu(
    a: jax.Array,
    b: Planar,
    scale: jax.Array | None,
    *,
    dtype: Any,
    config: Config | plan.Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by a kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    problem = problem_of(a, b, dtype)
    given = problem.dtype in DTYPES
    other = "" if given else f"dtype={problem.dtype}; the kernel gives {', '.join(DTYPES)}"
    _compat.require(interpret, other, refuse(problem, config))
    if isinstance(config, plan.Config):
        return scaled(_few(problem, a, b, config, bool(interpret)), scale, dtype)
    return _many(problem, a, b, scale, dtype, config, bool(interpret))


def _few(
    problem: Problem, a: jax.Array, b: Planar, config: plan.Config, interpret: bool
) -> jax.Array:
    """The int32 product, of bfloat16 operands: sums below 2^24 are exact in float32."""
    field = bfloat16_field_in_registers if config.fast and not interpret else bfloat16_field

    def pieces(blocks: Sequence[Any]) -> list[Piece]:
        words = load(blocks[0], plgpu.Layout.WGMMA)
        return [
            (p * b.width, functools.partial(field, words, b.kind, p))
            for p in range(b.format.fields)
        ]

    # What fills a up is 0, so that b's +1 there counts nothing.
    x = jnp.pad(as_int8(a, b), ((0, 0), (0, b.padded - b.length))).astype(jnp.bfloat16)
    y = streamed(problem.stream, config, pieces, x, [b.words], None, jnp.float32, interpret)
    return y.astype(jnp.int32)


def _many(
    problem: Problem,
    a: jax.Array,
    b: Planar,
    scale: jax.Array | None,
    dtype: Any,
    config: Config,
    interpret: bool,
) -> jax.Array:
    bits_a, bits_b = problem.unpacked(config)
    whole = dataclasses.replace(b, length=b.padded)
    rows = ((0, problem.padded_rows - problem.rows), (0, 0))
    surplus = 0
    if problem.packed:
        # What fills both up is +1.
        surplus = b.padded - b.length
        left = jnp.pad(a, rows)
        left = left if bits_a else as_int8(left, whole)
    else:
        left = jnp.pad(a, (rows[0], (0, b.padded - b.length)))
    right = b.words if bits_b else unpack(whole)
    scales = [] if scale is None else [scale.astype(jnp.float32)]
    call = persistent(problem, config, bool(scales), surplus, dtype, interpret)
    return call(left, right, *scales)[: problem.rows]
