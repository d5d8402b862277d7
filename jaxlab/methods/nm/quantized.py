"""N:M sparse matrices whose kept values are integers of 8 or 4 bits with a scale for each group.

A weight of 16 bits at 2:4 with 4-bit values takes 0.4375 bytes instead of 2. With blocks as long
as the groups of a scale, the group of a scale is a block, as in C. Zeng et al., "GQSA: Group
Quantization and Sparsity for Accelerating Large Language Model Inference", 2024.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram
from jaxlab.core.matrix import Example, accumulator, check_dense, matrix, static
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.oneshot import nm_one_shot
from jaxlab.methods.nm.positions import keep, pack_bits, spread, unpack_bits
from jaxlab.methods.nm.product import PackedMatrix
from jaxlab.methods.quantized import in_groups, round_to_integers


class _Integers(NamedTuple):
    bits: int
    largest: int


_INTEGERS = {"int8": _Integers(8, 127), "int4": _Integers(4, 7)}
# The dtype of the stored values says which it is.
_BITS = {"int8": 8, "uint8": 4}


def quantize(values: jax.Array, quant: str, group: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """Rounds values to integers, with one scale for each `group` of them along the axis.

    The scale is the group's largest magnitude over the largest integer (127 or 7), rounded to the
    dtype of the values before anything is divided by it. A group of zeros has scale 1. Quantising
    dequantised values again gives the same integers and scales, unless a scale is subnormal.

    Args:
      values: floating.
      quant: "int8", in [-127, 127], or "int4", in [-7, 7].
      group: values that share a scale; must divide the axis, and be even for "int4".
      axis: counted from the end.

    Returns:
      `(integers, scale)`. Integers are int8 of the values' shape; or uint8 half as long, two's
      complement nibbles, value 2 i in the low one of byte i and value 2 i + 1 in the high one.
      The scale has the values' dtype and is 1 / group as long.

    Raises:
      TypeError: the values are not floating.
      ValueError: an argument is out of range, or (outside jit) a value is not finite.

    >>> integers, scale = quantize(jnp.array([[7.0, -3.6, 0.0, 14.0]]), "int4", 2, -1)
    >>> integers.tolist(), scale.tolist()
    ([[199, 112]], [[1.0, 2.0]])
    """
    if quant not in _INTEGERS:
        raise ValueError(f"nm_quantized: quant={quant!r}; valid: {', '.join(_INTEGERS)}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"nm_quantized: a kernel must be floating, not {values.dtype}")
    integers, kept = _INTEGERS[quant], values.shape[axis]
    step = 8 // integers.bits
    if isinstance(group, bool) or not isinstance(group, int) or group < 1:
        raise ValueError(f"nm_quantized: group={group!r} must be a whole number, 1 or more")
    if kept % group or group % step:
        legal = [d for d in range(step, kept + 1, step) if kept % d == 0]
        nearest = sorted(sorted(legal, key=lambda d: abs(d - group))[:2])
        even = " and be even" if step > 1 else ""
        raise ValueError(
            f"nm_quantized: group={group} must divide the {kept} kept values along axis {axis}"
            f"{even}; nearest group: {', '.join(map(str, nearest)) or 'none'}"
        )
    if not isinstance(values, Tracer) and not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError("nm_quantized: the kept values are not all finite, so have no scale")
    return _quantize(values, integers, group, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize(
    values: jax.Array, integers: _Integers, group: int, axis: int
) -> tuple[jax.Array, jax.Array]:
    rounded, scale = round_to_integers(values, integers.largest, group, axis)
    if integers.bits == 4:
        rounded = pack_bits(rounded.astype(jnp.uint8) & jnp.uint8(15), 4, axis)
    return rounded, scale


def dequantize(integers: jax.Array, scale: jax.Array, axis: int) -> jax.Array:
    """Undoes `quantize`: `integer * scale` in float32 or better, cast once to the scale's dtype.

    Args:
      integers: int8, or uint8 that holds two 4-bit numbers.
      scale: floating; one for each group along the axis.
      axis: counted from the end.

    >>> dequantize(jnp.array([[199, 112]], jnp.uint8), jnp.array([[1.0, 2.0]]), -1).tolist()
    [[7.0, -4.0, 0.0, 14.0]]
    """
    if _BITS[integers.dtype.name] == 4:
        nibbles = unpack_bits(integers, 4, axis, 2 * integers.shape[axis])
        # Flipping the sign bit and taking it off again carries it into the upper half.
        integers = (nibbles ^ jnp.uint8(8)).astype(jnp.int8) - jnp.int8(8)
    wide = accumulator(scale.dtype)
    grouped = in_groups(integers.astype(wide), integers.shape[axis] // scale.shape[axis], axis)
    product = grouped * jnp.expand_dims(scale.astype(wide), axis)
    return product.reshape(integers.shape).astype(scale.dtype)


@matrix("nm_quantized")
class NMQuantized(PackedMatrix):
    """`to_dense()` puts `values * scale` at the positions of `index`, with zeros elsewhere.

    Along the axis, of length L in the dense matrix, K = L n / m entries are stored: values: int8,
    K long, or uint8 with two 4-bit numbers in a byte; scale: in the dtype of the dense matrix, one
    for each group of consecutive kept values; index: as in `nm_packed`. The integers are fixed;
    the scales are floating and are trained unless a freeze pattern names them.
    """

    values: jax.Array
    scale: jax.Array
    index: jax.Array
    n: int = static()
    m: int = static()
    axis: int = static()
    block: int = static(default=1)

    axes = {"values": ("in", "out"), "scale": ("in", "out"), "index": ("in", "out")}
    EXAMPLE = Example(
        shape=(32, 12),
        hyper={"n": 2, "m": 4, "quant": "int4", "group": 8},
        bad=(
            {"n": 0, "m": 4},
            {"n": 2, "m": 4, "group": 7},
            {"n": 2, "m": 4, "group": 1},
            {"n": 2, "m": 4, "quant": "int3"},
            {"n": 2, "m": 4, "axis": 0},
        ),
    )
    CITE = """@misc{zeng2024gqsa,
  title={{GQSA}: Group Quantization and Sparsity for Accelerating Large Language Model Inference},
  author={Zeng, Chao and Liu, Songwei and Yang, Shu and Chen, Fangmin and Mei, Xing and Fu, Lean},
  year={2024}, eprint={2412.17560}, archivePrefix={arXiv}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        n: int,
        m: int,
        axis: int = -2,
        block: int = 1,
        quant: Literal["int8", "int4"] = "int4",
        group: int = 16,
        scores: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude",
        gram: Gram | None = None,
        key: jax.Array | None = None,
    ) -> "NMQuantized":
        """One-shot pruning and symmetric rounding to the nearest integer.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept blocks of every group.
          m: blocks of a group; `m * block` must divide the axis.
          axis: -2 groups along the input, -1 along the output.
          block: consecutive entries that are kept or pruned together.
          quant: "int8" or "int4".
          group: consecutive kept values that share a scale.
          scores: what is kept, as `NMPacked.from_dense` has it.
          gram: statistics of the kernel's inputs, likewise.
          key: unused.

        Raises:
          ValueError: an argument is out of range, or (outside jit) `w` is not finite.

        >>> NMQuantized.from_dense(jnp.ones((32, 4)), n=2, m=4).nbytes  # of 512 dense
        64
        """
        check_dense("nm_quantized", w)
        pattern = NMPattern(n, m, axis, block)
        pattern.check_matrix_axis()
        pruned, mask = nm_one_shot(w, pattern, scores=scores, gram=gram)
        values, index = keep(pruned, mask, pattern)
        return cls(*quantize(values, quant, group, axis), index, n, m, axis, block)

    @property
    def kept(self) -> int:
        """Entries that are kept along the axis."""
        return self.values.shape[self.axis] * 8 // _BITS[self.values.dtype.name]

    @property
    def group(self) -> int:
        """Kept values that share a scale."""
        return self.kept // self.scale.shape[self.axis]

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole groups, whole bytes of positions and whole groups of a scale."""
        rows = max(super().tile)
        scaled = self.group * self.m // math.gcd(self.group * self.m, self.n)
        return self.pattern.tile(math.lcm(rows, scaled))

    def to_dense(self) -> jax.Array:
        """The dense array, each value rounded once."""
        return spread(dequantize(self.values, self.scale, self.axis), self.index, self.pattern)
