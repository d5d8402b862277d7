"""Weights as signs, or as -1, 0 and 1, with a scale for each column: 1 or 2 bits a weight.

A trained layer does not survive this as it is: it wants training afterwards, or a layer that was
trained for it. What it gives at once is the smallest stored form, and on a GPU where the kernel was
measured to win, a product that reads the bits as they are (`jaxlab.kernels.binary_matmul`).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Example, accumulator, check_weights, matrix, static
from jaxlab.core.registry import suggest
from jaxlab.kernels.binary_matmul import binary_matmul
from jaxlab.kernels.packing import LAYOUT_VERSION, pack
from jaxlab.methods.planar import PlanarMatrix, packing_width


def to_signs(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest `q * scale` with q of -1 and +1, by columns, in the sum of squares.

    Rastegari et al. 2016, equation 6: q is the sign (+1 for 0) and the scale the mean magnitude.

    Args:
      w: floating, (..., d_in, d_out).

    Returns:
      `(q, scale)`: int8 of w's shape; and in w's dtype, (..., 1, d_out).

    >>> q, scale = to_signs(jnp.array([[1.0], [-2.0], [0.0]]))
    >>> q.T.tolist(), scale.tolist()
    ([[1, -1, 1]], [[1.0]])
    """
    size = jnp.abs(w.astype(accumulator(w.dtype)))
    scale = jnp.mean(size, axis=-2, keepdims=True).astype(w.dtype)
    return jnp.where(w < 0, -1, 1).astype(jnp.int8), scale


def to_ternary(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest `q * scale` with q of -1, 0 and +1, by columns, in the sum of squares.

    Of the k largest magnitudes of a column, with sum S, the best scale is S / k, which leaves
    |w|^2 - S^2 / k: the best k is found among all (Li and Liu 2016, equation 5, there approximated
    by a threshold).

    Args:
      w: floating, (..., d_in, d_out).

    Returns:
      `(q, scale)`: int8 of w's shape; and in w's dtype, (..., 1, d_out).

    >>> q, scale = to_ternary(jnp.array([[1.0], [-3.0], [0.1]]))
    >>> q.T.tolist(), scale.tolist()
    ([[0, -1, 0]], [[3.0]])
    """
    size = jnp.abs(w.astype(accumulator(w.dtype)))
    order = jnp.flip(jnp.sort(size, axis=-2), axis=-2)
    total = jnp.cumsum(order, axis=-2)
    count = jax.lax.broadcasted_iota(total.dtype, total.shape, total.ndim - 2) + 1
    # The root of S^2 / k, because a square is beyond float32 from magnitudes of 1e19 on.
    best = jnp.argmax(total / jnp.sqrt(count), axis=-2, keepdims=True)
    kept = size >= jnp.take_along_axis(order, best, axis=-2)
    scale = jnp.mean(size, axis=-2, keepdims=True, where=kept).astype(w.dtype)
    return jnp.where(kept, jnp.sign(w), 0).astype(jnp.int8), scale


# By kind of packed numbers, the nearest of them.
ROUND = {"binary": to_signs, "ternary": to_ternary}


@functools.partial(jax.jit, static_argnums=1)
def _rounded(w: jax.Array, quant: str) -> tuple[jax.Array, jax.Array]:
    q, scale = ROUND[quant](w)
    words = pack(jnp.swapaxes(q, -1, -2), quant, width=packing_width(w.shape[-2], quant))
    return words.words, scale


@matrix("signs")
class Signs(PlanarMatrix):
    """`to_dense()` is the signs (or -1, 0 and +1) of `words` times `scale`, one for each column.

    words: as `PlanarMatrix` has them; scale: in the dtype of the dense matrix, (..., 1, d_out).
    """

    words: jax.Array
    scale: jax.Array
    d_in: int = static()
    quant: str = static()
    width: int = static()
    layout: int = static()

    EXAMPLE = Example(shape=(32, 12), hyper={"quant": "ternary"}, bad=({"quant": "int4"},))
    CITE = """@inproceedings{rastegari2016xnornet,
  title={{XNOR-Net}: {ImageNet} Classification Using Binary Convolutional Neural Networks},
  author={Rastegari, Mohammad and Ordonez, Vicente and Redmon, Joseph and Farhadi, Ali},
  booktitle={European Conference on Computer Vision}, year={2016}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        quant: Literal["binary", "ternary"] = "binary",
        key: jax.Array | None = None,
    ) -> "Signs":
        """The nearest matrix of the kind in the sum of squares.

        Args:
          w: (..., d_in, d_out), floating.
          quant: "binary", 1 bit a weight, or "ternary", 2.
          key: unused.

        Raises:
          TypeError: `w` is not floating.
          ValueError: an argument is out of range, `w` is empty, or (outside jit) it is not finite.

        >>> Signs.from_dense(jnp.ones((256, 4), jnp.bfloat16)).nbytes  # of 2048 dense
        136
        """
        check_weights("signs", w)
        if quant not in ROUND:
            raise ValueError(f"signs: quant={quant!r}; {suggest(str(quant), ROUND)}")
        words, scale = _rounded(w, quant)
        d_in = w.shape[-2]
        return cls(words, scale, d_in, quant, packing_width(d_in, quant), LAYOUT_VERSION)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`."""
        return binary_matmul(x, self.packed, self.scale[0])
