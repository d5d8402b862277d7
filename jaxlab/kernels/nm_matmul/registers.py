"""Kept values to dense weights, in 32-bit registers of two bfloat16 numbers.

A lane holds whole groups (see `packing_nm`), so a register of two neighbouring dense weights comes
from registers of the same lane: one of kept values, or a few, and one of codes. Three ways:

  2:4      `prmt` picks each half from (v0, v1) or 0. Of a code two bits, 8 apart, times a constant
           and plus another are the selector, as selectors count by their low 16 bits alone. For a
           group: a shift; and, multiply-add, prmt for each of two registers: 7 instructions to 4
           weights.
  n:m      A value in the lowest quarter of 64 bits, shifted left by 16 (place - 4 j) of them, is
           the registers 2 j and 2 j + 1 of the group: `shl` gives 0 from 64 on, and negative ones
           are large. It is an instruction for each register. For a kept value these, a shift and
           an and for the amount, m / 4 - 1 additions, and one for the quarter: 5 instructions to 4
           weights at 1:4, 8 to 8 at 1:8; n times that, and or.
  blocks   Of two entries or more: a register of the block where its place is that of the register,
           or what was there. A comparison for each place, shared by the registers of a block, and
           a select for each register and kept block: 1:m in blocks of 2 and of 16 take 2 and 1.1
           instructions to two weights.

Every instruction but the multiply-add runs at 64 lanes a cycle.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.kernels._compat import plgpu
from jaxlab.kernels.layout_nm import LANES, PIECE, Layout, place_bits
from jaxlab.kernels.nm_matmul.operations import Emulated, Instructions, Operations
from jaxlab.kernels.packing import WORD
from jaxlab.kernels.plan import TILE

# Registers of a lane and row: of a piece, and of 64 columns of values.
EACH = PIECE // (2 * LANES)
# Of the lower and the upper register of a 2:4 group: the first of its bits of the code, and the
# selector: factor, and what it is where both places are kept. A set first bit means that the place
# nearer the end of the group is pruned, and moves the register's other place to the other value.
_PAIRS = ((0, 0xDE44, 0x3210), (1, 0x1122, 0x1032))
_PAIR_BITS = 0x0101


def expand(
    do: Operations,
    layout: Layout,
    values: Callable[[int], Any],
    codes: Callable[[int], Any],
    piece: int,
) -> list[Any]:
    """The registers of one piece of 64 dense columns, in one lane and row.

    Args:
      do: the operations.
      layout: of the weights.
      values: by number, the lane's registers of kept values, of one tile.
      codes: likewise of codes.
      piece: of the tile.
    """
    first = piece * 2 * EACH
    build = functools.cache(functools.partial(_build(layout), do, layout, values))

    @functools.cache
    def code(group: int, bit: int) -> Any:
        word, at = divmod(group, WORD // layout.bits)
        return do.shifted(codes(word // 2), WORD * (word % 2) + layout.shift(at) - bit)

    registers = []
    for j in range(EACH):
        group, entry = divmod(first + 2 * j, layout.group)
        registers.append(build(code, group, entry // 4)[entry // 2 % 2])
    return registers


def _build(layout: Layout) -> Callable[..., Any]:
    """What makes the registers 2 j and 2 j + 1 of a group."""
    if layout.parts == 2:
        return _permuted
    return _moved if layout.block == 1 else _chosen


def _permuted(do: Operations, layout: Layout, values: Any, code: Any, group: int, j: int) -> Any:
    def register(first: int, factor: int, both: int) -> Any:
        bits = do.masked(code(group, 0), _PAIR_BITS << first)
        return do.permuted(values(group), do.linear(bits, factor, both))

    return [register(*pair) for pair in _PAIRS]


def _moved(do: Operations, layout: Layout, values: Any, code: Any, group: int, j: int) -> Any:
    bits = place_bits(layout.m)
    parts = []
    for p in range(layout.n):
        at = group * layout.n + p
        both = values(at // 2)
        value = do.shifted(both, WORD) if at % 2 else do.masked(both, 2**WORD - 1)
        # 16 times the place: four bits further left.
        left = do.masked(code(group, 4 - bits * p), (2**bits - 1) << 4)
        left = do.linear(left, 1, -4 * WORD * j) if j else left
        parts.append(do.moved(value, left))
    return [functools.reduce(do.either, halves) for halves in zip(*parts, strict=True)]


def _chosen(do: Operations, layout: Layout, values: Any, code: Any, group: int, j: int) -> Any:
    bits = place_bits(layout.m)

    def register(entry: int) -> Any:
        place, inner = divmod(entry, layout.block)
        total = do.zero()
        for p in range(layout.n):
            value = values(((group * layout.n + p) * layout.block + inner) // 2)
            found = do.masked(code(group, -bits * p), 2**bits - 1)
            total = do.where(found, place, value, total)
        return total

    return [register(4 * j), register(4 * j + 2)]


def piece_of(
    layout: Layout,
    fields: Sequence[jax.Array],
    code: jax.Array,
    tiles: tuple[int, int],
    piece: int,
    *,
    compiled: bool,
) -> jax.Array:
    """A piece of 64 dense columns, (64, 64), in bfloat16.

    Args:
      layout: of the weights.
      fields: kept values in bfloat16: one array, or of `Planar` ones each field.
      code: uint16 words.
      tiles: which of those in the fields, and of those in the code.
      piece: of the tile.
      compiled: whether this is a Mosaic GPU kernel, with all in the layout of products.
    """

    def build(do: Operations, field_of: list[Callable[[int], Any]], code_of: Any) -> list[Any]:
        def value(number: int) -> Any:
            # Field p of 16 words is 16 columns of values: two registers of a lane.
            number += tiles[0] * layout.values // (2 * LANES)
            block, inner = divmod(number, 2 * len(field_of))
            field, half = divmod(inner, 2)
            return field_of[field](2 * block + half)

        def words(number: int) -> Any:
            return code_of(tiles[1] * layout.words // (2 * LANES) + number)

        return expand(do, layout, functools.cache(value), words, piece)

    return (_compiled if compiled else _emulated)(build, fields, code)


def _emulated(build: Any, fields: Sequence[jax.Array], code: jax.Array) -> jax.Array:
    def registers(x: jax.Array) -> Callable[[int], jax.Array]:
        # (rows, registers, lanes), as the layout of products deals columns.
        pairs = x.reshape(x.shape[0], -1, LANES, 2)
        words = lax.bitcast_convert_type(pairs, jnp.uint32)
        return lambda number: words[:, number]

    out = build(Emulated(), [registers(f) for f in fields], registers(code))
    pairs = lax.bitcast_convert_type(jnp.stack(out, axis=1), jnp.bfloat16)
    return pairs.reshape(code.shape[0], PIECE)


def _compiled(build: Any, fields: Sequence[jax.Array], code: jax.Array) -> jax.Array:
    from jax.experimental.mosaic.gpu import fragmented_array, utils
    from jaxlib.mlir import ir

    layout = plgpu.Layout.WGMMA
    rows = code.shape[0]
    result = plgpu.ShapeDtypeStruct((rows, PIECE), jnp.bfloat16, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout,) * (len(fields) + 1), return_type=result)
    def rebuilt(_: Any, *arrays: Any) -> Any:
        word = ir.IntegerType.get_signless(32)
        pair = ir.VectorType.get((2,), ir.BF16Type.get())
        to = arrays[0].layout
        out = np.empty(to.registers_shape((rows, PIECE)), dtype=object)

        def by_rows(registers: Any) -> Any:
            # (64 rows, 8 columns, the rows that a lane has of them)
            return registers.reshape((rows // TILE, -1, 2))

        def of(array: Any, *row: int) -> Callable[[int], Any]:
            found = by_rows(array.registers)[row[0], :, row[1]]
            return lambda number: utils.bitcast(found[number], word)

        for row in itertools.product(range(rows // TILE), range(2)):
            *values, codes = (of(array, *row) for array in arrays)
            for at, register in enumerate(build(Instructions(), values, codes)):
                by_rows(out)[row[0], at, row[1]] = utils.bitcast(register, pair)
        return fragmented_array.FragmentedArray(_registers=out, _layout=to, _is_signed=None)

    return rebuilt(*fields, code)
