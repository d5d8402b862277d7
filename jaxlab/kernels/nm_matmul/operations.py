"""Operations on registers of a GPU, as instructions and as jax.numpy has them.

What is written with them runs in a kernel, and on a CPU for tests and interpreters.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxlab.kernels import _compat


class Operations(Protocol):
    """What registers of 32 bits, or stand-ins for them, are built with."""

    def zero(self) -> Any:
        """Two zeros."""
        ...

    def shifted(self, register: Any, right: int) -> Any:
        """Shifted right by 0 to 31 bits, or left by a negative number of them."""
        ...

    def masked(self, register: Any, mask: int) -> Any:
        """Bitwise and."""
        ...

    def linear(self, register: Any, factor: int, plus: int) -> Any:
        """`register * factor + plus`, the low 32 bits."""
        ...

    def permuted(self, register: Any, selector: Any) -> Any:
        """PTX's `prmt` of the register and zero."""
        ...

    def moved(self, register: Any, left: Any) -> tuple[Any, Any]:
        """PTX's `shl` of the register in the lower half of 64 bits: lower and upper half."""
        ...

    def either(self, a: Any, b: Any) -> Any:
        """Bitwise or."""
        ...

    def differing(self, a: Any, b: Any) -> Any:
        """Bitwise exclusive or."""
        ...

    def where(self, register: Any, equals: int, a: Any, b: Any) -> Any:
        """`a` where the register is that number, else `b`."""
        ...


class Emulated:
    """The operations on uint32 arrays."""

    def zero(self) -> jax.Array:
        return jnp.uint32(0)

    def shifted(self, register: jax.Array, right: int) -> jax.Array:
        by = jnp.uint32(abs(right))
        return register >> by if right >= 0 else register << by

    def masked(self, register: jax.Array, mask: int) -> jax.Array:
        return register & jnp.uint32(mask)

    def linear(self, register: jax.Array, factor: int, plus: int) -> jax.Array:
        return register * jnp.uint32(factor) + jnp.uint32(plus % 2**32)

    def permuted(self, register: jax.Array, selector: jax.Array) -> jax.Array:
        total = jnp.zeros_like(register)
        for at in range(4):
            number = (selector >> jnp.uint32(4 * at)) & jnp.uint32(7)
            byte = (register >> (jnp.uint32(8) * (number & jnp.uint32(3)))) & jnp.uint32(255)
            byte = jnp.where(number < 4, byte, jnp.zeros_like(byte))
            total = total | (byte << jnp.uint32(8 * at))
        return total

    def moved(self, register: jax.Array, left: jax.Array) -> tuple[jax.Array, jax.Array]:
        by, nothing = left & jnp.uint32(31), jnp.zeros_like(register)
        lower = jnp.where(left < 32, register << by, nothing)
        # What crosses the middle: register >> (32 - by), in two steps as by may be 0.
        crossing = (register >> jnp.uint32(1)) >> (jnp.uint32(31) - by)
        upper = jnp.where(left < 32, crossing, register << by)
        return lower, jnp.where(left < 64, upper, nothing)

    def either(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a | b

    def differing(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a ^ b

    def where(self, register: jax.Array, equals: int, a: Any, b: Any) -> jax.Array:
        return jnp.where(register == jnp.uint32(equals), a, b)


class Instructions:
    """The operations on 32-bit MLIR values."""

    def zero(self) -> Any:
        return _constant(0)

    def shifted(self, register: Any, right: int) -> Any:
        return _compat.shifted(register, right)

    def masked(self, register: Any, mask: int) -> Any:
        return _arith().andi(register, _constant(mask))

    def linear(self, register: Any, factor: int, plus: int) -> Any:
        scaled = _arith().muli(register, _constant(factor)) if factor != 1 else register
        return _arith().addi(scaled, _constant(plus))

    def permuted(self, register: Any, selector: Any) -> Any:
        return _assembly("prmt.b32 $0, $1, 0, $2;", "=r,r,r", register, selector)

    def moved(self, register: Any, left: Any) -> tuple[Any, Any]:
        # Not LLVM's shift, whose result is undefined from 64 bits on.
        from jax.experimental.mosaic.gpu import utils
        from jaxlib.mlir import ir

        arith, word = _arith(), ir.IntegerType.get_signless(32)
        wide = ir.IntegerType.get_signless(64)
        both = _assembly("shl.b64 $0, $1, $2;", "=l,l,r", arith.extui(wide, register), left)
        upper = arith.shrui(both, utils.c(32, wide))
        return arith.trunci(word, both), arith.trunci(word, upper)

    def either(self, a: Any, b: Any) -> Any:
        return _arith().ori(a, b)

    def differing(self, a: Any, b: Any) -> Any:
        return _arith().xori(a, b)

    def where(self, register: Any, equals: int, a: Any, b: Any) -> Any:
        found = _arith().cmpi(_arith().CmpIPredicate.eq, register, _constant(equals))
        return _arith().select(found, a, b)


def _arith() -> Any:
    from jaxlib.mlir.dialects import arith

    return arith


def _constant(value: int) -> Any:
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir

    # Signed, as MLIR's bindings want numbers of 32 bits.
    signed = (value + 2**31) % 2**32 - 2**31
    return utils.c(signed, ir.IntegerType.get_signless(32))


def _assembly(code: str, constraints: str, a: Any, b: Any) -> Any:
    """PTX from `$1` and `$2` to `$0`, which is like `$1`."""
    from jaxlib.mlir.dialects import llvm

    return llvm.inline_asm(a.type, [a, b], code, constraints)
