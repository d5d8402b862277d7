"""The part that Hopper's products with packed weights share: streaming, tensor cores, sums.

A block of threads computes 64 rows of W times all rows of x. Its warpgroups deal the blocks of k
among them, and each is its own producer: it has several blocks of packed weights, of scales and of
x on their way by TMA, unpacks one in registers, multiplies it on the tensor cores with W on the
rows and x on the columns, and asks for the next. The sums of the warpgroups meet in shared memory.
Where groups of k share a scale, what is packed is summed up by group as it is, and scaled in
float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.plan import TILE, Config, Plan

# A column of the block of x, and what makes the (64, width) numbers that meet it and the next.
Piece = tuple[int, Callable[[], jax.Array]]
# Reads the references of a block's packed weights, (64, columns) each; pieces by group of scales.
Unpack = Callable[[Sequence[Any]], list[Piece]]


def streamed(
    plan: Plan,
    config: Config,
    unpack: Unpack,
    x: jax.Array,
    weights: Sequence[jax.Array],
    scale: jax.Array | None,
    out_dtype: Any,
    interpret: bool,
) -> jax.Array:
    """The product, (rows, n).

    Args:
      plan: the sizes.
      config: the cut.
      unpack: the weights of a block.
      x: bfloat16, (rows, blocks x_columns), ordered as `unpack` says.
      weights: the packed operands, (n, blocks columns).
      scale: (groups of all k, n), (1, n), or None.
      out_dtype: of the result, and of partial sums where k is split.
      interpret: on a CPU.
    """
    padded = jnp.pad(x, ((0, plan.padded_rows - plan.rows), (0, 0)))
    scales = [] if scale is None else [scale]
    call = _build(plan, config, unpack, scale, [w.dtype for w in weights], out_dtype, interpret)
    parts = call(padded, *weights, *scales)[..., : plan.rows, :]
    return jnp.sum(parts, axis=0) if config.split_k > 1 else parts


def _build(
    plan: Plan,
    config: Config,
    unpack: Unpack,
    scale: jax.Array | None,
    dtypes: Sequence[Any],
    out_dtype: Any,
    interpret: bool,
) -> Callable[..., jax.Array]:
    columns, ways, steps = plan.padded_rows, config.ways, plan.steps(config)
    stages = min(config.stages, steps)
    x_tiling = _compat.tiled(plan.width, 16)

    def body(x_gmem: Any, *refs: Any, **scratch: Any) -> None:
        *w_gmem, out_gmem = refs[: len(dtypes)] + refs[-1:]
        s_gmem: Any = None if scale is None else refs[len(dtypes)]
        layout = plgpu.Layout.WGMMA
        row, split, way = (lax.axis_index(name) for name in ("n", "k", "way"))
        rows = pl.ds(row * TILE, TILE)
        staging = scratch["staging"].at[way] if interpret else None

        def fetch(step: Any, slot: Any) -> None:
            at = (split * jnp.int32(steps) + step) * jnp.int32(ways) + way
            arrived = scratch["arrived"].at[way * stages + slot]

            def bring(source: Any, name: str) -> None:
                plgpu.copy_gmem_to_smem(source, scratch[name].at[way, slot], arrived)

            bring(x_gmem.at[:, pl.ds(at * plan.x_columns, plan.x_columns)], "x")
            for i, width in enumerate(plan.w_columns):
                bring(w_gmem[i].at[rows, pl.ds(at * width, width)], f"w{i}")
            if plan.groups:
                bring(s_gmem.at[pl.ds(at * plan.groups, plan.groups), rows], "scale")

        def broadcast(values: jax.Array) -> jax.Array:
            return lax.broadcast_in_dim(values.astype(jnp.float32), (TILE, columns), (0,))

        def multiply(acc: Any, pieces: list[Piece], x_smem: Any) -> None:
            for column, make in pieces:
                a = make()
                b = transposed(x_smem.at[:, pl.ds(column, plan.width)])
                _compat.accumulate(acc, a, b, staging)
                plgpu.wgmma_wait(config.in_flight)
            plgpu.wgmma_wait(0)

        def step(i: Any, consume: Callable[[Any, list[Piece], Any], Any], carry: Any) -> Any:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[way * stages + slot])
            blocks = [scratch[f"w{j}"].at[way, slot] for j in range(len(dtypes))]
            scales = scratch["scale"].at[way, slot] if plan.groups else None
            carry = consume(carry, unpack(blocks), (scratch["x"].at[way, slot], scales))

            @pl.when(i + stages < steps)
            def _() -> None:
                fetch(i + jnp.int32(stages), slot)

            return carry

        def loop(consume: Any, start: Any) -> Any:
            for slot in range(stages):
                fetch(jnp.int32(slot), jnp.int32(slot))
            return lax.fori_loop(0, steps, lambda i, c: step(i, consume, c), start)

        def by_group(total: jax.Array, pieces: list[Piece], smem: Any) -> jax.Array:
            x_smem, s_smem = smem
            each = len(pieces) // plan.groups
            for g in range(plan.groups):

                def product(acc: Any, g: int = g) -> jax.Array:
                    multiply(acc, pieces[g * each : (g + 1) * each], x_smem)
                    return acc[...]

                part = pl.run_scoped(product, _compat.sums(TILE, columns))
                total = total + part * broadcast(load(s_smem.at[g], layout.reduce(1)))
            return total

        def whole() -> jax.Array:
            # Asked for now, so that it is there at the end.
            by_row = None if s_gmem is None else s_gmem.at[0, rows]
            if by_row is not None:
                by_row = load(by_row, layout.reduce(1), optimized=False)

            def product(acc: Any) -> jax.Array:
                def consume(carry: Any, pieces: list[Piece], smem: Any) -> Any:
                    multiply(acc, pieces, smem[0])
                    return carry

                loop(consume, jnp.int32(0))
                return acc[...]

            total = pl.run_scoped(product, _compat.sums(TILE, columns))
            return total if by_row is None else total * broadcast(by_row)

        def finish(total: jax.Array) -> None:
            out_smem = scratch["out_smem"]
            turned = plgpu.layout_cast(total.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            transposed(out_smem)[...] = turned
            plgpu.commit_smem()
            target = out_gmem.at[split] if config.split_k > 1 else out_gmem
            plgpu.copy_smem_to_gmem(out_smem, target.at[:, rows])
            plgpu.wait_smem_to_gmem(0)

        if plan.groups:
            zeros = plgpu.layout_cast(jnp.zeros((TILE, columns), jnp.float32), layout)
            total = loop(by_group, zeros)
        else:
            total = whole()
        if ways == 1:
            finish(total)
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
            finish(summed)

    held = (ways, stages)
    scratch = {
        "x": plgpu.SMEM((*held, columns, plan.x_columns), jnp.bfloat16, transforms=x_tiling),
        "out_smem": plgpu.SMEM((columns, TILE), out_dtype),
        "arrived": plgpu.Barrier(
            num_arrivals=1 + len(dtypes) + bool(plan.groups), num_barriers=ways * stages
        ),
    }
    for i, (width, bits, dtype) in enumerate(zip(plan.w_columns, plan.w_bits, dtypes, strict=True)):
        transforms = _compat.tiled(plan.width, bits)
        scratch[f"w{i}"] = plgpu.SMEM((*held, TILE, width), dtype, transforms=transforms)
    if scale is not None and plan.groups:
        scratch["scale"] = plgpu.SMEM((*held, plan.groups, TILE), scale.dtype)
    if ways > 1:
        scratch["partial"] = plgpu.SMEM((ways, TILE, columns), jnp.float32)
        scratch["met"] = plgpu.Barrier(num_arrivals=ways)
    if interpret:
        staged = (ways, TILE, plan.width)
        scratch["staging"] = plgpu.SMEM(staged, jnp.bfloat16, transforms=x_tiling)
    shape = (columns, plan.n)
    shape = (config.split_k, *shape) if config.split_k > 1 else shape
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct(shape, out_dtype),
        scratch=scratch,
        grid=(plan.n // TILE, config.split_k),
        grid_names=("n", "k"),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
    )
