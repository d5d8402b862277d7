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
    as_grid,
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
        """Rows (..., M) times this."""
        return kron_matvec(self.T.factors, other)

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
        """The inverse times x, (..., N) or (..., n_1, ..., n_D), by an LU of each factor.

        Raises:
          ValueError: a factor is not square.
        """
        check_square("Kronecker.solve", self.factors)
        factors, (x,) = as_common("Kronecker.solve", self.factors, x)
        grid, flat = as_grid("Kronecker.solve", x, columns(factors))

        def core(factors: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
            for f in factors:
                solved = jnp.linalg.solve(f, x.reshape(len(f), -1))
                x = jnp.moveaxis(solved.reshape(x.shape), 0, -1)
            return x

        y = over_stack(core, (factors, grid), ((2,) * len(factors), len(factors)))
        return as_given(y, len(factors), flat)

    def logdet(self) -> jax.Array:
        """Log |det|, (...,).

        Raises:
          ValueError: a factor is not square.
        """
        check_square("Kronecker.logdet", self.factors)
        size = self.shape[-1]

        def core(factors: tuple[jax.Array, ...]) -> jax.Array:
            return sum((size // len(f)) * jnp.linalg.slogdet(f)[1] for f in factors)  # pyright: ignore[reportReturnType]

        factors = tuple(self.factors)
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
