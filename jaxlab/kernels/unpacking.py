"""Fields of packed words as bfloat16, by bit operations: conversions are slow on every GPU.

0x4300 is 128 in bfloat16, and its last place is 1: a field of up to 7 bits in its mantissa is
128 + the field, exactly. A sign bit over 0x3F80, which is 1, is +1 or -1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels.packing import FORMATS, WORD, Format

_BASE = 0x4300


def bfloat16_field(words: jax.Array, kind: str, p: int) -> jax.Array:
    """The numbers in field p, in bfloat16.

    Args:
      words: uint16, of any shape.
      kind: a name of `FORMATS`, at most 8 bits and with numbers that bfloat16 holds.
      p: the field.

    >>> words = jnp.array([[0x21]], jnp.uint16)
    >>> [bfloat16_field(words, "int4", p).item() for p in (0, 1)]
    [-7.0, -6.0]
    """
    return _PLAIN.get(kind, _offset)(words, FORMATS[kind], p)


def bfloat16_field_in_registers(words: jax.Array, kind: str, p: int) -> jax.Array:
    """The same inside a Mosaic GPU kernel, two words at a time: one to four instructions."""
    return _FAST.get(kind, _offset_registers)(words, FORMATS[kind], p)


# A field of words of 16 signs: its place in their lower half or, if so, in their upper one.
Half = tuple[jax.Array, bool]


def int8_signs(words: jax.Array, fields: Sequence[Half]) -> jax.Array:
    """The signs in fields of words of kind "binary", as int8.

    Args:
      words: uint16, (rows, columns).
      fields: of each, its place, int32 from 0 to 7, and whether it is in the upper half.

    Returns:
      (rows, fields columns), the first field first.

    >>> words = jnp.array([[0x102, 1]], jnp.uint16)
    >>> int8_signs(words, [(jnp.int32(0), False), (jnp.int32(0), True)]).tolist()
    [[1, -1, -1, 1]]
    """
    wide = words.astype(jnp.int32)
    places = [jnp.full(words.shape, low + jnp.int32(8 * upper)) for low, upper in fields]
    bits = [lax.shift_right_logical(wide, place) & 1 for place in places]
    return jnp.concatenate([1 - 2 * bit for bit in bits], axis=1).astype(jnp.int8)


def int8_signs_in_registers(words: jax.Array, fields: Sequence[Half]) -> jax.Array:
    """The same inside a Mosaic GPU kernel, four words at a time, in the layout of int8 products.

    A field and the one eight above it share their shifts, which bring the one to the top of the
    lower bytes and the other to that of the upper ones. The instruction that gathers these bytes
    repeats their top bits.
    """

    def per_pair(first: Any, second: Any, *lefts: Any) -> list[Any]:
        made = []
        for left, (_, upper) in zip(lefts, fields, strict=True):
            which = "0xFDB9" if upper else "0xECA8"
            code = f"{{ .reg .b32 a; prmt.b32 a, $1, $2, {which}; or.b32 $0, a, 0x01010101; }}"
            shifted = _compat.left_by(first, left), _compat.left_by(second, left)
            made.append(_compat.assembly(code, *shifted))
        return made

    return _compat.bytes_on_registers(words, [jnp.int32(7) - low for low, _ in fields], per_pair)


def _offset(words: jax.Array, form: Format, p: int) -> jax.Array:
    return _number(_bits(words, form, p) | _all(words, _BASE)) - _of(words, 128 - form.low)


def _two_complement(words: jax.Array, form: Format, p: int) -> jax.Array:
    byte = lax.shift_right_logical(words, _all(words, 8 * p)) if p else words
    low = (byte & _all(words, 0x7F)) | _all(words, _BASE)
    # With the sign bit in its exponent, 128 becomes 256: the sign weighs 128 more.
    sign = (byte & _all(words, 0x80)) | _all(words, _BASE)
    return _number(low) - _number(sign)


def _sign(words: jax.Array, form: Format, p: int) -> jax.Array:
    left = WORD - 1 - p
    bit = lax.shift_left(words, _all(words, left)) if left else words
    return _number((bit & _all(words, 0x8000)) | _all(words, 0x3F80))


def _bits(words: jax.Array, form: Format, p: int) -> jax.Array:
    shift = form.bits * p
    moved = lax.shift_right_logical(words, _all(words, shift)) if shift else words
    return moved & _all(words, 2**form.bits - 1)


def _all(words: jax.Array, value: int) -> jax.Array:
    return jnp.full(words.shape, value, jnp.uint16)


def _of(words: jax.Array, value: int) -> jax.Array:
    return jnp.full(words.shape, value, jnp.bfloat16)


def _number(words: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(words, jnp.bfloat16)


_AND_OR = "(0xf0 & 0xcc) | 0xaa"


def _twice(value: int) -> str:
    return f"0x{value:04X}{value:04X}"


def _offset_registers(words: jax.Array, form: Format, p: int) -> jax.Array:
    # Between 128 and 256 bfloat16's last place is 1: the bits of an offset are added to the base.
    code = (
        "{ .reg .b32 a, b; "
        f"lop3.b32 a, $1, {_twice(2**form.bits - 1)}, {_twice(_BASE)}, {_AND_OR}; "
        f"mov.b32 b, {_twice(_BASE - form.low)}; sub.bf16x2 $0, a, b; }}"
    )
    return _asm(words, form.bits * p, code)


def _two_complement_registers(words: jax.Array, form: Format, p: int) -> jax.Array:
    code = (
        "{ .reg .b32 a, b; "
        f"lop3.b32 a, $1, {_twice(0x7F)}, {_twice(_BASE)}, {_AND_OR}; "
        f"lop3.b32 b, $1, {_twice(0x80)}, {_twice(_BASE)}, {_AND_OR}; sub.bf16x2 $0, a, b; }}"
    )
    return _asm(words, 8 * p, code)


def _sign_registers(words: jax.Array, form: Format, p: int) -> jax.Array:
    code = f"lop3.b32 $0, $1, {_twice(0x8000)}, {_twice(0x3F80)}, {_AND_OR};"
    return _asm(words, p - (WORD - 1), code)


def _asm(words: jax.Array, right: int, code: str) -> jax.Array:
    return _compat.on_registers(
        words, lambda register: _compat.assembly(code, _compat.shifted(register, right))
    )


_Field = Callable[[jax.Array, Format, int], jax.Array]
_PLAIN: dict[str, _Field] = {"int8": _two_complement, "binary": _sign}
_FAST: dict[str, _Field] = {"int8": _two_complement_registers, "binary": _sign_registers}
