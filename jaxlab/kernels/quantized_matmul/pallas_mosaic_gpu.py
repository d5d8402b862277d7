"""The kernel for Hopper: W on the tensor cores' rows, unpacked in registers; x on their columns.

A block of threads computes 64 rows of W (or a few times 64) for all rows of x. One warpgroup
brings packed words, scales and x by TMA, several stages ahead; the others unpack a field of a tile
at a time and multiply. Where groups of k share a scale, the integers of a group are summed up
exactly as they are, and the sum is scaled in float32.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.dispatch import require_gpu
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.quantized_matmul.shapes import TILE, Config, Problem, problem_of, refuse
from jaxlab.kernels.unpacking import bfloat16_field, bfloat16_field_in_registers

MEMORY_REGISTERS = 40


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
    _compat.require()
    require_gpu(interpret)
    scale, zero = floating
    problem = problem_of(x.shape[0], packed, scale.shape[0])
    if x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"mosaic_gpu: x is {x.dtype}; the kernel takes bfloat16")
    if reason := refuse(problem, config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    padded = jnp.pad(x, ((0, problem.padded_rows - problem.rows), (0, 0)))
    # Partial sums, and what zero points are taken off, are not rounded yet.
    final = config.split_k == 1 and zero is None
    call = _build(problem, config, bool(interpret), jnp.bfloat16 if final else jnp.float32)
    parts = call(padded, packed.words, scale)
    y = (jnp.sum(parts, axis=0) if config.split_k > 1 else parts)[: problem.rows]
    if zero is not None:
        y = y.astype(jnp.float32) - zero_points(x, scale, zero)
    return y.astype(x.dtype)


def zero_points(x: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
    """What zero points take off: the sums of x over groups times `zero * scale`."""
    wide = x.astype(jnp.float32).reshape(x.shape[0], scale.shape[0], -1)
    shift = zero.astype(jnp.float32) * scale.astype(jnp.float32)
    return jnp.matmul(jnp.sum(wide, axis=2), shift, precision=lax.Precision.HIGHEST)


def _build(
    problem: Problem, config: Config, interpret: bool, out_dtype: Any
) -> Callable[..., jax.Array]:
    tiles, ways, width = config.row_tiles, config.k_ways, problem.width
    rows, columns = tiles * TILE, problem.padded_rows
    fields, workers = FORMATS[problem.kind].fields, tiles * ways
    steps, grouped = problem.steps(config), problem.groups_of_tile
    field = bfloat16_field_in_registers if config.fast and not interpret else bfloat16_field

    def broadcast(x: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(x.astype(jnp.float32), (TILE, columns), (0,))

    def body(x_gmem: Any, w_gmem: Any, s_gmem: Any, out_gmem: Any, **scratch: Any) -> None:
        layout = plgpu.Layout.WGMMA
        first = lax.axis_index("k") * jnp.int32(steps)
        row = lax.axis_index("n")
        worker = lax.axis_index("worker")
        tile, way = lax.div(worker, jnp.int32(ways)), lax.rem(worker, jnp.int32(ways))
        staging = scratch["staging"].at[worker] if interpret else None

        def multiply(acc: Any, w: jax.Array, x_smem: Any, which: Iterable[int]) -> None:
            for p in which:
                a = field(w, problem.kind, p)
                at = pl.ds(way * (fields * width) + p * width, width)
                _compat.accumulate(acc, a, transposed(x_smem.at[:, at]), staging)
            plgpu.wgmma_wait(0)

        def step(_: Any, x_smem: Any, w_smem: Any, *rest: Any) -> Any:
            at = w_smem.at[pl.ds(tile * TILE, TILE), pl.ds(way * width, width)]
            w = load(at, layout)
            if not grouped:
                multiply(rest[0], w, x_smem, range(fields))
                return rest[0]
            s_smem, total = rest
            each = fields // grouped
            for g in range(grouped):

                def product(acc: Any, g: int = g) -> jax.Array:
                    multiply(acc, w, x_smem, range(g * each, (g + 1) * each))
                    return acc[...]

                part = pl.run_scoped(product, _compat.sums(TILE, columns))
                at = s_smem.at[way * grouped + g, pl.ds(tile * TILE, TILE)]
                total = total + part * broadcast(load(at, layout.reduce(1)))
            return total

        def compute(pipeline: Any) -> None:
            if grouped:
                zeros = jnp.zeros((TILE, columns), jnp.float32)
                total = pipeline(plgpu.layout_cast(zeros, layout))
            else:

                def product(acc: Any) -> jax.Array:
                    pipeline(acc)
                    return acc[...]

                total = pl.run_scoped(product, _compat.sums(TILE, columns))
                at = s_gmem.at[0, pl.ds(row * rows + tile * TILE, TILE)]
                scale = load(at, layout.reduce(1), optimized=False)
                total = total * broadcast(scale)
            if ways == 1:
                finish(total)
                return
            partial, barrier = scratch["partial"], scratch["barrier"]
            partial[worker] = total
            plgpu.barrier_arrive(barrier)
            plgpu.barrier_wait(barrier)

            @pl.when(way == 0)
            def _() -> None:
                whole = total
                for other in range(1, ways):
                    whole = whole + load(partial.at[worker + other], layout)
                finish(whole)

        def finish(total: jax.Array) -> None:
            out_smem = scratch["out_smem"].at[tile]
            turned = plgpu.layout_cast(total.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            transposed(out_smem)[...] = turned
            plgpu.commit_smem()
            at = pl.ds(row * rows + tile * TILE, TILE)
            target = out_gmem.at[lax.axis_index("k")] if config.split_k > 1 else out_gmem
            plgpu.copy_smem_to_gmem(out_smem, target.at[:, at])
            plgpu.wait_smem_to_gmem(0)

        specs = [
            plgpu.BlockSpec(
                (columns, ways * fields * width),
                lambda k: (0, first + k),
                transforms=_compat.tiled(width, 16),
            ),
            plgpu.BlockSpec(
                (rows, ways * width),
                lambda k: (row, first + k),
                transforms=_compat.tiled(width, 16),
            ),
        ]
        if grouped:
            specs.append(plgpu.BlockSpec((ways * grouped, rows), lambda k: (first + k, row)))
        pipeline = plgpu.emit_pipeline_warp_specialized(
            step,
            grid=(steps,),
            memory_registers=MEMORY_REGISTERS,
            in_specs=specs,
            wg_axis="worker",
            num_compute_wgs=workers,
            max_concurrent_steps=config.stages,
            compute_context=compute,
        )
        pipeline(*(x_gmem, w_gmem, s_gmem)[: len(specs)])

    scratch = {
        "partial": plgpu.SMEM((workers, TILE, columns), jnp.float32),
        "out_smem": plgpu.SMEM((tiles, columns, TILE), out_dtype),
        "barrier": plgpu.Barrier(num_arrivals=workers),
    }
    if interpret:
        transforms = _compat.tiled(width, 16)
        staging = plgpu.SMEM((workers, TILE, width), jnp.bfloat16, transforms=transforms)
        scratch["staging"] = staging
    shape = (columns, problem.n)
    shape = (config.split_k, *shape) if config.split_k > 1 else shape
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct(shape, out_dtype),
        scratch=scratch,
        grid=(problem.n // rows, config.split_k),
        grid_names=("n", "k"),
        num_threads=workers + 1,
        thread_name="worker",
        interpret=interpret,
    )
