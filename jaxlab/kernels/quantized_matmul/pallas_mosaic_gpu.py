"""The kernel for Hopper: packed words are unpacked in registers, a field of a block at a time."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, plgpu
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul.shapes import problem_of, refuse
from jaxlab.kernels.streamed import Piece, streamed
from jaxlab.kernels.unpacking import bfloat16_field, bfloat16_field_in_registers


def mosaic_gpu(
    x: jax.Array,
    packed: Planar,
    floating: tuple[jax.Array, jax.Array | None],
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    scale, zero = floating
    problem = problem_of(x.shape[0], packed, scale.shape[0])
    dtypes = _compat.not_bfloat16("x", x), _compat.not_a_scale(scale)
    _compat.require(interpret, *dtypes, refuse(problem, config))
    field = bfloat16_field_in_registers if config.fast and not interpret else bfloat16_field

    def unpack(blocks: Sequence[Any]) -> list[Piece]:
        words = load(blocks[0], plgpu.Layout.WGMMA)
        return [
            (p * packed.width, functools.partial(field, words, packed.kind, p))
            for p in range(FORMATS[packed.kind].fields)
        ]

    # Partial sums, and what zero points are taken off, are not rounded yet.
    final = config.split_k == 1 and zero is None
    out_dtype = jnp.bfloat16 if final else jnp.float32
    weights = [packed.words]
    y = streamed(problem.plan, config, unpack, x, weights, scale, out_dtype, bool(interpret))
    if zero is not None:
        y = y.astype(jnp.float32) - zero_points(x, scale, zero)
    return y.astype(x.dtype)


def zero_points(x: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
    """What zero points take off: the sums of x over groups times `zero * scale`."""
    wide = x.astype(jnp.float32).reshape(x.shape[0], scale.shape[0], -1)
    shift = zero.astype(jnp.float32) * scale.astype(jnp.float32)
    return jnp.matmul(jnp.sum(wide, axis=2), shift, precision=lax.Precision.HIGHEST)
