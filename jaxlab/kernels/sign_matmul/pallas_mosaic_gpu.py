"""The kernels for Hopper: int8 tensor cores, with bits unpacked on the way to them.

Many rows: a block of threads stays on its processor and takes 128 x `tile_n` of the result at a
time. Two warpgroups multiply, 64 rows each; the third feeds them. It brings what is int8 by TMA,
and what is bits it unpacks into the same stages of shared memory, so that the traffic with the
cache is an eighth. Bits of a are unpacked by the warpgroup that multiplies them, in registers,
from where tensor cores take a left operand.

Few rows: the weights' bits stream through registers, as in the other products with packed weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat, plan
from jaxlab.kernels._compat import load, pl, plgpu, transposed
from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.packing import FORMATS, Planar, unpack
from jaxlab.kernels.sign_matmul.reference import as_int8, scaled
from jaxlab.kernels.sign_matmul.shapes import (
    CONSUMERS,
    STEP,
    TILE,
    Config,
    Problem,
    problem_of,
    refuse,
)
from jaxlab.kernels.streamed import Piece, streamed
from jaxlab.kernels.unpacking import (
    bfloat16_field,
    bfloat16_field_in_registers,
    int8_signs,
    int8_signs_in_registers,
)

ROWS = CONSUMERS * TILE
# Warpgroups that multiply, then the one that feeds them.
FEEDER = CONSUMERS
OUT_SLOTS = 2
DTYPES = ("int32", "float32", "bfloat16", "float16")


def mosaic_gpu(
    a: jax.Array,
    b: Planar,
    scale: jax.Array | None,
    *,
    dtype: Any,
    config: Config | plan.Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by a kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    _compat.require()
    require_hopper(interpret)
    problem = problem_of(a, b, dtype)
    if problem.dtype not in DTYPES:
        raise NotImplementedError(
            f"mosaic_gpu: dtype={problem.dtype}; the kernel gives {', '.join(DTYPES)}"
        )
    if reason := refuse(problem, config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    if isinstance(config, plan.Config):
        return scaled(_few(problem, a, b, config, bool(interpret)), scale, dtype)
    return _many(problem, a, b, scale, dtype, config, bool(interpret))


def _few(
    problem: Problem, a: jax.Array, b: Planar, config: plan.Config, interpret: bool
) -> jax.Array:
    """The int32 product, of bfloat16 operands: sums below 2^24 are exact in float32."""
    field = bfloat16_field_in_registers if config.fast and not interpret else bfloat16_field

    def pieces(blocks: Sequence[Any]) -> list[Piece]:
        words = load(blocks[0], plgpu.Layout.WGMMA)
        return [
            (p * b.width, functools.partial(field, words, b.kind, p))
            for p in range(b.format.fields)
        ]

    # What fills a up is 0, so that b's +1 there counts nothing.
    x = jnp.pad(as_int8(a, b), ((0, 0), (0, b.padded - b.length))).astype(jnp.bfloat16)
    y = streamed(problem.stream, config, pieces, x, [b.words], None, jnp.float32, interpret)
    return y.astype(jnp.int32)


def _many(
    problem: Problem,
    a: jax.Array,
    b: Planar,
    scale: jax.Array | None,
    dtype: Any,
    config: Config,
    interpret: bool,
) -> jax.Array:
    bits_a, bits_b = problem.unpacked(config)
    whole = dataclasses.replace(b, length=b.padded)
    rows = ((0, problem.padded_rows - problem.rows), (0, 0))
    surplus = 0
    if problem.packed:
        # What fills both up is +1.
        surplus = b.padded - b.length
        left = jnp.pad(a, rows)
        left = left if bits_a else as_int8(left, whole)
    else:
        left = jnp.pad(a, (rows[0], (0, b.padded - b.length)))
    right = b.words if bits_b else unpack(whole)
    scales = [] if scale is None else [scale.astype(jnp.float32)]
    call = _build(problem, config, bool(scales), surplus, dtype, interpret)
    return call(left, right, *scales)[: problem.rows]


def _build(
    problem: Problem, config: Config, has_scale: bool, surplus: int, dtype: Any, interpret: bool
) -> Callable[..., jax.Array]:
    bits_a, bits_b = problem.unpacked(config)
    stages, tile_n = config.stages, config.tile_n
    rows, n, k = problem.padded_rows, problem.n, problem.k
    field = int8_signs if interpret else int8_signs_in_registers
    # A block of k is what a block of the packing holds; a stage has one or two of its fields.
    width = problem.width if bits_b else STEP
    pieces = STEP // width
    block = problem.block if bits_b else STEP
    order = _order(pieces) if bits_b else [[0]]
    blocks, steps = k // block, len(order)
    across = next(d for d in range(config.across, 0, -1) if rows // ROWS % d == 0)
    tiles = (rows // ROWS) * (n // tile_n)
    grid = min(plan.PROCESSORS, tiles)
    columns = STEP // jnp.dtype(dtype).itemsize
    # By then the stages before have been taken, and with them the words of a.
    late = min(stages, steps - 1)

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

        def slot_of(t: Any, s: int) -> Any:
            if steps % stages == 0:
                return jnp.int32(s % stages)
            return lax.rem(t * jnp.int32(steps) + jnp.int32(s), jnp.int32(stages))

        def fetch_words(t: Any, name: str) -> None:
            i, j = _divmod(t, blocks)
            source, size, at = (
                (a_gmem, ROWS, corner(i)[0]) if name == "a" else (b_gmem, tile_n, corner(i)[1])
            )
            source = source.at[pl.ds(at, size), pl.ds(j * jnp.int32(width), width)]
            plgpu.copy_gmem_to_smem(source, scratch[f"{name}_words"], scratch[f"{name}_arrived"])

        def feed() -> None:
            plgpu.set_max_registers(120 if bits_b else 40, action="decrease")
            for name, bits in (("a", bits_a), ("b", bits_b)):
                if bits:
                    fetch_words(jnp.int32(0), name)
            lax.fori_loop(0, total, feed_block, None)

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
            for s, fields in enumerate(order):
                slot = slot_of(t, s)
                plgpu.barrier_wait(empty.at[slot])
                for f, p in enumerate(fields):
                    at = pl.ds(j * jnp.int32(block) + jnp.int32(p * width), width)
                    if not bits_a:
                        source = a_gmem.at[pl.ds(row, ROWS), at]
                        plgpu.copy_gmem_to_smem(source, scratch["a"].at[slot, f], full.at[slot])
                    if not bits_b:
                        source = b_gmem.at[pl.ds(column, tile_n), at]
                        plgpu.copy_gmem_to_smem(source, scratch["b"].at[slot, f], full.at[slot])
                if bits_b:
                    for f, p in enumerate(fields):
                        for part, some in zip(_parts(tile_n), words, strict=True):
                            scratch["b"].at[slot, f, part][...] = field(some, p)
                    plgpu.commit_smem()
                    plgpu.barrier_arrive(full.at[slot])
                for name, bits, when in (("b", bits_b, 0), ("a", bits_a, late)):
                    if bits and s == when:
                        ask_for_next(t, name)

        def ask_for_next(t: Any, name: str) -> None:
            @pl.when(t + jnp.int32(1) < total)
            def _() -> None:
                if name == "a":
                    plgpu.barrier_wait(scratch["a_taken"])
                fetch_words(t + jnp.int32(1), name)

        def multiply() -> None:
            plgpu.set_max_registers(192 if bits_b else 232, action="increase")
            for slot in range(stages):
                plgpu.barrier_arrive(empty.at[slot])
            lax.fori_loop(0, mine, tile_of, None)
            plgpu.wait_smem_to_gmem(0)

        def tile_of(i: Any, _: None) -> None:
            def product(acc: Any) -> jax.Array:
                lax.fori_loop(0, blocks, functools.partial(step_of, acc, i), None)
                plgpu.wgmma_wait(0)
                last = slot_of((i + jnp.int32(1)) * jnp.int32(blocks), -1)
                plgpu.barrier_arrive(empty.at[last])
                return acc[...]

            write(i, pl.run_scoped(product, _compat.sums(TILE, tile_n, jnp.int32)))

        def step_of(acc: Any, i: Any, j: Any, _: None) -> None:
            t = i * jnp.int32(blocks) + j
            own = pl.ds(way * jnp.int32(TILE), TILE)
            words: Any = None
            if bits_a:
                plgpu.barrier_wait(scratch["a_arrived"])
                words = load(scratch["a_words"].at[own], plgpu.Layout.WGMMA_8BIT)
                plgpu.barrier_arrive(scratch["a_taken"])
            for s, fields in enumerate(order):
                slot = slot_of(t, s)
                plgpu.barrier_wait(full.at[slot])
                for f, p in enumerate(fields):
                    right = transposed(scratch["b"].at[slot, f])
                    if bits_a:
                        staging = scratch["staging"].at[way] if interpret else None
                        _compat.accumulate(acc, field(words, p), right, staging)
                    else:
                        plgpu.wgmma(acc, scratch["a"].at[slot, f, own], right)
                # All but this step's products are over, and their operands free.
                plgpu.wgmma_wait(pieces)
                if s:
                    plgpu.barrier_arrive(empty.at[slot_of(t, s - 1)])
                else:

                    @pl.when(j > 0)
                    def _() -> None:
                        plgpu.barrier_arrive(empty.at[slot_of(t, -1)])

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
    words_tiling = _compat.tiled(problem.width, 16)
    arrivals = pieces * (not bits_a) + (1 if bits_b else pieces)
    out_tiling = _compat.tiled(columns, jnp.dtype(dtype).itemsize * 8)
    scratch = {
        "b": plgpu.SMEM((stages, pieces, tile_n, width), jnp.int8, transforms=tiling),
        "out": plgpu.SMEM((CONSUMERS, OUT_SLOTS, TILE, columns), dtype, transforms=out_tiling),
        "full": plgpu.Barrier(num_arrivals=arrivals, num_barriers=stages),
        "empty": plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
    }
    if bits_a:
        shape = (ROWS, problem.width)
        scratch["a_words"] = plgpu.SMEM(shape, jnp.uint16, transforms=words_tiling)
        scratch["a_arrived"] = plgpu.Barrier()
        scratch["a_taken"] = plgpu.Barrier(num_arrivals=CONSUMERS)
        if interpret:
            shape = (CONSUMERS, TILE, width)
            scratch["staging"] = plgpu.SMEM(shape, jnp.int8, transforms=tiling)
    else:
        scratch["a"] = plgpu.SMEM((stages, pieces, ROWS, width), jnp.int8, transforms=tiling)
    if bits_b:
        shape = (tile_n, problem.width)
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


def _order(pieces: int) -> list[list[int]]:
    """Fields by stage. Those eight apart stand together: they share shifts.

    >>> _order(2)[:2]
    [[0, 8], [1, 9]]
    """
    half = FORMATS["binary"].fields // 2
    flat = [p + q for p in range(half) for q in (0, half)]
    return [flat[at : at + pieces] for at in range(0, len(flat), pieces)]


def _parts(rows: int) -> list[Any]:
    return [pl.ds(at, TILE) for at in range(0, rows, TILE)]


def _divmod(value: Any, by: int) -> tuple[Any, Any]:
    return lax.div(value, jnp.int32(by)), lax.rem(value, jnp.int32(by))
