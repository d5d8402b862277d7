"""The product with a stored N:M matrix, and what the classes of stored matrices share."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Cost, Matrix, accumulator
from jaxlab.methods.nm.mask import NMPattern


class PatternMatrix(Matrix):
    """A matrix that stores `n` of every `m` blocks of its pattern, and where they are.

    The reference product makes the dense array, which lives for the product only: it spends m / n
    times the operations that `cost` counts, and before them n selects for each dense entry (a
    gather or scatter where n > 4). What it saves is memory, not time.
    """

    dense_product = True

    @property
    def pattern(self) -> NMPattern:
        """The groups."""
        raise NotImplementedError

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`."""
        return _product(x, self, False)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W.T`."""
        return _product(x, self, True)

    def cost(self, rows: int) -> Cost:
        """FLOPs of the stored values; a product with the dense array spends m / n times as many."""
        dense, pattern = super().cost(rows), self.pattern
        return Cost(flops=dense.flops * pattern.n // pattern.m, bytes=dense.bytes)


class PackedMatrix(PatternMatrix):
    """A `PatternMatrix` whose kept entries stand in order along `axis`, with an `index` of them."""

    n: int
    m: int
    axis: int
    block: int

    @property
    def pattern(self) -> NMPattern:
        """The groups."""
        return NMPattern(self.n, self.m, self.axis, self.block)

    @property
    def kept(self) -> int:
        """Entries that are kept along the axis."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        # The index has the stack's axes and the other axis as they are.
        shape = list(getattr(self, "index").shape)  # noqa: B009
        shape[self.axis] = self.kept // self.n * self.m
        return tuple(shape)

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole groups and whole bytes of positions."""
        bits = self.pattern.position_bits
        return self.pattern.tile(self.m * self.block * (math.lcm(bits, 8) // bits))


def nm_matmul(x: jax.Array, packed: PatternMatrix) -> jax.Array:
    """`x @ W` of a stored W, as a function; `nm_planes` may run a kernel, the others do not.

    The op under `nm_planes` has the same name: `jaxlab.kernels.nm_matmul` takes bare arrays (a
    `PackedNM` of (d_out, d_in)) and multiplies by their transpose.

    The gradient has a rule of its own, so that the dense array is not kept for the backward pass
    but made again there: x gets `g @ W.T`, stored values get what `x.T @ g` has at their
    positions, and the positions get none. Reverse mode only.

    Args:
      x: (..., d_in), floating.
      packed: (d_in, d_out); a stack of them under `jax.vmap`.

    Returns:
      (..., d_out), in x's dtype, accumulated in float32 or better.

    Raises:
      TypeError: `packed` is no stored matrix of this package.

    >>> from jaxlab.methods.nm.packed import NMPacked
    >>> nm_matmul(jnp.ones((3, 8)), NMPacked.from_dense(jnp.ones((8, 2)), n=1, m=4)).tolist()
    [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]
    """
    if not isinstance(packed, PatternMatrix):
        raise TypeError(
            f"nm_matmul: packed is a {type(packed).__name__}; valid: what nm_pack or "
            "nm_pack_planes makes. A PackedNM goes to jaxlab.kernels.nm_matmul"
        )
    return packed.rmatmul(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, packed: PatternMatrix, transposed: bool) -> jax.Array:
    return _multiply(x, packed.to_dense(), transposed)


def _forward(x: jax.Array, packed: PatternMatrix, transposed: bool) -> tuple[jax.Array, Any]:
    return _product(x, packed, transposed), (x, packed)


def _backward(transposed: bool, residuals: Any, g: jax.Array) -> tuple[jax.Array, Any]:
    x, packed = residuals
    dense, pull = jax.vjp(lambda w: w.to_dense(), packed)
    left, right = (g, x) if transposed else (x, g)
    rows = tuple(range(x.ndim - 1))
    full = jax.lax.dot_general(
        left, right, ((rows, rows), ((), ())), preferred_element_type=accumulator(x.dtype)
    )
    (d_packed,) = pull(full.astype(dense.dtype))
    return _multiply(g, dense, not transposed), d_packed


_product.defvjp(_forward, _backward)


def _multiply(x: jax.Array, dense: jax.Array, transposed: bool) -> jax.Array:
    dense = (dense.T if transposed else dense).astype(x.dtype)
    wide = jnp.matmul(x, dense, preferred_element_type=accumulator(x.dtype))
    return wide.astype(x.dtype)
