"""Taps: the means of a layer's inputs and of the gradients at its outputs, as gradients.

A tap is an argument that no value depends on. The derivative rule of `tap` makes the sums of the
rows its cotangent, so that jit, scan, remat, vmap, weight sharing, accumulation over parts of a
batch and sharding treat the sums as they treat gradients.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.convolution import Convolution
from jaxlab.core.matrix import Array, Matrix, matmul, matrix
from jaxlab.core.observe import Wrapped
from jaxlab.core.varying import varied, varying


class Tap(NamedTuple):
    """The sums of a layer's rows, in float32.

    Attributes:
      a: (..., n + 1), of the inputs, and how many there were.
      g: (..., o), of the loss's gradients at the outputs.
    """

    a: jax.Array
    g: jax.Array


@jax.custom_vjp
def tap(
    x: jax.Array, y: jax.Array, ta: jax.Array, tg: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """The identity on `y`; the cotangents of `ta` and `tg` are sums over all leading axes.

    For a loss that is the mean over rows, the sum of the gradients of the loss is the mean of the
    gradients of its terms; of a layer with a bias it is the bias's gradient. Inside `shard_map`
    that checks it, sums are of all devices that the tap is the same on.

    Args:
      x: (..., n), the layer's inputs.
      y: (..., o), its outputs.
      ta: (n + 1,), whose cotangent is the sum of x, and the number of rows.
      tg: (o,), whose cotangent is the sum of y's cotangent.
      weight: of the rows of x, broadcast from their first axes; 0 leaves one out. None is 1.

    >>> x, w = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 1))
    >>> loss = lambda ta, tg: jnp.mean(tap(x, x @ w, ta, tg))
    >>> [g.tolist() for g in jax.grad(loss, (0, 1))(jnp.zeros(3), jnp.zeros(1))]
    [[4.0, 6.0, 2.0], [1.0]]
    """
    return y


def _forward(x, y, ta, tg, weight):
    return y, (x, ta, tg, weight)


def _backward(saved, dy):
    x, ta, tg, weight = saved
    ones = jnp.ones(x.shape[:-1], ta.dtype)
    if weight is not None:
        each = weight.astype(ta.dtype)
        ones = jnp.broadcast_to(
            each.reshape(each.shape + (1,) * (x.ndim - 1 - each.ndim)), x.shape[:-1]
        )
        x = x.astype(ta.dtype) * ones[..., None]
    # vmap adds up cotangents that depend on the mapped axis only, and a count alone would not.
    rows = jnp.sum(jnp.where(jnp.sum(x[..., :1], axis=-1) > 0, ones, ones))
    sums, slopes = _row_sum(x, ta.dtype), _row_sum(dy, tg.dtype)
    return None, dy, _shared_as(jnp.append(sums, rows), ta), _shared_as(slopes, tg), None


tap.defvjp(_forward, _backward)


def _row_sum(x: jax.Array, dtype: Any) -> jax.Array:
    """The sum over all axes but the last.

    In two steps, which XLA would merge without a barrier: so a GPU reads a batch of sequences
    faster than by one sum over both axes.
    """
    inner = jnp.sum(x, axis=tuple(range(1, x.ndim - 1)), dtype=dtype)
    if x.ndim < 3:
        return jnp.sum(inner, axis=tuple(range(x.ndim - 1)))
    return jnp.sum(jax.lax.optimization_barrier(inner), axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap_windows(
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
    one: jax.Array,
    ta: jax.Array,
    tg: jax.Array,
) -> jax.Array:
    """As `tap`, where the rows are the windows of a convolution, which is not written as rows.

    Args:
      convolve: (x, kernel) -> outputs, channels last.
      x: (B, ..., channels), the convolution's input.
      y: (..., o), its outputs.
      one: zeros, a kernel of one output and n entries.
      ta: (n + 1,), in whose cotangent windows have the order of the kernel's entries.
      tg: (o,).
    """
    return y


def _windows_forward(convolve, x, y, one, ta, tg):
    return y, (x, one, ta, tg)


def _windows_backward(convolve, saved, dy):
    x, one, ta, tg = saved
    # All is linear in x, and the sum of a convolution's windows is the gradient of the sum of its
    # outputs: no window is written down, and only the sum of the images is convolved.
    image = jnp.sum(x, axis=0, keepdims=True, dtype=ta.dtype)
    # Otherwise the gradient is that of all devices already.
    own = varied(one.astype(ta.dtype), varying(image))
    with jax.default_matmul_precision("highest"):
        outputs, pull = jax.vjp(lambda w: convolve(image, w), own)
        (windows,) = pull(jnp.ones_like(outputs))
    each = jnp.full_like(outputs, x.shape[0])
    rows = jnp.sum(jnp.where(outputs > 0, each, each))  # as in `_backward`
    slopes = jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=tg.dtype)
    sums = jnp.append(windows.reshape(-1), rows)
    return None, dy, None, _shared_as(sums, ta), _shared_as(slopes, tg)


tap_windows.defvjp(_windows_forward, _windows_backward)


def _shared_as(sums: jax.Array, tap: jax.Array) -> jax.Array:
    """The sums of all devices of a `shard_map` that checks which of its arrays they share.

    A tap that they share has one cotangent, as a parameter has one gradient. Where nothing is
    checked, no array says what it varies over, and the sums are those of a device.
    """
    over = tuple(sorted(varying(sums) - varying(tap)))
    return varied(jax.lax.psum(sums, over) if over else sums, varying(tap))


def tapped_dense(x: jax.Array, w: Array, b: jax.Array | None, t: Tap) -> jax.Array:
    """`x @ w + b`, tapped.

    Args:
      x: (..., n).
      w: (n, o), an array or a matrix.
      b: (o,), or None.
      t: of n + 1 and o.

    Returns:
      (..., o).

    >>> x, w, zero = jnp.array([[1.0, 2.0]]), jnp.ones((2, 1)), Tap(jnp.zeros(3), jnp.zeros(1))
    >>> jax.grad(lambda t: jnp.sum(tapped_dense(x, w, None, t)))(zero).a.tolist()
    [1.0, 2.0, 1.0]
    """
    return tap(x, _plus(matmul(x, w), b), *t)


def tapped_conv(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    t: Tap,
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """A convolution of any number of dimensions, channels last, tapped.

    Args:
      x: (B, *space, channels).
      w: (*window, channels, o).
      b: (o,), or None.
      t: of n + 1 and o, where n is the number of entries of a window, in the order of the kernel.
      strides: by dimension; None is 1.
      padding: "SAME", "VALID", or pairs by dimension.

    Returns:
      (B, *places, o).

    >>> x, w = jnp.arange(3.0).reshape(1, 3, 1), jnp.ones((2, 1, 1))
    >>> loss = lambda t: jnp.sum(tapped_conv(x, w, None, t, padding="VALID"))
    >>> jax.grad(loss)(Tap(jnp.zeros(3), jnp.zeros(1))).a.tolist()  # windows (0, 1) and (1, 2)
    [1.0, 3.0, 2.0]
    """
    ndim = x.ndim - 2
    ends = (0, ndim + 1, *range(1, ndim + 1))
    order = jax.lax.ConvDimensionNumbers(ends, (ndim + 1, ndim, *range(ndim)), ends)

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, w, strides or (1,) * ndim, padding, dimension_numbers=order
        )

    one = jnp.zeros((*w.shape[:-1], 1), x.dtype)
    return tap_windows(convolve, x, _plus(convolve(x, w), b), one, *t)


def _plus(y: jax.Array, b: jax.Array | None) -> jax.Array:
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + b.shape)


@matrix()
class Tapped(Wrapped):
    """Another matrix or array, whose rows' sums leave the model as the gradient of `tap`.

    weight: of the rows, of a shape that the inputs' begins with; None is 1.
    """

    tap: Tap
    weight: jax.Array | None

    def __rmatmul__(self, x: Any) -> jax.Array:
        """`x @ base`, tapped; an array's has the dtype that it would have without a tap."""
        if not isinstance(self.base, Matrix):
            x = jnp.asarray(x)
            x = x.astype(jnp.result_type(x, self.base))
        return super().__rmatmul__(x)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base` in x's dtype, tapped."""
        weight = self.weight
        if weight is not None and weight.shape != x.shape[:-1][: weight.ndim]:
            raise ValueError(
                f"mkor: a weight of rows of {weight.shape} does not fit a layer's input, {x.shape}"
            )
        return tap(x, matmul(x, self.base), *self.tap, weight)

    def convolve(self, x: jax.Array, how: Convolution) -> jax.Array:
        """The base's convolution, tapped; as rows where these have weights, or the base's do."""
        base = self.base
        if self.weight is not None or (isinstance(base, Matrix) and not base.dense_product):
            return super().convolve(x, how)
        one = jnp.zeros((self.shape[-2], 1), x.dtype)
        return tap_windows(how.dense, x, how.dense(x, self.to_dense()), one, *self.tap)
