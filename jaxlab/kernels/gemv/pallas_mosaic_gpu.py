"""The kernels for Hopper: the matrix goes from memory to the tensor cores as it lies, once.

Tiles come by TMA and are the left operand where they land; the right one has eight columns, fewer
than which no product of tensor cores has. How those round is not relied on for long sums: those of
every tile are added up outside, in float32. Blocks of threads take pieces of columns of the matrix
in turn, so that those that run together read what lies together.

For `A @ x` x is long, and a copy of it with rows of zeros would cost. The eight columns are places
of x instead: a bfloat16 x is folded in eight as it lies, and copied only where folds do not divide
it; of a float32 x there are three parts of two folds. Of a tile's product the columns of its own
fold count, the others are set to 0. A block takes a tile of every fold before it goes on: the piece
of x is in the L2 cache from the first of them on. Every block has sums of its own, which XLA adds
up.

For `A.T @ x` three of the columns have the parts of x, whose sum is the product. x is short and
stays in shared memory; a block has all rows of its columns, and what it sums up is done.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import pl, plgpu
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
    if transposed:
        return _of_rows(problem, config, bool(interpret))(a, _eight_rows(apart))[None]
    # As many as there is room for beside each other, of each part.
    folds = ROWS_STEP // apart.shape[0]
    folded = _folded(apart, folds, config.wide * TILE)
    sums = _of_columns(problem, config, folds, bool(interpret))(a, folded)
    # XLA would merge the last sums of many products into one slow kernel.
    return lax.optimization_barrier(jnp.sum(sums, axis=0))[None]


def _folded(apart: jax.Array, folds: int, wide: int) -> jax.Array:
    """Parts of x, (parts, n), as (8, columns): row `part * folds + fold` has a fold of a part."""
    # Folds are of whole pieces; behind the end of x there are zeros.
    missing = -apart.shape[1] % (folds * wide)
    if missing:
        apart = jnp.pad(apart, ((0, 0), (0, missing)))
    return _eight_rows(apart.reshape(apart.shape[0] * folds, -1))


def _eight_rows(x: jax.Array) -> jax.Array:
    missing = ROWS_STEP - x.shape[0]
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x


def _of_columns(
    problem: Problem, config: Config, folds: int, interpret: bool
) -> Callable[..., jax.Array]:
    """`A @ x`, of A and the folded x: (blocks, m), whose sum it is."""
    tall, wide = config.tall * TILE, config.wide * TILE
    stages, blocks = config.stages, config.blocks
    pieces = problem.n // wide
    long = -(-pieces // folds)

    def body(a_gmem: Any, x_gmem: Any, y_gmem: Any, **scratch: Any) -> None:
        band, block = (lax.axis_index(name) for name in ("band", "block"))
        rows = pl.ds(band * jnp.int32(tall), tall)
        # Places within a fold, which are this block's in every one.
        places = lax.div(jnp.int32(long + blocks - 1) - block, jnp.int32(blocks))
        mine = places * jnp.int32(folds)

        def fetch(i: Any, slot: Any) -> None:
            arrived = scratch["arrived"].at[slot]
            at = block + lax.div(i, jnp.int32(folds)) * jnp.int32(blocks)
            piece = lax.rem(i, jnp.int32(folds)) * jnp.int32(long) + at
            # The last folds may have fewer pieces. x is 0 there, and the last piece is of the sum
            # anyway: what is not finite in it spoils no other row.
            piece = jnp.minimum(piece, jnp.int32(pieces - 1))
            a_tile = a_gmem.at[rows, pl.ds(piece * jnp.int32(wide), wide)]
            x_tile = x_gmem.at[:, pl.ds(at * jnp.int32(wide), wide)]
            plgpu.copy_gmem_to_smem(a_tile, scratch["a"].at[slot], arrived)
            plgpu.copy_gmem_to_smem(x_tile, scratch["x"].at[slot], arrived)

        def step(i: Any, total: jax.Array) -> jax.Array:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[slot])
            product = _product(scratch["a"].at[slot], scratch["x"].at[slot], tall)
            # The other columns are those of other places of x.
            own = _fold_of_columns(tall, folds) == lax.rem(i, jnp.int32(folds))
            total = total + jnp.where(own, product, jnp.float32(0))
            _refill(fetch, i, slot, stages, mine)
            return total

        _fill(fetch, stages, mine)
        _store(_compat.counted(mine, step, _zeros(tall)), scratch["y"], y_gmem.at[block, rows])
        plgpu.wait_smem_to_gmem(0)

    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((blocks, problem.m), jnp.float32),
        scratch={
            "a": _tiles(stages, tall, wide),
            "x": _tiles(stages, ROWS_STEP, wide),
            "y": plgpu.SMEM((tall,), jnp.float32),
            "arrived": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        },
        grid=(problem.m // tall, blocks),
        grid_names=("band", "block"),
        num_threads=1,
        thread_name="way",
        interpret=interpret,
    )


def _of_rows(problem: Problem, config: Config, interpret: bool) -> Callable[..., jax.Array]:
    """`A.T @ x`, of A and the parts of x: (n,)."""
    tall, wide = config.tall * TILE, config.wide * TILE
    stages, blocks = config.stages, config.blocks
    bands, pieces = problem.m // tall, problem.n // wide

    def body(a_gmem: Any, x_gmem: Any, y_gmem: Any, **scratch: Any) -> None:
        block = lax.axis_index("block")
        mine = lax.div(jnp.int32(pieces + blocks - 1) - block, jnp.int32(blocks))
        tiles = mine * jnp.int32(bands)
        x_smem, y_smem = scratch["x"], scratch["y"]

        def columns(i: Any) -> Any:
            return pl.ds((block + i * jnp.int32(blocks)) * jnp.int32(wide), wide)

        def fetch(t: Any, slot: Any) -> None:
            # Those of a piece of columns, one below the other.
            rows = pl.ds(lax.rem(t, jnp.int32(bands)) * jnp.int32(tall), tall)
            tile = a_gmem.at[rows, columns(lax.div(t, jnp.int32(bands)))]
            plgpu.copy_gmem_to_smem(tile, scratch["a"].at[slot], scratch["arrived"].at[slot])

        def piece(i: Any, carry: Any) -> Any:
            def step(band: Any, total: jax.Array) -> jax.Array:
                t = i * jnp.int32(bands) + band
                slot = lax.rem(t, jnp.int32(stages))
                plgpu.barrier_wait(scratch["arrived"].at[slot])
                tile = _compat.transposed(scratch["a"].at[slot])
                total = total + _product(tile, x_smem.at[band], wide)
                _refill(fetch, t, slot, stages, tiles)
                return total

            total = _compat.counted(bands, step, _zeros(wide))
            # What was there before must have been read.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            _store(total, y_smem, y_gmem.at[columns(i)])
            return carry

        _fill(fetch, stages, tiles)
        for band in range(bands):
            source = x_gmem.at[:, pl.ds(band * tall, tall)]
            plgpu.copy_gmem_to_smem(source, x_smem.at[band], scratch["ready"])
        plgpu.barrier_wait(scratch["ready"])
        _compat.counted(mine, piece, ())
        plgpu.wait_smem_to_gmem(0)

    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((problem.n,), jnp.float32),
        scratch={
            "a": _tiles(stages, tall, wide),
            "x": _tiles(bands, ROWS_STEP, tall),
            "y": plgpu.SMEM((wide,), jnp.float32),
            "arrived": plgpu.Barrier(num_arrivals=1, num_barriers=stages),
            "ready": plgpu.Barrier(num_arrivals=bands),
        },
        grid=(blocks,),
        grid_names=("block",),
        num_threads=1,
        thread_name="way",
        interpret=interpret,
    )


def _tiles(count: int, rows: int, columns: int) -> Any:
    shape = (count, rows, columns)
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=_compat.tiled(TILE, 16))


def _zeros(rows: int) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros((rows, ROWS_STEP), jnp.float32), plgpu.Layout.WGMMA)


def _fold_of_columns(rows: int, folds: int) -> jax.Array:
    """Which fold a column of a product belongs to, for each of its numbers."""
    shape = rows, ROWS_STEP
    column = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
    return lax.rem(column, jnp.full(shape, folds, jnp.int32))


def _fill(fetch: Callable[[Any, Any], None], stages: int, steps: Any) -> None:
    """Asks for the first steps' tiles."""
    for slot in range(stages):

        @pl.when(slot < steps)
        def _(slot: int = slot) -> None:
            fetch(jnp.int32(slot), jnp.int32(slot))


def _refill(fetch: Callable[[Any, Any], None], i: Any, slot: Any, stages: int, steps: Any) -> None:
    """Asks for the tiles of the step that has the slot after step i, which has been read."""

    @pl.when(i + jnp.int32(stages) < steps)
    def _() -> None:
        fetch(i + jnp.int32(stages), slot)


def _product(tile: Any, x: Any, rows: int) -> jax.Array:
    """A tile, (rows, k), times eight columns that lie as rows, (8, k)."""

    def run(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, tile, _compat.transposed(x))
        plgpu.wgmma_wait(0)
        return acc[...]

    return pl.run_scoped(run, _compat.sums(rows, ROWS_STEP))


def _store(total: jax.Array, smem: Any, out: Any) -> None:
    """Sends the sums of the columns away, and does not wait."""
    smem[...] = jnp.sum(total, axis=1)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(smem, out)
