"""The kernel for Hopper: two launches, and between them an array with rows of x innermost.

A block of threads holds a part of one block of weights; its warpgroups take tiles of rows in turn,
each with several tiles on their way by TMA. The first stage has weights on the rows of the tensor
cores' product and rows of x on its columns, so that what it gives is stored as it is in runs of
rows; the second takes that as a transposed operand, which costs nothing, and has rows of x on the
rows again. So nothing is transposed, and the middle is written once and read once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import pl, plgpu, transposed
from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.monarch_matmul.reference import by_rank
from jaxlab.kernels.monarch_matmul.shapes import Config, Problem, Stage, problem_of, refuse


def mosaic_gpu(
    x: jax.Array,
    w1: jax.Array,
    w2: jax.Array,
    *,
    blocked: bool,
    transpose: bool,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel; outputs and inputs that are interleaved cost a pass of XLA's.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    _compat.require()
    require_hopper(interpret)
    problem = problem_of(x.shape[0], w1, w2, blocked=blocked, transpose=transpose)
    if x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"mosaic_gpu: x is {x.dtype}; the kernel takes bfloat16")
    if reason := refuse(problem, config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    rows, blocks = x.shape[0], (problem.blocks, problem.width)
    if not problem.blocked_inputs:
        x = x.reshape(rows, *blocks[::-1]).swapaxes(1, 2).reshape(x.shape)
    x = jnp.pad(x, ((0, problem.tiles(config) * config.batch_tile - rows), (0, 0)))
    w1 = by_rank(w1, w2.shape[0])
    factors = [w.astype(x.dtype) for w in ((w2, w1) if transpose else (w1, w2))]
    settings = {"config": config, "turned": transpose, "interpret": bool(interpret)}
    y = _two_stages(problem, x, *factors, **settings)[:rows]
    if not problem.blocked:
        y = y.reshape(rows, problem.out_blocks, problem.out_width).swapaxes(1, 2)
    return y.reshape(rows, -1)


def _two_stages(
    problem: Problem, x: jax.Array, first: jax.Array, second: jax.Array, **settings: Any
) -> jax.Array:
    """The product with x whose rows are padded to whole tiles."""
    tiles, rank = problem.tiles(settings["config"]), problem.rank
    tile, inner = settings["config"].batch_tile, problem.second.inputs

    part = problem.first.part(settings["config"])
    # The middle by block of the second stage, tile of rows, and input of that block.
    if rank == 1:
        # Outputs of a block go to as many blocks: a column of runs of rows.
        shape = (problem.out_blocks, tiles * inner * tile)

        def targets(block: Any, at: Any, piece: Any) -> list[tuple[Any, Any]]:
            column = pl.ds((at * jnp.int32(inner) + block) * jnp.int32(tile), tile)
            return [(slice(None), (_nth(piece, part), column))]
    else:
        shape = (problem.out_blocks * tiles * inner, tile)
        run = min(rank, part)

        def targets(block: Any, at: Any, piece: Any) -> list[tuple[Any, Any]]:
            pieces, within = part // run, rank // run
            found = []
            for n in range(pieces):
                # Multiplied last, so that it is seen that places are multiples of a run.
                nth = piece * jnp.int32(pieces) + jnp.int32(n)
                to, slot = lax.div(nth, jnp.int32(within)), lax.rem(nth, jnp.int32(within))
                row = (to * jnp.int32(tiles) + at) * jnp.int32(inner // run)
                row = row + block * jnp.int32(within) + slot
                found.append((pl.ds(n * run, run), (_nth(row, run), slice(None))))
            return found

    mid = _stage(
        problem.first,
        x,
        first,
        out=jax.ShapeDtypeStruct(shape, x.dtype),
        source=lambda block, at: (_nth(at, tile), _nth(block, problem.width)),
        targets=targets,
        rows_last=True,
        backwards=False,
        tiles=tiles,
        **settings,
    )
    last = problem.second.part(settings["config"])
    parts = problem.out_width // last
    return _stage(
        problem.second,
        mid.reshape(-1, tile),
        second,
        out=jax.ShapeDtypeStruct((tiles * tile, problem.sizes[0]), x.dtype),
        source=lambda block, at: (_nth(block * jnp.int32(tiles) + at, inner), slice(None)),
        targets=lambda block, at, piece: [
            (slice(None), (_nth(at, tile), _nth(block * jnp.int32(parts) + piece, last)))
        ],
        rows_last=False,
        backwards=settings["config"].backwards,
        tiles=tiles,
        **settings,
    )


def _nth(at: Any, count: int) -> Any:
    """The slice of `count` that stands after `at` others."""
    return pl.ds(at * jnp.int32(count), count)


def _stage(
    stage: Stage,
    x: jax.Array,
    w: jax.Array,
    *,
    out: jax.ShapeDtypeStruct,
    source: Callable[[Any, Any], Any],
    targets: Callable[[Any, Any, Any], list[tuple[Any, Any]]],
    rows_last: bool,
    backwards: bool,
    tiles: int,
    config: Config,
    turned: bool,
    interpret: bool,
) -> jax.Array:
    """One block-diagonal product.

    Args:
      stage: its sizes.
      x: where tiles of the operand are.
      w: (blocks, outputs, inputs), or (blocks, inputs, outputs) if `turned`.
      out: what is written.
      source: of a block and a tile of rows, the place of that tile.
      targets: of these and the number of a part, pieces of the result and their places.
      rows_last: whether tiles are (rows, inputs) and results (outputs, rows), and not (inputs,
        rows) and (rows, outputs).
      backwards: whether the last rows come first.
      tiles: of rows.
      config: the cut.
      turned: the order of w.
      interpret: on a CPU.
    """
    part, rows, ways = stage.part(config), config.batch_tile, config.ways
    groups = stage.groups(tiles, config)
    stride = ways * groups
    stages = min(config.stages, -(-tiles // stride))
    held = (rows, stage.inputs) if rows_last else (stage.inputs, rows)
    result = (part, rows) if rows_last else (rows, part)
    weights = (stage.inputs, part) if turned else (part, stage.inputs)

    def body(x_gmem: Any, w_gmem: Any, out_gmem: Any, **scratch: Any) -> None:
        block, piece, group, way = (lax.axis_index(n) for n in ("block", "part", "group", "way"))
        first = group * jnp.int32(ways) + way
        arrived, w_smem = scratch["arrived"], scratch["w"]
        count = lax.div(jnp.int32(tiles + stride - 1) - first, jnp.int32(stride))

        def tile_at(i: Any) -> Any:
            at = first + i * jnp.int32(stride)
            return jnp.int32(tiles - 1) - at if backwards else at

        def fetch(i: Any, slot: Any) -> None:
            place = x_gmem.at[source(block, tile_at(i))]
            barrier = arrived.at[way * jnp.int32(stages) + slot]
            plgpu.copy_gmem_to_smem(place, scratch["x"].at[way, slot], barrier)

        for slot in range(stages):

            @pl.when(jnp.int32(slot) < count)
            def _(slot: int = slot) -> None:
                fetch(jnp.int32(slot), jnp.int32(slot))

        @pl.when(way == 0)
        def _() -> None:
            outputs = _nth(piece, part)
            place = w_gmem.at[block, :, outputs] if turned else w_gmem.at[block, outputs]
            plgpu.copy_gmem_to_smem(place, w_smem, scratch["loaded"])

        plgpu.barrier_wait(scratch["loaded"])

        def product(slot: Any, acc: Any) -> jax.Array:
            tile = transposed(scratch["x"].at[way, slot])
            if rows_last:
                plgpu.wgmma(acc, transposed(w_smem) if turned else w_smem, tile)
            else:
                plgpu.wgmma(acc, tile, w_smem if turned else transposed(w_smem))
            plgpu.wgmma_wait(0)
            return acc[...]

        def step(i: Any, carry: Any) -> Any:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(arrived.at[way * jnp.int32(stages) + slot])
            total = pl.run_scoped(lambda acc: product(slot, acc), _compat.sums(*result))

            @pl.when(i + jnp.int32(stages) < count)
            def _() -> None:
                fetch(i + jnp.int32(stages), slot)

            out_smem = scratch["out"].at[way, lax.rem(i, jnp.int32(config.outs))]
            plgpu.wait_smem_to_gmem(config.outs - 1, wait_read_only=True)
            out_smem[...] = total.astype(out.dtype)
            plgpu.commit_smem()
            pieces = targets(block, tile_at(i), piece)
            for n, (of, place) in enumerate(pieces):
                # The pieces of a tile are waited for together.
                whole = len(pieces) == 1
                plgpu.copy_smem_to_gmem(
                    out_smem if whole else out_smem.at[of],
                    out_gmem.at[place],
                    commit_group=n == len(pieces) - 1,
                )
            return carry

        lax.fori_loop(jnp.int32(0), count, step, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    def shared(*shape: int) -> Any:
        return plgpu.SMEM(shape, x.dtype, transforms=_compat.tiled(shape[-1], 16))

    scratch = {
        "w": shared(*weights),
        "x": shared(ways, stages, *held),
        "out": shared(ways, config.outs, *result),
        "arrived": plgpu.Barrier(num_barriers=ways * stages),
        "loaded": plgpu.Barrier(),
    }
    return _compat.kernel(
        body,
        out=out,
        scratch=scratch,
        grid=(stage.blocks, stage.outputs // part, groups),
        grid_names=("block", "part", "group"),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
    )(x, w)
