"""Shared memory of Hopper's products with packed weights: rings of steps that are on their way."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import plgpu
from jaxlab.kernels.plan import TILE, Config, Plan


def shared_memory(
    plan: Plan,
    config: Config,
    scale: jax.Array | None,
    dtypes: Sequence[Any],
    out_dtype: Any,
    interpret: bool,
) -> dict[str, Any]:
    """What `streamed`'s body has of shared memory and barriers; `Plan.shared_bytes` counts it.

    Args:
      plan: the sizes.
      config: the cut.
      scale: as `streamed` has it.
      dtypes: of the packed operands.
      out_dtype: of the result.
      interpret: on a CPU, where tensor cores take both operands from memory.
    """
    columns, ways, depth = plan.padded_rows, config.ways, config.depth
    stages, slots, groups = plan.stages(config), plan.slots(config), plan.groups * config.depth
    x_shape = (ways, slots, columns, plan.x_columns * depth // config.parts)
    x_tiling = _compat.tiled(plan.width, 16)
    scratch = {
        "x": plgpu.SMEM(x_shape, jnp.bfloat16, transforms=x_tiling),
        "out_smem": plgpu.SMEM((columns, TILE), out_dtype),
        "arrived": plgpu.Barrier(
            num_arrivals=len(dtypes) + bool(groups) + (not config.apart), num_barriers=ways * stages
        ),
    }
    if config.apart:
        scratch["x_arrived"] = plgpu.Barrier(num_barriers=ways * slots)
    for i, (width, bits, dtype) in enumerate(zip(plan.w_columns, plan.w_bits, dtypes, strict=True)):
        transforms = _compat.tiled(min(plan.width, width), bits)
        shape = (ways, stages, TILE, width * depth)
        scratch[f"w{i}"] = plgpu.SMEM(shape, dtype, transforms=transforms)
    if scale is not None and groups:
        scratch["scale"] = plgpu.SMEM((ways, stages, groups, TILE), scale.dtype)
    if ways > 1:
        scratch["partial"] = plgpu.SMEM((ways - 1, TILE, columns), jnp.float32)
        scratch["met"] = plgpu.Barrier(num_arrivals=ways)
    if interpret:
        staged = (ways, TILE, plan.width)
        scratch["staging"] = plgpu.SMEM(staged, jnp.bfloat16, transforms=x_tiling)
    return scratch
