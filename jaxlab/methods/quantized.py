"""Weights as integers of 8 or 4 bits, with a scale for each group: only the weights are rounded.

A weight of 16 bits takes a byte, or half a byte and a 128th of two. On a GPU where the kernel was
measured to win, the product reads the integers as they are (`jaxlab.kernels.quantized_matmul`).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Example, accumulator, check_weights, matrix, static
from jaxlab.core.registry import suggest
from jaxlab.kernels.packing import LAYOUT_VERSION, pack
from jaxlab.kernels.quantized_matmul import quantized_matmul
from jaxlab.methods.planar import PlanarMatrix, packing_width

# By kind, the largest integer: symmetric, so that the smallest is its negative.
LARGEST = {"int8": 127, "int4": 7}


def round_to_integers(
    values: jax.Array, largest: int, group: int, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Rounds to the nearest integers, with one scale for each `group` of values along an axis.

    The scale is the group's largest magnitude over `largest`, rounded to the dtype of the values
    before anything is divided by it; that of a group of zeros is 1. Rounding what comes of it again
    gives the same integers and scales, unless a scale is subnormal.

    Args:
      values: floating.
      largest: the largest integer, at most 127.
      group: must divide the axis.
      axis: counted from the end.

    Returns:
      `(integers, scale)`: int8 of the values' shape; and in their dtype, 1 / group as long.

    >>> integers, scale = round_to_integers(jnp.array([7.0, -3.6, 0.0, 14.0]), 7, 2, -1)
    >>> integers.tolist(), scale.tolist()
    ([7, -4, 0, 7], [1.0, 2.0])
    """
    wide = in_groups(values.astype(accumulator(values.dtype)), group, axis)
    scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True)
    # Made from the data, so that under vmap too it is broadcast before the barrier and not after.
    most = jnp.where(jnp.isfinite(scale), jnp.full_like(scale, largest), scale)
    scale = _divide(scale, most).astype(values.dtype)
    scale = jnp.where(scale == 0, jnp.ones_like(scale), scale)
    rounded = jnp.round(_divide(wide, scale.astype(wide.dtype)))
    rounded = jnp.clip(rounded, -largest, largest).astype(jnp.int8)
    return rounded.reshape(values.shape), jnp.squeeze(scale, axis)


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    # XLA multiplies by the reciprocal of what it sees to be broadcast, and so rounds twice.
    return x / jax.lax.optimization_barrier(jnp.broadcast_to(y, x.shape))


def in_groups(x: jax.Array, group: int, axis: int) -> jax.Array:
    """The axis as (groups, group), members at `axis`, which is counted from the end."""
    at = x.ndim + axis
    return x.reshape((*x.shape[:at], x.shape[at] // group, group, *x.shape[at + 1 :]))


def check_rounding(owner: str, w: jax.Array, quant: str, group: int | None) -> int:
    """How many inputs share a scale, of a kernel that can be rounded by columns.

    Args:
      owner: the method, for messages.
      w: (..., d_in, d_out), as `check_dense` has it.
      quant: a key of `LARGEST`.
      group: consecutive inputs that share a scale; None: all of a column.

    Raises:
      ValueError: an argument is out of range.

    >>> check_rounding("quantized", jnp.ones((64, 2)), "int4", None)
    64
    """
    if quant not in LARGEST:
        raise ValueError(f"{owner}: quant={quant!r}; {suggest(str(quant), LARGEST)}")
    d_in = w.shape[-2]
    group = d_in if group is None else group
    whole = isinstance(group, int) and not isinstance(group, bool)
    if not whole or group < 1 or d_in % group:
        legal = [d for d in range(1, d_in + 1) if d_in % d == 0]
        nearest = min(legal, key=lambda d: abs(d - group)) if whole else d_in
        raise ValueError(
            f"{owner}: group={group!r} must be a whole number that divides d_in={d_in}; "
            f"nearest: {nearest}"
        )
    return group


@functools.partial(jax.jit, static_argnums=(1, 2))
def _rounded(w: jax.Array, quant: str, group: int) -> tuple[jax.Array, jax.Array]:
    integers, scale = round_to_integers(w, LARGEST[quant], group, -2)
    words = pack(jnp.swapaxes(integers, -1, -2), quant, width=packing_width(w.shape[-2], quant))
    return words.words, scale


@matrix("quantized")
class Quantized(PlanarMatrix):
    """`to_dense()` is the integers of `words` times `scale`, one for each group of inputs.

    words, scale: as `PlanarMatrix` has them.
    """

    words: jax.Array
    scale: jax.Array
    d_in: int = static()
    quant: str = static()
    width: int = static()
    layout: int = static()

    EXAMPLE = Example(
        shape=(32, 12),
        hyper={"quant": "int4", "group": 8},
        bad=({"quant": "int3"}, {"group": 7}, {"group": -32}, {"group": 2.0}),
    )
    CITE = """@article{dettmers2022llmint8,
  title={{LLM.int8()}: 8-bit Matrix Multiplication for Transformers at Scale},
  author={Dettmers, Tim and Lewis, Mike and Belkada, Younes and Zettlemoyer, Luke},
  year={2022}, journal={arXiv:2208.07339}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        quant: Literal["int8", "int4"] = "int4",
        group: int | None = 128,
        key: jax.Array | None = None,
    ) -> "Quantized":
        """Symmetric rounding to the nearest integer.

        Args:
          w: (..., d_in, d_out), floating.
          quant: "int8" or "int4".
          group: consecutive inputs that share a scale; None: all of a column.
          key: unused.

        Raises:
          TypeError: `w` is not floating.
          ValueError: an argument is out of range, `w` is empty, or (outside jit) it is not finite.

        >>> Quantized.from_dense(jnp.ones((256, 4), jnp.bfloat16)).nbytes  # of 2048 dense
        528
        """
        check_weights("quantized", w)
        size = check_rounding("quantized", w, quant, group)
        words, scale = _rounded(w, quant, size)
        d_in = w.shape[-2]
        return cls(words, scale, d_in, quant, packing_width(d_in, quant), LAYOUT_VERSION)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`."""
        return quantized_matmul(x, self.packed, self.scale)
