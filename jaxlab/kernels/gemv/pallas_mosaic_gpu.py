"""The kernel for Hopper: the matrix goes from memory to the tensor cores as it lies, once.

A block of threads takes pieces of columns in turn with the others, so that those that run together
read what lies together. Tiles come by TMA and are the left operand where they land; the right one
has the parts of the vector in three of its eight columns, whose sum is the product. How tensor
cores round is not relied on for long sums: those of every tile are added up outside, in float32.
For `A @ x` every block of threads has sums of its own, which XLA adds up; for `A.T @ x` it has all
rows of its columns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import pl, plgpu, transposed
from jaxlab.kernels.gemv.reference import parts
from jaxlab.kernels.gemv.shapes import Config, Problem, problem_of
from jaxlab.kernels.plan import ROWS_STEP, TILE


def mosaic_gpu(
    x: jax.Array,
    packed: tuple[()],
    floating: tuple[jax.Array],
    *,
    transposed: bool,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    (a,) = floating
    problem = problem_of(x, a, transposed)
    _compat.require(interpret, problem.refuse(config))
    apart = parts(x[0], a.dtype)
    columns = jnp.pad(apart, ((0, ROWS_STEP - apart.shape[0]), (0, 0)))
    y = _build(problem, config, bool(interpret))(a, columns)
    return (y if transposed else jnp.sum(y, axis=0))[None]


def _build(problem: Problem, config: Config, interpret: bool) -> Callable[..., jax.Array]:
    tall, wide = config.tall * TILE, config.wide * TILE
    stages, blocks, turned = config.stages, config.blocks, problem.transposed
    bands, pieces = problem.m // tall, problem.n // wide
    # Tiles to a piece of columns, one below the other.
    below, outputs = (bands, wide) if turned else (1, tall)

    def body(a_gmem: Any, x_gmem: Any, y_gmem: Any, **scratch: Any) -> None:
        band, block = (lax.axis_index(name) for name in ("band", "block"))
        mine = lax.div(jnp.int32(pieces + blocks - 1) - block, jnp.int32(blocks))
        x_smem, y_smem = scratch["x"], scratch["y"]

        def columns(i: Any) -> Any:
            return pl.ds((block + i * jnp.int32(blocks)) * jnp.int32(wide), wide)

        def fetch(t: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[slot]
            piece = columns(lax.div(t, jnp.int32(below)))
            row = lax.rem(t, jnp.int32(below)) if turned else band
            source = a_gmem.at[pl.ds(row * jnp.int32(tall), tall), piece]
            plgpu.copy_gmem_to_smem(source, scratch["a"].at[slot], arrived)
            if not turned:
                plgpu.copy_gmem_to_smem(x_gmem.at[:, piece], x_smem.at[slot], arrived)

        def step(t: Any, total: jax.Array) -> jax.Array:
            slot = lax.rem(t, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[slot])

            def product(acc: Any) -> jax.Array:
                tile = scratch["a"].at[slot]
                if turned:
                    of_tile = x_smem.at[lax.rem(t, jnp.int32(below))]
                    plgpu.wgmma(acc, transposed(tile), transposed(of_tile))
                else:
                    plgpu.wgmma(acc, tile, transposed(x_smem.at[slot]))
                plgpu.wgmma_wait(0)
                return acc[...]

            total = total + pl.run_scoped(product, _compat.sums(outputs, ROWS_STEP))

            @pl.when(t + stages < mine * below)
            def _() -> None:
                fetch(t + jnp.int32(stages), slot)

            return total

        def finish(total: jax.Array, out: Any) -> None:
            # What was there before must have been read.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            y_smem[...] = jnp.sum(total, axis=1)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(y_smem, out)

        def piece(i: Any, total: jax.Array) -> jax.Array:
            summed = _compat.counted(
                below, lambda j, total: step(i * jnp.int32(below) + j, total), total
            )
            if not turned:
                return summed
            finish(summed, y_gmem.at[columns(i)])
            return total

        for slot in range(stages):

            @pl.when(slot < mine * below)
            def _(slot: int = slot) -> None:
                fetch(jnp.int32(slot), jnp.int32(slot))

        if turned:
            for row in range(bands):
                source = x_gmem.at[:, pl.ds(row * tall, tall)]
                plgpu.copy_gmem_to_smem(source, x_smem.at[row], scratch["ready"])
            plgpu.barrier_wait(scratch["ready"])
        zeros = jnp.zeros((outputs, ROWS_STEP), jnp.float32)
        total = _compat.counted(mine, piece, plgpu.layout_cast(zeros, plgpu.Layout.WGMMA))
        if not turned:
            finish(total, y_gmem.at[block, pl.ds(band * jnp.int32(tall), tall)])
        plgpu.wait_smem_to_gmem(0)

    tiling = _compat.tiled(TILE, 16)
    x_shape = (bands, ROWS_STEP, tall) if turned else (stages, ROWS_STEP, wide)
    scratch = {
        "a": plgpu.SMEM((stages, tall, wide), jnp.bfloat16, transforms=tiling),
        "x": plgpu.SMEM(x_shape, jnp.bfloat16, transforms=tiling),
        "y": plgpu.SMEM((outputs,), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=1 if turned else 2, num_barriers=stages),
    }
    if turned:
        scratch["ready"] = plgpu.Barrier(num_arrivals=bands)
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((problem.n,) if turned else (blocks, problem.m), jnp.float32),
        scratch=scratch,
        grid=(1 if turned else bands, blocks),
        grid_names=("band", "block"),
        num_threads=1,
        thread_name="way",
        interpret=interpret,
    )
