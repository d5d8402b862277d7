"""The kernel for Hopper: the matrix goes from memory to the tensor cores as it lies, once.

A block of threads takes pieces of columns in turn with the others, so that those that run together
read what lies together. Tiles come by TMA and are the left operand where they land; the right one
has the parts of the vector in three of its eight columns, whose sum is the product. How tensor
cores round is not relied on for long sums: those of every tile are added up outside, in float32.
Every block of threads has sums of its own, which XLA adds up.
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
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    (a,) = floating
    problem = problem_of(x, a)
    _compat.require(interpret, problem.refuse(config))
    apart = parts(x[0], a.dtype)
    columns = jnp.pad(apart, ((0, ROWS_STEP - apart.shape[0]), (0, 0)))
    return jnp.sum(_build(problem, config, bool(interpret))(a, columns), axis=0)[None]


def _build(problem: Problem, config: Config, interpret: bool) -> Callable[..., jax.Array]:
    tall, wide = config.tall * TILE, config.wide * TILE
    stages, blocks = config.stages, config.blocks
    bands, pieces = problem.m // tall, problem.n // wide

    def body(a_gmem: Any, x_gmem: Any, y_gmem: Any, **scratch: Any) -> None:
        band, block = (lax.axis_index(name) for name in ("band", "block"))
        rows = pl.ds(band * jnp.int32(tall), tall)
        mine = lax.div(jnp.int32(pieces + blocks - 1) - block, jnp.int32(blocks))
        a_smem, x_smem, y_smem, arrived = (scratch[name] for name in ("a", "x", "y", "arrived"))

        def fetch(i: Any, slot: Any) -> None:
            piece = pl.ds((block + i * jnp.int32(blocks)) * jnp.int32(wide), wide)
            plgpu.copy_gmem_to_smem(a_gmem.at[rows, piece], a_smem.at[slot], arrived.at[slot])
            plgpu.copy_gmem_to_smem(x_gmem.at[:, piece], x_smem.at[slot], arrived.at[slot])

        def step(i: Any, total: jax.Array) -> jax.Array:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(arrived.at[slot])

            def product(acc: Any) -> jax.Array:
                plgpu.wgmma(acc, a_smem.at[slot], transposed(x_smem.at[slot]))
                plgpu.wgmma_wait(0)
                return acc[...]

            total = total + pl.run_scoped(product, _compat.sums(tall, ROWS_STEP))

            @pl.when(i + stages < mine)
            def _() -> None:
                fetch(i + jnp.int32(stages), slot)

            return total

        for slot in range(stages):

            @pl.when(slot < mine)
            def _(slot: int = slot) -> None:
                fetch(jnp.int32(slot), jnp.int32(slot))

        zeros = plgpu.layout_cast(jnp.zeros((tall, ROWS_STEP), jnp.float32), plgpu.Layout.WGMMA)
        y_smem[...] = jnp.sum(_compat.counted(mine, step, zeros), axis=1)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_smem, y_gmem.at[block, rows])
        plgpu.wait_smem_to_gmem(0)

    tiling = _compat.tiled(TILE, 16)
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((blocks, problem.m), jnp.float32),
        scratch={
            "a": plgpu.SMEM((stages, tall, wide), jnp.bfloat16, transforms=tiling),
            "x": plgpu.SMEM((stages, ROWS_STEP, wide), jnp.bfloat16, transforms=tiling),
            "y": plgpu.SMEM((tall,), jnp.float32),
            "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        },
        grid=(bands, blocks),
        grid_names=("band", "block"),
        num_threads=1,
        thread_name="way",
        interpret=interpret,
    )
