"""The kernel of many rows: int8 tensor cores, with bits unpacked on the way to them.

A block of threads stays on its processor and takes 128 x `tile_n` of the result at a time. Two
warpgroups multiply, 64 rows each; the third feeds them. It brings what is int8 by TMA, and what is
bits it unpacks into the same stages of shared memory, so that the traffic with the cache is an
eighth. Bits of a are unpacked by the warpgroup that multiplies them, in registers, from where
tensor cores take a left operand.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat, plan
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.packing import FORMATS
from jaxlab.kernels.sign_matmul.shapes import CONSUMERS, HELD, STEP, TILE, Config, Problem
from jaxlab.kernels.unpacking import Half, int8_signs, int8_signs_in_registers

ROWS = CONSUMERS * TILE
# Warpgroups that multiply, then the one that feeds them.
FEEDER = CONSUMERS
OUT_SLOTS = 2


def persistent(
    problem: Problem, config: Config, has_scale: bool, surplus: int, dtype: Any, interpret: bool
) -> Callable[..., jax.Array]:
    """The product as a function of a and b, and the scale if there is one.

    Args:
      problem: the sizes.
      config: the cut; what it unpacks comes as uint16 words, all else as int8.
      has_scale: whether columns have one, in float32.
      surplus: what is taken off every sum.
      dtype: of the result.
      interpret: on a CPU.

    Returns:
      (padded rows, n).
    """
    bits_a, bits_b = problem.unpacked(config)
    stages, tile_n = config.stages, config.tile_n
    rows, n, k = problem.padded_rows, problem.n, problem.k
    field = int8_signs if interpret else int8_signs_in_registers
    # Words that are held at a time, and the k that they have. Where both operands are packed alike
    # any order of k will do, and few words make one piece of a stage; otherwise each field of as
    # many words as the packing has in a block is a piece, of consecutive k.
    held = HELD if bits_a else problem.width
    pieces = STEP // held if bits_b and not bits_a else 1
    block = FORMATS["binary"].fields * held if bits_b else STEP
    width, steps, blocks = STEP // pieces, block // STEP, k // block
    # By then the stages before have been taken, and with them the words of a.
    late = min(stages, steps - 1)
    across = next(d for d in range(config.across, 0, -1) if rows // ROWS % d == 0)
    tiles = (rows // ROWS) * (n // tile_n)
    grid = min(plan.PROCESSORS, tiles)
    # Of the warpgroup that feeds and those that multiply, as `ptxas` needs them: with fewer it
    # spills, and waits for each product.
    registers = () if bits_b and not bits_a else (104, 200) if bits_b else (40, 232)
    columns = STEP // jnp.dtype(dtype).itemsize

    def body(a_gmem: Any, b_gmem: Any, *refs: Any, **scratch: Any) -> None:
        s_gmem: Any = refs[0] if has_scale else None
        out_gmem = refs[-1]
        cta, way = lax.axis_index("cta"), lax.axis_index("way")
        full, empty = scratch["full"], scratch["empty"]
        mine = lax.div(jnp.int32(tiles + grid - 1) - cta, jnp.int32(grid))
        total = mine * jnp.int32(blocks)

        def corner(i: Any) -> tuple[Any, Any]:
            """First row and column of this block's i-th tile."""
            tile = cta + i * jnp.int32(grid)
            band, inside = _divmod(tile, across * (n // tile_n))
            column, row = _divmod(inside, across)
            return (band * jnp.int32(across) + row) * jnp.int32(ROWS), column * jnp.int32(tile_n)

        def slot_of(t: Any, s: Any) -> Any:
            """The stage of the s-th step of the t-th block of k."""
            if isinstance(s, int) and steps % stages == 0:
                return jnp.int32(s % stages)
            return lax.rem(t * jnp.int32(steps) + jnp.int32(s), jnp.int32(stages))

        def fields(pair: Any, odd: int) -> list[list[Half]]:
            """Of the words, those of a step, by piece. Two that are eight apart share shifts."""
            if steps == 1:
                return [[(jnp.int32(0), False)]]
            if held == STEP:
                return [[(jnp.int32(pair), bool(odd))]]
            low = jnp.int32(pair) * jnp.int32(2) + jnp.int32(odd)
            if not bits_a:
                return [[(low, False)], [(low, True)]]
            lows = (low, low + jnp.int32(4))
            return [[(at, upper) for at in lows for upper in (False, True)]]

        def fetch_words(t: Any, name: str) -> None:
            i, j = _divmod(t, blocks)
            source, size, at = (
                (a_gmem, ROWS, corner(i)[0]) if name == "a" else (b_gmem, tile_n, corner(i)[1])
            )
            source = source.at[pl.ds(at, size), pl.ds(j * jnp.int32(held), held)]
            plgpu.copy_gmem_to_smem(source, scratch[f"{name}_words"], scratch[f"{name}_arrived"])

        def feed() -> None:
            if registers:
                plgpu.set_max_registers(registers[0], action="decrease")
            for name, bits in (("a", bits_a), ("b", bits_b)):
                if bits:
                    fetch_words(jnp.int32(0), name)
            _compat.counted(total, feed_block, None)

        def feed_block(t: Any, _: None) -> None:
            i, j = _divmod(t, blocks)
            row, column = corner(i)
            words = []
            if bits_b:
                plgpu.barrier_wait(scratch["b_arrived"])
                words = [
                    load(scratch["b_words"].at[part], plgpu.Layout.WGMMA_8BIT)
                    for part in _parts(tile_n)
                ]

            def step_of(pair: Any, odd: int) -> None:
                s = pair * 2 + odd
                feed_step(slot_of(t, s), fields(pair, odd))
                for name, bits, when in (("b", bits_b, 0), ("a", bits_a, late)):
                    if bits and isinstance(s, int) and s == when:
                        ask_for_next(t, name)
                    elif bits and not isinstance(s, int) and odd == when % 2:
                        pl.when(s == when)(functools.partial(ask_for_next, t, name))

            def feed_step(slot: Any, which: list[list[Half]]) -> None:
                plgpu.barrier_wait(empty.at[slot])
                for f, [(low, upper), *_] in enumerate(which):
                    p = low + jnp.int32(8 * upper)
                    at = pl.ds(j * jnp.int32(block) + p * jnp.int32(width), width)
                    if not bits_a:
                        source = a_gmem.at[pl.ds(row, ROWS), at]
                        plgpu.copy_gmem_to_smem(source, scratch["a"].at[slot, f], full.at[slot])
                    if not bits_b:
                        source = b_gmem.at[pl.ds(column, tile_n), at]
                        plgpu.copy_gmem_to_smem(source, scratch["b"].at[slot, f], full.at[slot])
                if bits_b:
                    for f, of_piece in enumerate(which):
                        for part, some in zip(_parts(tile_n), words, strict=True):
                            scratch["b"].at[slot, f, part][...] = field(some, of_piece)
                    plgpu.commit_smem()
                    plgpu.barrier_arrive(full.at[slot])

            if bits_a:
                for s in range(steps):
                    step_of(*divmod(s, 2))
                return

            def pair_of(pair: Any, _: None) -> None:
                for odd in range(min(2, steps)):
                    step_of(pair, odd)

            _compat.counted(-(-steps // 2), pair_of, None)

        def ask_for_next(t: Any, name: str) -> None:
            @pl.when(t + jnp.int32(1) < total)
            def _() -> None:
                if name == "a":
                    plgpu.barrier_wait(scratch["a_taken"])
                fetch_words(t + jnp.int32(1), name)

        def multiply() -> None:
            if registers:
                plgpu.set_max_registers(registers[1], action="increase")
            for slot in range(stages):
                plgpu.barrier_arrive(empty.at[slot])
            _compat.counted(mine, tile_of, None)
            plgpu.wait_smem_to_gmem(0)

        def tile_of(i: Any, _: None) -> None:
            def product(acc: Any) -> jax.Array:
                _compat.counted(blocks, functools.partial(multiply_block, acc, i), None)
                plgpu.wgmma_wait(0)
                last = slot_of((i + jnp.int32(1)) * jnp.int32(blocks), -1)
                plgpu.barrier_arrive(empty.at[last])
                return acc[...]

            write(i, pl.run_scoped(product, _compat.sums(TILE, tile_n, jnp.int32)))

        def multiply_block(acc: Any, i: Any, j: Any, _: None) -> None:
            t = i * jnp.int32(blocks) + j
            own = pl.ds(way * jnp.int32(TILE), TILE)
            words: Any = None
            if bits_a:
                plgpu.barrier_wait(scratch["a_arrived"])
                words = load(scratch["a_words"].at[own], plgpu.Layout.WGMMA_8BIT)
                plgpu.barrier_arrive(scratch["a_taken"])

            def step_of(s: Any, _: None) -> None:
                slot = slot_of(t, s)
                plgpu.barrier_wait(full.at[slot])
                for f in range(pieces):
                    right = transposed(scratch["b"].at[slot, f])
                    if bits_a:
                        left = field(words, fields(*divmod(s, 2))[f])
                        staging = scratch["staging"].at[way] if interpret else None
                        _compat.accumulate(acc, left, right, staging)
                    else:
                        plgpu.wgmma(acc, scratch["a"].at[slot, f, own], right)
                # All but this step's products are over, and their operands free.
                plgpu.wgmma_wait(pieces)
                give_back = functools.partial(plgpu.barrier_arrive, empty.at[slot_of(t, s - 1)])
                if isinstance(s, int) and s:
                    give_back()
                else:
                    pl.when(j + s > 0)(give_back)

            if bits_a:
                # Written out: in a loop of few steps ptxas would wait for each product.
                for s in range(steps):
                    step_of(s, None)
            else:
                _compat.counted(steps, step_of, None)

        def write(i: Any, total: jax.Array) -> None:
            row, column = corner(i)
            for e in range(tile_n // columns):
                at = pl.ds(column + jnp.int32(e * columns), columns)
                part = total[:, e * columns : (e + 1) * columns]
                part = part - jnp.int32(surplus) if surplus else part
                if has_scale:
                    by_column = load(s_gmem.at[at], plgpu.Layout.WGMMA.reduce(0), optimized=False)
                    part = part.astype(jnp.float32) * lax.broadcast_in_dim(
                        by_column, part.shape, (1,)
                    )
                out = scratch["out"].at[way, e % OUT_SLOTS]
                plgpu.wait_smem_to_gmem(OUT_SLOTS - 1, wait_read_only=True)
                out[...] = part.astype(dtype)
                plgpu.commit_smem()
                target = out_gmem.at[pl.ds(row + way * jnp.int32(TILE), TILE), at]
                plgpu.copy_smem_to_gmem(out, target)

        lax.cond(way == FEEDER, feed, multiply)

    tiling = _compat.tiled(width, 8)
    words_tiling = _compat.tiled(held, 16)
    arrivals = pieces * (not bits_a) + (1 if bits_b else pieces)
    out_tiling = _compat.tiled(columns, jnp.dtype(dtype).itemsize * 8)
    scratch = {
        "b": plgpu.SMEM((stages, pieces, tile_n, width), jnp.int8, transforms=tiling),
        "out": plgpu.SMEM((CONSUMERS, OUT_SLOTS, TILE, columns), dtype, transforms=out_tiling),
        "full": plgpu.Barrier(num_arrivals=arrivals, num_barriers=stages),
        "empty": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
    }
    if bits_a:
        shape = (ROWS, held)
        scratch["a_words"] = plgpu.SMEM(shape, jnp.uint16, transforms=words_tiling)
        scratch["a_arrived"] = plgpu.Barrier()
        scratch["a_taken"] = plgpu.Barrier(num_arrivals=CONSUMERS)
        if interpret:
            shape = (CONSUMERS, TILE, width)
            scratch["staging"] = plgpu.SMEM(shape, jnp.int8, transforms=tiling)
    else:
        scratch["a"] = plgpu.SMEM((stages, pieces, ROWS, width), jnp.int8, transforms=tiling)
    if bits_b:
        shape = (tile_n, held)
        scratch["b_words"] = plgpu.SMEM(shape, jnp.uint16, transforms=words_tiling)
        scratch["b_arrived"] = plgpu.Barrier()
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct((rows, n), dtype),
        scratch=scratch,
        grid=(grid,),
        grid_names=("cta",),
        num_threads=CONSUMERS + 1,
        thread_name="way",
        interpret=interpret,
        # Barriers of the stages and `commit_smem` order all there is.
        auto_barriers=False,
    )


def _parts(rows: int) -> list[Any]:
    return [pl.ds(at, TILE) for at in range(0, rows, TILE)]


def _divmod(value: Any, by: int) -> tuple[Any, Any]:
    return lax.div(value, jnp.int32(by)), lax.rem(value, jnp.int32(by))
