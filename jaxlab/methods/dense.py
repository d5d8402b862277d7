"""The dense matrix itself: the baseline among the methods, and a rule's way to change nothing."""

from typing import Self

import jax

from jaxlab.core.matrix import Example, Matrix, check_dense, matrix


@matrix("dense")
class Dense(Matrix):
    """`to_dense() = array`, of shape (..., d_in, d_out)."""

    array: jax.Array

    axes = {"array": ("in", "out")}
    is_array = True
    dense_product = True
    EXAMPLE = Example(shape=(8, 12), hyper={})

    @classmethod
    def from_dense(cls, w: jax.Array, *, key: jax.Array | None = None) -> Self:
        """Wraps `w`: (..., d_in, d_out), floating. `key` is unused.

        >>> Dense.from_dense(jax.numpy.ones((2, 3))).shape
        (2, 3)
        """
        check_dense("dense", w)
        return cls(w)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return self.array.shape

    def to_dense(self) -> jax.Array:
        """The array."""
        return self.array
