"""The kernels for Hopper: two thin products, of which the second starts during the first.

Both are one kernel. A block of threads computes 64 outputs of all rows: its warpgroups deal the sum
among them, tiles of the factor come by TMA, and the tensor cores have the factor on their rows and
x on their columns, each read as it lies. Where 64 outputs a block are too few blocks, a cluster of
them deals the sum, and the first adds up what lies in the others' shared memory: nothing but the
result goes to memory.

The second kernel is launched when every block of the first has begun ("programmatic dependent
launch"); it fetches what it can hold of its factor and then waits for the first to end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.low_rank_matmul.shapes import Config, Stage, problem_of
from jaxlab.kernels.plan import TILE


def mosaic_gpu(
    x: jax.Array,
    packed: tuple[()],
    floating: tuple[jax.Array, jax.Array],
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The products by the kernels.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernels do not take.
    """
    down, up = floating
    problem = problem_of(x, down, up)
    _compat.require(interpret, problem.refuse(config))
    first, second = problem.stages(config)
    padded = jnp.pad(x, ((0, first.padded_rows - first.rows), (0, 0)))
    # The first kernel names `up` and does not read it: what makes `up` must have ended before, as
    # the second kernel reads it without waiting.
    between = _build(first, config, True, bool(interpret))(padded, down, up)
    y = _build(second, config, False, bool(interpret))(between, up)
    return y[: problem.rows]


def _build(stage: Stage, config: Config, leads: bool, interpret: bool) -> Callable[..., jax.Array]:
    columns, ways, split = stage.padded_rows, config.ways, stage.split
    steps, stages = stage.steps(config), stage.stages(config)
    chained = config.chained and not interpret
    tiling = _compat.tiled(TILE, 16)

    def body(x_gmem: Any, w_gmem: Any, *refs: Any, **scratch: Any) -> None:
        # Interpreters read no shared memory of another block: there it is a second result.
        out_gmem, *spread = refs[1 if leads else 0 :]
        layout = plgpu.Layout.WGMMA
        tile, way = lax.axis_index("n"), lax.axis_index("way")
        part = lax.axis_index("k") if split > 1 else jnp.int32(0)
        rows = pl.ds(tile * TILE, TILE)

        def inputs(step: Any) -> Any:
            at = (part * jnp.int32(steps) + step) * jnp.int32(ways) + way
            return pl.ds(at * jnp.int32(TILE), TILE)

        def fetch_w(step: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[way * stages + slot]
            source = w_gmem.at[inputs(step), rows]
            plgpu.copy_gmem_to_smem(source, scratch["w"].at[way, slot], arrived)

        def fetch_x(step: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[way * stages + slot]
            source = x_gmem.at[:, inputs(step)]
            plgpu.copy_gmem_to_smem(source, scratch["x"].at[way, slot], arrived)

        if chained and leads:
            # Whatever came before has ended, for the second kernel, too.
            plgpu.griddepcontrol_wait()
            plgpu.griddepcontrol_launch_dependents()
        for slot in range(stages):
            fetch_w(jnp.int32(slot), jnp.int32(slot))
        if chained and not leads:
            plgpu.griddepcontrol_wait()
        for slot in range(stages):
            fetch_x(jnp.int32(slot), jnp.int32(slot))

        def product(acc: Any) -> jax.Array:
            def step(i: Any, carry: Any) -> Any:
                slot = lax.rem(i, jnp.int32(stages))
                plgpu.barrier_wait(scratch["arrived"].at[way * stages + slot])
                w_smem, x_smem = scratch["w"].at[way, slot], scratch["x"].at[way, slot]
                plgpu.wgmma(acc, transposed(w_smem), transposed(x_smem))
                plgpu.wgmma_wait(0)

                @pl.when(i + stages < steps)
                def _() -> None:
                    fetch_w(i + jnp.int32(stages), slot)
                    fetch_x(i + jnp.int32(stages), slot)

                return carry

            _compat.counted(steps, step, jnp.int32(0))
            return acc[...]

        total = pl.run_scoped(product, _compat.sums(TILE, columns))

        def finish(total: jax.Array) -> None:
            out_smem = scratch["out_smem"]
            turned = plgpu.layout_cast(total.astype(jnp.bfloat16), plgpu.Layout.WGMMA_TRANSPOSED)
            transposed(out_smem)[...] = turned
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[:, rows])
            plgpu.wait_smem_to_gmem(0)

        def of_block(other: Any) -> Any:
            if spread:
                return spread[0].at[tile, other]
            return plgpu.cluster_ref(scratch["whole"], {"k": other})

        def in_cluster(total: jax.Array) -> None:
            whole = of_block(part) if spread else scratch["whole"]
            whole[...] = total
            plgpu.barrier_arrive(scratch["summed"])
            plgpu.barrier_wait(scratch["summed"])

            @pl.when(part == 0)
            def _() -> None:
                every = total
                for other in range(1, split):
                    every = every + load(of_block(jnp.int32(other)), layout)
                finish(every)

            # Nobody leaves before what lies in its memory was read.
            plgpu.barrier_arrive(scratch["read"])
            plgpu.barrier_wait(scratch["read"])

        end = in_cluster if split > 1 else finish
        if ways == 1:
            end(total)
            return
        partial, met = scratch["partial"], scratch["met"]
        partial[way] = total
        plgpu.barrier_arrive(met)
        plgpu.barrier_wait(met)

        @pl.when(way == 0)
        def _() -> None:
            summed = total
            for other in range(1, ways):
                summed = summed + load(partial.at[other], layout)
            end(summed)

    held = (ways, stages)
    scratch = {
        "w": plgpu.SMEM((*held, TILE, TILE), jnp.bfloat16, transforms=tiling),
        "x": plgpu.SMEM((*held, columns, TILE), jnp.bfloat16, transforms=tiling),
        "out_smem": plgpu.SMEM((columns, TILE), jnp.bfloat16),
        "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=ways * stages),
    }
    if ways > 1:
        scratch["partial"] = plgpu.SMEM((ways, TILE, columns), jnp.float32)
        scratch["met"] = plgpu.Barrier(num_arrivals=ways)
    if split > 1:
        scratch["whole"] = plgpu.SMEM((TILE, columns), jnp.float32)
        for name in ("summed", "read"):
            scratch[name] = plgpu.ClusterBarrier(collective_axes=("k",))
    out = [jax.ShapeDtypeStruct((columns, stage.n), jnp.bfloat16)]
    if interpret and split > 1:
        shape = (stage.n // TILE, split, TILE, columns)
        out.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    call = _compat.kernel(
        body,
        out=out,
        scratch=scratch,
        grid=(stage.n // TILE,),
        grid_names=("n",),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
        cluster={"k": split} if split > 1 else None,
    )
    return lambda *args: call(*args)[0]
