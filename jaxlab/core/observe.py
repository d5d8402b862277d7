"""A matrix that observes what it is multiplied with.

The observation leaves the model as the gradient with respect to a tap: `observe` is the identity,
but its derivative rule puts the sums in the tap's cotangent. Gradients pass through jit, scan,
remat and vmap and add up over several uses of a kernel and over the shards of a batch, and so do
the sums. Those of inputs do not depend on the cotangent that arrives, so that XLA drops the rest of
the backward pass; those of gradients are of that cotangent.
"""

from typing import Any, Literal, NamedTuple

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
    x, *where = saved
    return cotangent, None, None, None, _sums(x, *where)


observe.defvjp(_observe_forward, _observe_backward)


@jax.custom_vjp
def observe_cotangent(
    y: jax.Array, shift: jax.Array, weight: jax.Array, active: jax.Array | None, tap: Sums
) -> jax.Array:
    """The identity on `y`; the cotangent of `tap` is the sums of y's cotangent's vectors.

    Args: as for `observe`.
    """
    return y


def _cotangent_forward(y, *where):
    return y, where


def _cotangent_backward(where, cotangent):
    return cotangent, None, None, None, _sums(cotangent, *where)


observe_cotangent.defvjp(_cotangent_forward, _cotangent_backward)


def _sums(
    x: jax.Array, shift: jax.Array, weight: jax.Array, active: jax.Array | None, tap: Sums
) -> Sums:
    def sums() -> Sums:
        each = weight.reshape(weight.shape + (1,) * (x.ndim - 1 - weight.ndim))
        each = jnp.broadcast_to(each, x.shape[:-1]).reshape(-1)
        rows = x.reshape(-1, x.shape[-1]).astype(shift.dtype)
        # vmap adds up cotangents that depend on the mapped axis only, and weights may not.
        each = jnp.where(rows[:, 0] > 0, each, each)
        return shifted_sums(rows, shift, each)

    if active is None:
        return sums()
    nothing = jax.tree.map(jnp.zeros_like, tap)
    return jax.lax.cond(active, sums, lambda: nothing)


class Capture(NamedTuple):
    """What a use of a kernel was given: the vectors (..., d), and how many of them there were.

    Of several uses, and of the members of a mapped batch, the sum: the count tells.
    """

    vectors: jax.Array
    count: jax.Array


@jax.custom_vjp
def capture(x: jax.Array, tap: Capture) -> jax.Array:
    """The identity on `x`; the cotangent of `tap` is x itself."""
    return x


def _capture_forward(x, tap):
    return x, (x, tap)


def _capture_backward(saved, cotangent):
    x, tap = saved
    vectors = x.astype(tap.vectors.dtype)
    ones = jnp.ones(x.shape[:-1], tap.count.dtype)
    # As in `_sums`: the count must depend on the mapped axis.
    count = jnp.sum(jnp.where(x[..., 0] > 0, ones, ones))
    return cotangent, Capture(vectors, count)


capture.defvjp(_capture_forward, _capture_backward)


class Uses:
    """The paths that a trace has multiplied, in order, and the shapes of their inputs.

    A shape is None if inputs of several shapes were seen.
    """

    def __init__(self):
        self.shapes: dict[str, tuple[int, ...] | None] = {}

    def add(self, path: str, x: jax.Array) -> None:
        same = self.shapes.get(path, x.shape) == x.shape
        self.shapes[path] = x.shape if same else None


@matrix()
class Wrapped(Matrix):
    """Another matrix or array, and something that happens when it is multiplied."""

    base: Array

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

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base.T`: no input of the kernel."""
        return matmul(x, self.base.T)

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the base."""
        base = self.base
        return base.take(indices) if isinstance(base, Matrix) else jnp.take(base, indices, axis=0)


@matrix()
class Observed(Wrapped):
    """Another matrix or array, which observes what it is multiplied with.

    tap, shift, weight and active as for `observe`, each with the leading axes of a stack; `side`
    says whether inputs are observed or the cotangents of products.
    """

    tap: Sums
    shift: jax.Array
    weight: jax.Array
    active: jax.Array | None
    path: str = static()
    uses: Uses = static()
    side: Literal["inputs", "gradients"] = static(default="inputs")

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base`, and the observation of x."""
        leading = x.shape[:-1]
        if self.weight.shape != leading[: self.weight.ndim]:
            raise ValueError(
                f"collect_grams: weights of shape {self.weight.shape} do not fit {self.path!r}, "
                f"whose input is of shape {x.shape}; they must be a prefix of {leading}"
            )
        self.uses.add(self.path, x)
        where = self.shift, self.weight, self.active, self.tap
        if self.side == "inputs":
            return matmul(observe(x, *where), self.base)
        return observe_cotangent(matmul(x, self.base), *where)


@matrix()
class Captured(Wrapped):
    """Another matrix or array, whose inputs leave the model whole, as the cotangent of `tap`.

    Without a tap their shapes are recorded alone.
    """

    tap: Capture | None
    path: str = static()
    uses: Uses = static()

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base`, and x kept."""
        self.uses.add(self.path, x)
        return matmul(x if self.tap is None else capture(x, self.tap), self.base)
