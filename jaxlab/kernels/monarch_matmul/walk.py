"""What warpgroups do in a stage of a Monarch product: they walk over tiles of rows.

The weights of one part of one block stay in shared memory. A warpgroup has several tiles of its
operand on their way by TMA, multiplies one on the tensor cores, stores what comes of it by TMA, and
asks for the next. In the first stage weights are on the rows of that product and rows of x on its
columns; the second takes what the first stored, with rows of x innermost, as a transposed operand,
which costs nothing, and has rows of x on the rows again. So nothing is transposed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import pl, plgpu, transposed
from jaxlab.kernels.monarch_matmul.shapes import Config, Problem, Stage


class Walk(NamedTuple):
    """A stage as warpgroups see it.

    Attributes:
      problem: the whole product.
      config: the cut.
      turned: whether weights are (blocks, inputs, outputs) and not (blocks, outputs, inputs).
      is_first: which of the two stages.
    """

    problem: Problem
    config: Config
    turned: bool
    is_first: bool

    @property
    def stage(self) -> Stage:
        """Its sizes."""
        return self.problem.first if self.is_first else self.problem.second

    @property
    def part(self) -> int:
        """Outputs to a block of threads."""
        return self.stage.part(self.config)

    @property
    def middle(self) -> tuple[int, int, int]:
        """The shape of what the first stage writes: by block of the second, tiles of its inputs."""
        inner = self.problem.tiles(self.config) * self.problem.second.inputs
        return self.problem.out_blocks, inner, self.config.batch_tile

    def scratch(self, dtype: Any) -> dict[str, Any]:
        """Shared memory of a block of threads."""
        rows, ways = self.config.batch_tile, self.config.ways
        inputs, part = self.stage.inputs, self.part

        def shared(*shape: int) -> Any:
            return plgpu.SMEM(shape, dtype, transforms=_compat.tiled(shape[-1], 16))

        held = (rows, inputs) if self.is_first else (inputs, rows)
        return {
            "w": shared(*((inputs, part) if self.turned else (part, inputs))),
            "x": shared(ways, self.config.stages, *held),
            "out": shared(ways, self.config.outs, *self.result),
            "arrived": plgpu.Barrier(num_barriers=ways * self.config.stages),
            "loaded": plgpu.Barrier(),
        }

    @property
    def result(self) -> tuple[int, int]:
        """The shape of what comes of a tile."""
        rows = self.config.batch_tile
        return (self.part, rows) if self.is_first else (rows, self.part)

    def source(self, block: Any, at: Any) -> tuple[Any, ...]:
        """Where the operand's tile of a block is."""
        if self.is_first:
            return nth(at, self.config.batch_tile), nth(block, self.stage.inputs)
        return block, nth(at, self.stage.inputs), slice(None)

    def targets(self, block: Any, piece: Any, at: Any) -> list[tuple[Any, tuple[Any, ...]]]:
        """Runs of rows of a result, and where they go."""
        part, rank = self.part, self.problem.rank
        if not self.is_first:
            nth_part = block * jnp.int32(self.stage.outputs // part) + piece
            return [(slice(None), (nth(at, self.config.batch_tile), nth(nth_part, part)))]
        start = at * jnp.int32(self.problem.second.inputs // rank) + block
        if rank == 1:
            # Each output goes to another block.
            return [(slice(None), (nth(piece, part), start, slice(None)))]
        run = min(rank, part)
        pieces, within = part // run, jnp.int32(rank // run)
        found = []
        for n in range(pieces):
            at_run = piece * jnp.int32(pieces) + jnp.int32(n)
            # Multiplied last, so that it is seen that places are multiples of a run.
            row = start * within + lax.rem(at_run, within)
            place = (lax.div(at_run, within), nth(row, run), slice(None))
            found.append((pl.ds(n * run, run), place))
        return found


def nth(at: Any, count: int) -> Any:
    """The slice of `count` that stands after `at` others."""
    return pl.ds(at * jnp.int32(count), count)


def walk(
    plan: Walk,
    refs: tuple[Any, Any, Any],
    scratch: dict[str, Any],
    *,
    nth_part: Any,
    way: Any,
    first: Any,
    stride: int,
    ahead: Any,
    backwards: bool = False,
) -> None:
    """What a warpgroup does.

    Args:
      plan: the stage.
      refs: the operand, weights and the result in global memory.
      scratch: as `plan.scratch` says.
      nth_part: of the parts of all blocks.
      way: which of the warpgroups that share `scratch`.
      first: its first tile.
      stride: from a tile to its next one.
      ahead: tiles of rows that stand before these in x and in the result.
      backwards: whether the last rows come first.
    """
    x_gmem, w_gmem, out_gmem = refs
    config, stages, part = plan.config, plan.config.stages, plan.part
    tiles, per_block = plan.problem.tiles(config), jnp.int32(plan.stage.outputs // part)
    block, piece = lax.div(nth_part, per_block), lax.rem(nth_part, per_block)
    count = lax.div(jnp.int32(tiles + stride - 1) - first, jnp.int32(stride))
    w_smem, x_smem, out_smem = scratch["w"], scratch["x"].at[way], scratch["out"].at[way]

    def tile_at(i: Any) -> Any:
        at = first + i * jnp.int32(stride)
        return jnp.int32(tiles - 1) - at if backwards else at

    def arrived(slot: Any) -> Any:
        return scratch["arrived"].at[way * jnp.int32(stages) + slot]

    def fetch(i: Any, slot: Any) -> None:
        at = tile_at(i) + ahead if plan.is_first else tile_at(i)
        place = x_gmem.at[plan.source(block, at)]
        plgpu.copy_gmem_to_smem(place, x_smem.at[slot], arrived(slot))

    def product(slot: Any, acc: Any) -> jax.Array:
        tile = transposed(x_smem.at[slot])
        if plan.is_first:
            plgpu.wgmma(acc, transposed(w_smem) if plan.turned else w_smem, tile)
        else:
            plgpu.wgmma(acc, tile, w_smem if plan.turned else transposed(w_smem))
        plgpu.wgmma_wait(0)
        return acc[...]

    def store(i: Any, from_smem: Any) -> None:
        at = tile_at(i) if plan.is_first else tile_at(i) + ahead
        runs = plan.targets(block, piece, at)
        for n, (rows, place) in enumerate(runs):
            # The runs of a tile are waited for together.
            last = n == len(runs) - 1
            source = from_smem if len(runs) == 1 else from_smem.at[rows]
            plgpu.copy_smem_to_gmem(source, out_gmem.at[place], commit_group=last)

    @pl.when(way == 0)
    def _() -> None:
        outputs = nth(piece, part)
        place = w_gmem.at[block, :, outputs] if plan.turned else w_gmem.at[block, outputs]
        plgpu.copy_gmem_to_smem(place, w_smem, scratch["loaded"])

    for slot in range(stages):

        @pl.when(jnp.int32(slot) < count)
        def _(slot: int = slot) -> None:
            fetch(jnp.int32(slot), jnp.int32(slot))

    plgpu.barrier_wait(scratch["loaded"])

    def step(i: Any, carry: Any) -> Any:
        slot = lax.rem(i, jnp.int32(stages))
        plgpu.barrier_wait(arrived(slot))
        total = pl.run_scoped(lambda acc: product(slot, acc), _compat.sums(*plan.result))

        @pl.when(i + jnp.int32(stages) < count)
        def _() -> None:
            fetch(i + jnp.int32(stages), slot)

        slot_out = out_smem.at[lax.rem(i, jnp.int32(config.outs))]
        plgpu.wait_smem_to_gmem(config.outs - 1, wait_read_only=True)
        slot_out[...] = total.astype(out_gmem.dtype)
        plgpu.commit_smem()
        store(i, slot_out)
        return carry

    _compat.counted(count, step, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)
