"""The part that Hopper's products with packed weights share: streaming, tensor cores, sums.

A block of threads computes 64 rows of W times all rows of x. Its warpgroups deal the blocks of k
among them, and each is its own producer: it has several steps of packed weights, of scales and of
x on their way by TMA, unpacks one in registers, multiplies it on the tensor cores with W on the
rows and x on the columns, and asks for the next. The sums of the warpgroups meet in shared memory;
where k is dealt among blocks of threads too, XLA adds up what they give. Where groups of k share a
scale, what is packed is summed up by group as it is, and scaled in float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.plan import TILE, Config, Plan
from jaxlab.kernels.rings import shared_memory

# A column of the block of x, and what makes the (64, width) numbers that meet it and the next.
Piece = tuple[int, Callable[[], jax.Array]]
# Reads the references of a block's packed weights, (64, columns) each; pieces by group of scales.
Unpack = Callable[[Sequence[Any]], list[Piece]]
Arrange = Callable[[Any], None]


def streamed(
    plan: Plan,
    config: Config,
    unpack: Unpack,
    x: jax.Array,
    weights: Sequence[jax.Array],
    scale: jax.Array | None,
    out_dtype: Any,
    interpret: bool,
    arrange: Arrange | None = None,
) -> jax.Array:
    """The product, (rows, n).

    Args:
      plan: the sizes.
      config: the cut.
      unpack: the weights of a block.
      x: bfloat16, (rows, blocks x_columns), ordered as `unpack` says.
      weights: the packed operands, (n, blocks columns).
      scale: (groups of all k, n), (1, n), or None.
      out_dtype: of the result, and of the partial sums of `split_k`.
      interpret: on a CPU.
      arrange: orders what has come of x, in shared memory, as `unpack` says; None if x is so.

    Raises:
      NotImplementedError: a cut that does not suit the pieces, or that this jax cannot interpret.
    """
    padded = jnp.pad(x, ((0, plan.padded_rows - plan.rows), (0, 0)))
    scales = [] if scale is None else [scale]
    dtypes = [w.dtype for w in weights]
    call = _build(plan, config, unpack, scale, dtypes, out_dtype, interpret, arrange)
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
    arrange: Arrange | None,
) -> Callable[..., jax.Array]:
    columns, ways, steps = plan.padded_rows, config.ways, plan.steps(config)
    stages, slots = plan.stages(config), plan.slots(config)
    depth, parts, groups = config.depth, config.parts, plan.groups * config.depth
    part_columns = plan.x_columns * depth // parts
    apart = config.apart
    sums = _compat.sums(TILE, columns)

    def body(x_gmem: Any, *refs: Any, **scratch: Any) -> None:
        *w_gmem, out_gmem = refs[: len(dtypes)] + refs[-1:]
        s_gmem: Any = None if scale is None else refs[len(dtypes)]
        layout = plgpu.Layout.WGMMA
        row, split, way = (lax.axis_index(name) for name in ("n", "k", "way"))
        rows = pl.ds(row * TILE, TILE)
        staging = scratch["staging"].at[way] if interpret else None

        def at(step: Any) -> Any:
            return (split * jnp.int32(steps) + step) * jnp.int32(ways) + way

        def fetch(step: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[way * stages + slot]
            for i, width in enumerate(plan.w_columns):
                there = pl.ds(at(step) * (width * depth), width * depth)
                slot_of = scratch[f"w{i}"].at[way, slot]
                plgpu.copy_gmem_to_smem(w_gmem[i].at[rows, there], slot_of, arrived)
            if groups:
                source = s_gmem.at[pl.ds(at(step) * groups, groups), rows]
                plgpu.copy_gmem_to_smem(source, scratch["scale"].at[way, slot], arrived)
            if not apart:
                bring_x(at(step), slot, arrived)

        def bring_x(block: Any, slot: Any, arrived: Any) -> None:
            source = x_gmem.at[:, pl.ds(block * part_columns, part_columns)]
            plgpu.copy_gmem_to_smem(source, scratch["x"].at[way, slot], arrived)

        def fetch_x(item: Any, slot: Any) -> None:
            # An item is one of the parts in which x of a step comes.
            block = at(lax.div(item, jnp.int32(parts))) * parts + lax.rem(item, jnp.int32(parts))
            bring_x(block, slot, scratch["x_arrived"].at[way * slots + slot])

        def refill(fetch_one: Callable[[Any, Any], None], i: Any, ring: int, items: int) -> None:
            @pl.when(i + ring < items)
            def _() -> None:
                if not interpret:
                    _compat.meet()
                fetch_one(i + jnp.int32(ring), lax.rem(i, jnp.int32(ring)))

        def times(total: jax.Array, values: jax.Array) -> jax.Array:
            wide = lax.broadcast_in_dim(values.astype(jnp.float32), (TILE, columns), (0,))
            return total * wide

        def pieces_of(slot: Any) -> list[Piece]:
            pieces: list[Piece] = []
            for d in range(depth):
                blocks = [
                    scratch[f"w{j}"].at[way, slot, :, pl.ds(d * width, width)]
                    for j, width in enumerate(plan.w_columns)
                ]
                pieces += [(d * plan.x_columns + column, make) for column, make in unpack(blocks)]
            return pieces

        def step(i: Any, consume: Callable[[Any, Any, Any, Any], Any], carry: Any) -> Any:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[way * stages + slot])
            if arrange is not None and not apart:
                arrange(scratch["x"].at[way, slot])
            pieces = pieces_of(slot)
            per_part = _per_part([column for column, _ in pieces], parts, part_columns)
            released = 0

            def release(last: int) -> None:
                # The parts of x whose products are done with up to this piece.
                nonlocal released
                while apart and (released + 1) * per_part - 1 <= last:
                    refill(fetch_x, i * parts + released, slots, steps * parts)
                    released += 1

            def multiply(acc: Any, some: range) -> None:
                for j in some:
                    column, make = pieces[j]
                    item = i * jnp.int32(parts) + j // per_part
                    x_slot = lax.rem(item, jnp.int32(slots))
                    if apart and j % per_part == 0:
                        plgpu.barrier_wait(scratch["x_arrived"].at[way * slots + x_slot])
                        if arrange is not None:
                            arrange(scratch["x"].at[way, x_slot])
                    there = pl.ds(column % part_columns, plan.width)
                    b = transposed(scratch["x"].at[way, x_slot, :, there])
                    _compat.accumulate(acc, make(), b, staging)
                    plgpu.wgmma_wait(config.in_flight)
                    release(j - config.in_flight)
                plgpu.wgmma_wait(0)
                release(some.stop - 1)

            scales = scratch["scale"].at[way, slot] if groups else None
            carry = consume(carry, multiply, len(pieces), scales)
            refill(fetch, i, stages, steps)
            return carry

        def loop(consume: Any, start: Any) -> Any:
            for slot in range(stages):
                fetch(jnp.int32(slot), jnp.int32(slot))
                for item in (
                    range(slot * slots // stages, (slot + 1) * slots // stages) if apart else ()
                ):
                    fetch_x(jnp.int32(item), jnp.int32(item))
            return _compat.counted(steps, lambda i, c: step(i, consume, c), start)

        def by_group(total: jax.Array, multiply: Any, count: int, s_smem: Any) -> jax.Array:
            each = count // groups
            for g in range(groups):
                # Asked for now, so that they are there when the products are.
                scales = load(s_smem.at[g], layout.reduce(1))

                def product(acc: Any, g: int = g) -> jax.Array:
                    multiply(acc, range(g * each, (g + 1) * each))
                    return acc[...]

                total = total + times(pl.run_scoped(product, sums), scales)
            return total

        def whole() -> jax.Array:
            # Likewise: there at the end.
            by_row = None if s_gmem is None else s_gmem.at[0, rows]
            if by_row is not None:
                by_row = load(by_row, layout.reduce(1), optimized=False)

            def product(acc: Any) -> jax.Array:
                def consume(carry: Any, multiply: Any, count: int, s_smem: Any) -> Any:
                    del s_smem
                    multiply(acc, range(count))
                    return carry

                loop(consume, jnp.int32(0))
                return acc[...]

            total = pl.run_scoped(product, sums)
            return total if by_row is None else times(total, by_row)

        def finish(total: jax.Array) -> None:
            out_smem = scratch["out_smem"]
            turned = plgpu.layout_cast(total.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            transposed(out_smem)[...] = turned
            plgpu.commit_smem()
            out = out_gmem.at[split] if config.split_k > 1 else out_gmem
            plgpu.copy_smem_to_gmem(out_smem, out.at[:, rows])
            plgpu.wait_smem_to_gmem(0)

        if groups:
            zeros = plgpu.layout_cast(jnp.zeros((TILE, columns), jnp.float32), layout)
            total = loop(by_group, zeros)
        else:
            total = whole()
        if ways == 1:
            finish(total)
            return
        partial, met = scratch["partial"], scratch["met"]

        @pl.when(way > 0)
        def _() -> None:
            partial[way - 1] = total

        plgpu.barrier_arrive(met)

        @pl.when(way == 0)
        def _() -> None:
            plgpu.barrier_wait(met)
            summed = total
            for other in range(ways - 1):
                summed = summed + load(partial.at[other], layout)
            finish(summed)

    shape = (columns, plan.n)
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct(
            (config.split_k, *shape) if config.split_k > 1 else shape, out_dtype
        ),
        scratch=shared_memory(plan, config, scale, dtypes, out_dtype, interpret),
        grid=(plan.n // TILE, config.split_k),
        grid_names=("n", "k"),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
        auto_barriers=False,
    )


def _per_part(places: list[int], parts: int, part_columns: int) -> int:
    """Pieces to a part of x, of pieces at these columns."""
    each = len(places) // parts
    if len(places) % parts or any(c // part_columns != j // each for j, c in enumerate(places)):
        raise NotImplementedError(
            f"mosaic_gpu: pieces of W do not take x in {parts} parts in order"
        )
    return each
