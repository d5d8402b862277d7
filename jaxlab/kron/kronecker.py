"""A Kronecker product as one object, whose products, transposes and inverses are of its kind."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.kron.product import (
    HIGHEST,
    as_common,
    as_given,
    check_square,
    columns,
    kron_dense,
    kron_diag,
    kron_matmat,
    kron_matvec,
    kron_trace,
    over_stack,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Kronecker:
    """A_1 (x) ... (x) A_D, a pytree of its factors.

    Vectors are in C's order: the first factor acts on the slowest axis, and
    `Kronecker((a, b)) @ x.reshape(-1)` is `(a @ x @ b.T).reshape(-1)`.

    Attributes:
      factors: D arrays (..., m_d, n_d).

    >>> k = Kronecker((jnp.diag(jnp.array([1.0, 2.0])), jnp.array([[3.0]])))
    >>> (k @ jnp.ones(2)).tolist(), ((k @ k.T).inverse() @ jnp.array([9.0, 36.0])).tolist()
    ([3.0, 6.0], [1.0, 1.0])
    """

    factors: Sequence[jax.Array]

    # NumPy's `x @ K` would otherwise take this for an array of objects.
    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., M, N)."""
        stack = jnp.broadcast_shapes(*(f.shape[:-2] for f in self.factors))
        rows = math.prod(f.shape[-2] for f in self.factors)
        return (*stack, rows, math.prod(columns(self.factors)))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """That of a product with it."""
        return as_common("Kronecker", self.factors)[0][0].dtype

    @property
    def H(self) -> "Kronecker":
        """The conjugate transpose, factor by factor."""
        return Kronecker(tuple(f.mT.conj() for f in self.factors))

    @property
    def T(self) -> "Kronecker":
        """The transpose, factor by factor."""
        return Kronecker(tuple(f.mT for f in self.factors))

    def __matmul__(self, other: Any) -> Any:
        """With another of matching factors, with a vector (N,), or with columns (..., N, R)."""
        if isinstance(other, Kronecker):
            return self._times(other)
        other = jnp.asarray(other)
        if other.ndim == 1:
            return kron_matvec(self.factors, other)
        return kron_matmat(self.factors, other)

    def __rmatmul__(self, other: Any) -> jax.Array:
        """A vector (M,), or rows (..., R, M), times this: (N,) or (..., R, N).

        Raises:
          ValueError: the last axis is not of M entries.
        """
        other, rows = jnp.asarray(other), self.shape[-2]
        if not other.ndim or other.shape[-1] != rows:
            raise ValueError(
                f"Kronecker: x @ K with x of {other.shape} and K of {self.shape} does not fit; "
                f"nearest: ({rows},) or (..., R, {rows})"
            )
        if other.ndim == 1:
            # As a grid: a vector of few entries could be taken for one of another shape.
            grid = other.reshape(tuple(f.shape[-2] for f in self.factors))
            found = kron_matvec(self.T.factors, grid)
            return as_given(found, len(self.factors), True)
        return kron_matmat(self.T.factors, other.mT).mT

    def _times(self, other: "Kronecker") -> "Kronecker":
        inner = columns(self.factors), tuple(f.shape[-2] for f in other.factors)
        if inner[0] != inner[1]:
            raise ValueError(
                f"Kronecker: factors of {inner[0]} columns do not meet factors of {inner[1]} rows; "
                "nearest: make one of them dense with to_dense()"
            )
        left, right = as_common("Kronecker", self.factors, *other.factors)
        pairs = zip(left, right, strict=True)
        return Kronecker(tuple(jnp.matmul(a, b, precision=HIGHEST) for a, b in pairs))

    def inverse(self) -> "Kronecker":
        """The inverse, factor by factor.

        Raises:
          ValueError: a factor is not square.
        """
        check_square("Kronecker.inverse", self.factors)
        return Kronecker(tuple(jnp.linalg.inv(f) for f in self.factors))

    def solve(self, x: jax.Array) -> jax.Array:
        """The inverse times a vector (N,), or columns (..., N, R), by an LU of each factor.

        Raises:
          ValueError: a factor is not square, or x does not fit.
        """
        check_square("Kronecker.solve", self.factors)
        factors, (x,) = as_common("Kronecker.solve", self.factors, x)
        n = columns(factors)
        if x.ndim < 1 or x.shape[-min(x.ndim, 2)] != math.prod(n):
            raise ValueError(
                f"Kronecker.solve: x of {x.shape} does not fit factors of {n} columns; nearest: "
                f"({math.prod(n)},) or (..., {math.prod(n)}, R)"
            )
        vector = x.ndim == 1

        def core(factors: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
            x = x.reshape(*n, -1)
            for f in factors:
                solved = jnp.linalg.solve(f, x.reshape(len(f), -1))
                # Its own axis goes behind those of the factors to come, before the columns.
                x = jnp.moveaxis(solved.reshape(x.shape), 0, len(n) - 1)
            return x.reshape(math.prod(n), -1)

        columns_of = x[:, None] if vector else x
        y = over_stack(core, (factors, columns_of), ((2,) * len(factors), 2))
        return y[..., 0] if vector else y

    def __mul__(self, scalar: jax.typing.ArrayLike) -> "Kronecker":
        """A number times this: the first factor takes it."""
        if jnp.ndim(scalar):
            raise TypeError(f"Kronecker: {jnp.shape(scalar)} is no scalar; nearest: K @ x")
        first, *rest = self.factors
        return Kronecker((jnp.multiply(scalar, first), *rest))

    __rmul__ = __mul__

    def __neg__(self) -> "Kronecker":
        """-1 times this."""
        return -1 * self

    def __truediv__(self, scalar: jax.typing.ArrayLike) -> "Kronecker":
        """This over a number."""
        return self * (1 / scalar)

    def logdet(self) -> jax.Array:
        """Log |det|, (...,).

        Raises:
          ValueError: a factor is not square.
        """
        check_square("Kronecker.logdet", self.factors)
        size = self.shape[-1]

        def core(factors: tuple[jax.Array, ...]) -> jax.Array:
            return sum((size // len(f)) * jnp.linalg.slogdet(f)[1] for f in factors)  # pyright: ignore[reportReturnType]

        factors, _ = as_common("Kronecker.logdet", self.factors)
        return over_stack(core, (factors,), ((2,) * len(factors),))

    def diagonal(self) -> jax.Array:
        """(..., N), of square factors."""
        return kron_diag(self.factors)

    def trace(self) -> jax.Array:
        """(...,), of square factors."""
        return kron_trace(self.factors)

    def to_dense(self) -> jax.Array:
        """(..., M, N)."""
        return kron_dense(self.factors)
