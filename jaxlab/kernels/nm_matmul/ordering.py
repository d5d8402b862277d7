"""The order of x, made in shared memory: XLA needs a launch for it."""

from typing import Any

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import plgpu
from jaxlab.kernels.layout_nm import LANES, PIECE, Layout
from jaxlab.kernels.nm_matmul.operations import Instructions, Operations

_CHUNK = 16
_THREADS = 128


def in_shared_memory(x: Any, layout: Layout) -> None:
    """Orders x as `dense_lanes` does, in place, and lets the tensor cores see it.

    A row of 64 columns is 8 chunks of 16 bytes, two of each lane of the layout. Two threads have a
    row: one the first chunk of every lane, one the second. A thread transposes its four chunks, in
    pairs of columns, to four chunks of the result.

    Args:
      x: bfloat16 in shared memory, (rows, columns), multiples of 8 and of 64, tiled and swizzled
        as `_compat.tiled(64, 16)` says; 16 rows of 64 columns or a multiple of them.
      layout: of the weights, with a span of 16.
    """
    rows, columns = x.shape
    tasks = 2 * rows * columns // PIECE

    def order(_: Any, ref: Any) -> None:
        from jax.experimental.mosaic.gpu import utils
        from jaxlib.mlir import ir
        from jaxlib.mlir.dialects import arith, llvm, scf

        word, byte = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(8)
        four = ir.VectorType.get((LANES,), word)
        start = utils.memref_ptr(ref)
        do = Instructions()

        def at(place: Any) -> Any:
            return utils.getelementptr(start, [place], byte)

        def task(number: Any) -> None:
            sources, targets = chunks(do, number)
            loaded = [llvm.load(four, at(place), alignment=_CHUNK) for place in sources]
            pairs = [
                [llvm.extractelement(chunk, utils.c(i, word)) for i in range(LANES)]
                for chunk in loaded
            ]
            # The threads of a row are of one warp, and overwrite what the other reads.
            utils.warp_barrier()
            for place, ordered in zip(targets, transposed(do, layout, pairs), strict=True):
                chunk = llvm.mlir_undef(four)
                for i, pair in enumerate(ordered):
                    chunk = llvm.insertelement(chunk, pair, utils.c(i, word))
                llvm.store(chunk, at(place), alignment=_CHUNK)

        thread = do.masked(utils.thread_idx(), _THREADS - 1)
        for begin in range(0, tasks, _THREADS):
            number = do.linear(thread, 1, begin)
            if tasks - begin >= _THREADS:
                task(number)
                continue
            inside = arith.cmpi(arith.CmpIPredicate.ult, number, utils.c(tasks, word))
            with ir.InsertionPoint(scf.IfOp(inside).then_block):
                task(number)
                scf.yield_([])
        utils.commit_shared()

    inline: Any = plgpu.inline_mgpu(arg_types=(plgpu.RefType(_compat.tiled(PIECE, 16)),))
    inline(order)(x)


def chunks(do: Operations, number: Any) -> tuple[list[Any], list[Any]]:
    """In bytes, where a task's four chunks are read, and where they are written."""
    half = do.masked(number, 1)
    # Even rows before odd ones: eight threads then read chunks of eight places.
    even, odd = do.masked(number, 6), do.masked(do.shifted(number, 3), 1)
    row = do.either(even, odd)
    tile = do.shifted(number, 4)
    first = do.either(do.shifted(tile, -10), do.shifted(row, -7))

    def at(chunk: Any) -> Any:
        return do.either(first, do.shifted(do.differing(chunk, row), -4))

    sources = [at(do.linear(half, 1, 2 * lane)) for lane in range(LANES)]
    return sources, [at(do.linear(do.shifted(half, -2), 1, i)) for i in range(LANES)]


def transposed(do: Operations, layout: Layout, pairs: list[list[Any]]) -> list[list[Any]]:
    """Chunks of pairs of columns, by lane, to chunks that have a pair of every lane."""

    def of(pair: Any, i: int) -> Any:
        if layout.parts == 1 or i % 2 == 0:
            return pair
        # The second pair of a 2:4 group is the other way round.
        return do.either(do.shifted(pair, 16), do.shifted(pair, -16))

    return [[of(chunk[i], i) for chunk in pairs] for i in range(LANES)]
