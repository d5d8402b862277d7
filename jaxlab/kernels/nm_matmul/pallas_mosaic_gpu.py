"""The kernel for Hopper: kept values are put at their places in registers, and met by `x[:, i::m]`.

The tensor cores multiply the zeros too: what is saved is reading them, so it pays for few rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu
from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.nm_matmul.shapes import Problem, problem_of, refuse
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.packing_nm import place_bits
from jaxlab.kernels.plan import Config
from jaxlab.kernels.streamed import Piece, streamed


def mosaic_gpu(
    m: int,
    block: int,
    x: jax.Array,
    code: Planar,
    values: jax.Array,
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    _compat.require()
    require_hopper(interpret)
    problem = problem_of(x.shape[0], code, values.shape[0], m, block)
    if x.dtype != jnp.bfloat16 or values.dtype != jnp.bfloat16:
        raise NotImplementedError(
            f"mosaic_gpu: x is {x.dtype}, the values {values.dtype}; the kernel takes bfloat16"
        )
    if reason := refuse(problem, config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    # By block: all that meets place 0 of the block's groups, then all that meets place 1.
    split = x.reshape(x.shape[0], -1, problem.codes, m)
    ordered = jnp.swapaxes(split, 2, 3).reshape(x.shape)
    out_dtype = jnp.bfloat16 if config.split_k == 1 else jnp.float32
    weights = [*values, code.words]
    unpack = _unpack(problem)
    y = streamed(problem.plan, config, unpack, ordered, weights, None, out_dtype, bool(interpret))
    return y.astype(x.dtype)


def _unpack(problem: Problem) -> Callable[[Sequence[Any]], list[Piece]]:
    width, bits = problem.width, place_bits(problem.m)
    form = FORMATS[problem.kind]

    def place(words: jax.Array, field: int, plane: int) -> jax.Array:
        shift = form.bits * field + bits * plane
        moved = lax.shift_right_logical(words, jnp.full_like(words, shift)) if shift else words
        return moved & jnp.full_like(words, 2**bits - 1)

    def unpack(blocks: Sequence[Any]) -> list[Piece]:
        *planes, codes = blocks
        words = load(codes, plgpu.Layout.WGMMA)
        pieces: list[Piece] = []
        for field in range(form.fields):
            at = pl.ds(field * width, width)
            kept = [load(plane.at[:, at], plgpu.Layout.WGMMA) for plane in planes]
            where = [place(words, field, j) for j in range(len(planes))]
            for i in range(problem.m):

                def piece(i: int = i, kept: Any = kept, where: Any = where) -> jax.Array:
                    a = jnp.zeros_like(kept[0])
                    for value, found in zip(kept, where, strict=True):
                        a = jnp.where(found == jnp.full_like(found, i), value, a)
                    return a

                pieces.append((i * problem.codes + field * width, piece))
        return pieces

    return unpack
