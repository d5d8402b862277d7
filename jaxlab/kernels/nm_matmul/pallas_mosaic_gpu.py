"""The kernel for Hopper: dense weights are rebuilt in registers, 64 columns at a time.

The tensor cores multiply the zeros too: what is saved is reading them, so it pays for few rows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu
from jaxlab.kernels.layout_nm import PIECE
from jaxlab.kernels.nm_matmul.ordering import in_shared_memory
from jaxlab.kernels.nm_matmul.reference import Floating, joined
from jaxlab.kernels.nm_matmul.registers import piece_of
from jaxlab.kernels.nm_matmul.shapes import Cut, Problem, problem_of, refuse
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.packing_nm import PackedNM, dense_lanes
from jaxlab.kernels.plan import Config
from jaxlab.kernels.streamed import Piece, streamed
from jaxlab.kernels.unpacking import bfloat16_field, bfloat16_field_in_registers


def mosaic_gpu(
    x: jax.Array,
    packed: tuple[PackedNM, Planar | None],
    floating: Floating,
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    scale, weights = floating[1], joined(*packed, floating[0])
    values = weights.values
    problem = problem_of(x.shape[0], weights, 1 if scale is None else scale.shape[0])
    exact = "" if isinstance(values, Planar) else _compat.not_bfloat16("packed.values", values)
    dtypes = _compat.not_bfloat16("x", x), exact, _compat.not_a_scale(scale)
    _compat.require(interpret, *dtypes, refuse(problem, config))
    # Interpreters know no addresses.
    in_place = isinstance(config, Cut) and config.in_place and not interpret
    ordered = x if in_place else dense_lanes(x, problem.layout)
    arrange = functools.partial(in_shared_memory, layout=problem.layout) if in_place else None
    out_dtype = jnp.bfloat16 if config.split_k == 1 else jnp.float32
    operands = [values.words if isinstance(values, Planar) else values, weights.code]
    unpack = _unpack(problem, bool(interpret))
    y = streamed(
        problem.plan,
        config,
        unpack,
        ordered,
        operands,
        scale,
        out_dtype,
        bool(interpret),
        arrange,
    )
    return y.astype(x.dtype)


def _unpack(problem: Problem, interpret: bool) -> Callable[[Sequence[Any]], list[Piece]]:
    layout, kind = problem.layout, problem.kind
    field = bfloat16_field if interpret else bfloat16_field_in_registers

    def unpack(blocks: Sequence[Any]) -> list[Piece]:
        code = load(blocks[1], plgpu.Layout.WGMMA)
        words = load(blocks[0], plgpu.Layout.WGMMA) if kind else None

        def make(tile: int, piece: int) -> jax.Array:
            # Here, and not once for all pieces: of values that a piece does not need nothing is
            # read, and those that it needs hold no registers before.
            if words is None:
                columns = pl.ds(tile * layout.values, layout.values)
                fields = [load(blocks[0].at[:, columns], plgpu.Layout.WGMMA)]
            else:
                fields = [field(words, kind, p) for p in range(FORMATS[kind].fields)]
            tiles = (tile if kind else 0, tile)
            return piece_of(layout, fields, code, tiles, piece, compiled=not interpret)

        return [
            (tile * layout.tile + piece * PIECE, functools.partial(make, tile, piece))
            for tile in range(problem.tiles)
            for piece in range(layout.tile // PIECE)
        ]

    return unpack
