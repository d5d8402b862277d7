"""A matrix that observes what it is multiplied with.

The observation leaves the model as the gradient with respect to a tap: `observe` is the identity,
but its derivative rule puts the sums in the tap's cotangent. Gradients pass through jit, scan,
remat and vmap and add up over several uses of a kernel and over the shards of a batch, and so do
the sums. They do not depend on the cotangent that arrives, so that XLA drops the rest of the
backward pass.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.gram import Sums, shifted_sums
from jaxlab.core.matrix import Array, Matrix, matmul, matrix, static, to_dense


@jax.custom_vjp
def observe(
    x: jax.Array, shift: jax.Array, weight: jax.Array, active: jax.Array | None, tap: Sums
) -> jax.Array:
    """The identity on `x`; the cotangent of `tap` is the sums of x's vectors about `shift`.

    Args:
      x: (..., d).
      shift: (d,), near the mean, in the dtype of the sums.
      weight: not negative, of the shape of a prefix of x's leading axes.
      active: whether there is anything to sum; None is always.
      tap: of any values.
    """
    return x


def _observe_forward(x, shift, weight, active, tap):
    return x, (x, shift, weight, active, tap)


def _observe_backward(saved, cotangent):
    x, shift, weight, active, tap = saved

    def sums() -> Sums:
        each = weight.reshape(weight.shape + (1,) * (x.ndim - 1 - weight.ndim))
        each = jnp.broadcast_to(each, x.shape[:-1]).reshape(-1)
        rows = x.reshape(-1, x.shape[-1]).astype(shift.dtype)
        # vmap adds up cotangents that depend on the mapped axis only, and weights may not.
        each = jnp.where(rows[:, 0] > 0, each, each)
        return shifted_sums(rows, shift, each)

    if active is None:
        return cotangent, None, None, None, sums()
    nothing = jax.tree.map(jnp.zeros_like, tap)
    return cotangent, None, None, None, jax.lax.cond(active, sums, lambda: nothing)


observe.defvjp(_observe_forward, _observe_backward)


class Uses:
    """The paths that a trace has multiplied, in order."""

    def __init__(self):
        self.paths: list[str] = []

    def add(self, path: str) -> None:
        if path not in self.paths:
            self.paths.append(path)


@matrix()
class Observed(Matrix):
    """Another matrix or array, which observes what it is multiplied with.

    tap, shift, weight and active as for `observe`, each with the leading axes of a stack.
    """

    base: Array
    tap: Sums
    shift: jax.Array
    weight: jax.Array
    active: jax.Array | None
    path: str = static()
    uses: Uses = static()

    factors = ("base",)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out) of the base."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The base's."""
        return self.base.dtype

    def to_dense(self) -> jax.Array:
        """The base's dense array."""
        return to_dense(self.base)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base`, and the observation of x."""
        leading = x.shape[:-1]
        if self.weight.shape != leading[: self.weight.ndim]:
            raise ValueError(
                f"collect_grams: weights of shape {self.weight.shape} do not fit {self.path!r}, "
                f"whose input is of shape {x.shape}; they must be a prefix of {leading}"
            )
        self.uses.add(self.path)
        return matmul(observe(x, self.shift, self.weight, self.active, self.tap), self.base)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base.T`: no input of the kernel."""
        return matmul(x, self.base.T)

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the base."""
        base = self.base
        return base.take(indices) if isinstance(base, Matrix) else jnp.take(base, indices, axis=0)
