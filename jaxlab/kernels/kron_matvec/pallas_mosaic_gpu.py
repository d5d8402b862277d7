"""The kernel for Hopper: both products of a tile one after the other, on tensor cores.

A tile is 64 rows (sample, i) of X. A warpgroup has several on their way by TMA; it takes one apart
into bfloat16 numbers in registers and multiplies it with B.T from shared memory; what comes out is
taken apart, put into shared memory, and multiplied from the left with A, which stands as often on
the diagonal of a 64 x 64 matrix as the tile has samples and stays in registers. X is read once and
Y is written once; what lies between never leaves the processor.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.kron_matvec.shapes import PIECES, Config, Problem, problem_of
from jaxlab.kernels.plan import TILE


def mosaic_gpu(
    x: jax.Array,
    packed: tuple[()],
    floating: tuple[jax.Array, jax.Array],
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    a, b = floating
    problem = problem_of(x, a, b)
    _compat.require(interpret, problem.refuse(config))
    outer, _ = PIECES[problem.dtype]
    diagonal = jnp.kron(jnp.eye(problem.samples, dtype=a.dtype), a)
    call = _build(problem, config, x.dtype, bool(interpret))
    y = call(x.reshape((-1, problem.n2)), *(jnp.stack(apart(f, outer)) for f in (diagonal, b)))
    return y.reshape((problem.rows, -1))


def apart(value: jax.Array, pieces: int) -> list[jax.Array]:
    """Numbers of bfloat16 whose sum is `value`, each with the 8 digits that follow.

    Digits are cut off and not rounded off: XLA takes a rounding and its reverse for nothing. What
    is not finite is 0 but for the last, which `pairs` lets meet only first pieces, that are not 0.
    """
    found = []
    for _ in range(pieces - 1):
        bits = lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0xFFFF0000)
        top = lax.bitcast_convert_type(bits, jnp.float32)
        # An infinity less itself would be no number.
        top = jnp.where(jnp.abs(top) < jnp.inf, top, jnp.zeros_like(top))
        found.append(top.astype(jnp.bfloat16))
        value = value - top
    return [*found, value.astype(jnp.bfloat16)]


def pairs(left: int, right: int) -> list[tuple[int, int]]:
    """Which pieces meet, the smallest products first."""
    most = max(left, right)
    every = [(p, q) for p in range(left) for q in range(right) if p + q < most]
    return sorted(every, key=sum, reverse=True)


def _build(problem: Problem, config: Config, dtype: Any, interpret: bool) -> Any:
    m2, n2, tiles = problem.m2, problem.n2, problem.tiles
    outer, inner = PIECES[problem.dtype]
    ways, stages = config.ways, config.stages
    stride = config.blocks * ways
    bits = 32 if problem.dtype == "float32" else 16

    def body(x_gmem: Any, a_gmem: Any, b_gmem: Any, y_gmem: Any, **scratch: Any) -> None:
        layout = plgpu.Layout.WGMMA
        way = lax.axis_index("way")
        first = lax.axis_index("block") * jnp.int32(ways) + way
        mine = lax.div(jnp.int32(tiles + stride - 1) - first, jnp.int32(stride))
        b_smem, t_smem, y_smem = scratch["b"], scratch["t"].at[way], scratch["y"].at[way]

        def rows(i: Any) -> Any:
            return pl.ds((first + i * jnp.int32(stride)) * jnp.int32(TILE), TILE)

        def fetch(i: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[way * stages + slot]
            plgpu.copy_gmem_to_smem(x_gmem.at[rows(i)], scratch["x"].at[way, slot], arrived)

        def multiply(left: list[jax.Array], right: list[Any], staging: str) -> jax.Array:
            staged = scratch[staging].at[way] if interpret else None

            def product(acc: Any) -> jax.Array:
                for p, q in pairs(len(left), len(right)):
                    _compat.accumulate(acc, left[p], right[q], staged)
                plgpu.wgmma_wait(0)
                return acc[...]

            return pl.run_scoped(product, _compat.sums(TILE, m2))

        for slot in range(stages):

            @pl.when(slot < mine)
            def _(slot: int = slot) -> None:
                fetch(jnp.int32(slot), jnp.int32(slot))

        @pl.when(way == 0)
        def _() -> None:
            plgpu.copy_gmem_to_smem(b_gmem, b_smem, scratch["ready"])

        left = [load(a_gmem.at[p], layout, optimized=False) for p in range(outer)]
        plgpu.barrier_wait(scratch["ready"])

        def step(i: Any, carry: Any) -> Any:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[way * stages + slot])
            pieces = apart(load(scratch["x"].at[way, slot], layout), outer)

            @pl.when(i + stages < mine)
            def _() -> None:
                fetch(i + jnp.int32(stages), slot)

            between = multiply(pieces, [transposed(b_smem.at[q]) for q in range(outer)], "left")
            for q, piece in enumerate(apart(between, inner)):
                t_smem[q] = piece
            plgpu.commit_smem()
            y = multiply(left, [t_smem.at[q] for q in range(inner)], "diagonal")
            # The tile before must have been read from where this one goes.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            y_smem[...] = y.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(y_smem, y_gmem.at[rows(i)])
            return carry

        _compat.counted(mine, step, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    scratch = {
        "x": plgpu.SMEM((ways, stages, TILE, n2), dtype, transforms=_compat.tiled(n2, bits)),
        "b": plgpu.SMEM((outer, m2, n2), jnp.bfloat16, transforms=_compat.tiled(n2, 16)),
        "t": plgpu.SMEM((ways, inner, TILE, m2), jnp.bfloat16, transforms=_compat.tiled(m2, 16)),
        "y": plgpu.SMEM((ways, TILE, m2), dtype, transforms=_compat.tiled(m2, bits)),
        "arrived": plgpu.Barrier(num_arrivals=1, num_barriers=ways * stages),
        "ready": plgpu.Barrier(num_arrivals=1),
    }
    if interpret:
        for name, columns in (("left", n2), ("diagonal", TILE)):
            shape = (ways, TILE, columns)
            scratch[name] = plgpu.SMEM(shape, jnp.bfloat16, transforms=_compat.tiled(columns, 16))
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((problem.rows * problem.m1, m2), dtype),
        scratch=scratch,
        grid=(config.blocks,),
        grid_names=("block",),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
    )
