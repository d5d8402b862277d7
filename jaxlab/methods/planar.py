"""What matrices of packed integers with scales share: how they are stored, and what they mean."""

import math

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Matrix
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.quantized_matmul import dequantize

_MOST_WIDTH, _WIDTH_STEP = 64, 16


def packing_width(d_in: int, kind: str) -> int:
    """Words of a block of the packing: 64, or as many as a shorter axis fills.

    >>> packing_width(4096, "int4"), packing_width(64, "int4")
    (64, 16)
    """
    words = -(-d_in // FORMATS[kind].fields)
    return min(_MOST_WIDTH, -(-words // _WIDTH_STEP) * _WIDTH_STEP)


class PlanarMatrix(Matrix):
    """`to_dense()` is the integers of `words` times `scale`.

    words: uint16, (..., d_out, words), integers along the input, planar
    (`jaxlab.kernels.packing`) in blocks of `width` words, in this version of the `layout`; scale:
    in the dtype of the dense matrix, (..., groups, d_out), for consecutive inputs. The integers are
    fixed; the scales are floating and are trained unless a freeze pattern names them.
    """

    words: jax.Array
    scale: jax.Array
    d_in: int
    quant: str
    width: int
    layout: int

    axes = {"words": ("out", "in"), "scale": ("in", "out")}
    dense_product = True

    @property
    def packed(self) -> Planar:
        """The integers, (..., d_out, d_in)."""
        return Planar(self.words, self.quant, self.d_in, self.width, self.layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.words.shape[:-2], self.d_in, self.words.shape[-2])

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole blocks of the packing and whole groups of a scale."""
        block = FORMATS[self.quant].fields * self.width
        if self.d_in % block:
            return self.d_in, 1
        return math.lcm(block, self.d_in // self.scale.shape[-2]), 1

    def to_dense(self) -> jax.Array:
        """The dense array, each value rounded once."""
        return jnp.swapaxes(dequantize(self.packed, self.scale), -1, -2).astype(self.dtype)
