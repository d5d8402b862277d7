"""N:M sparse matrices stored as the kernels of `jaxlab.kernels.nm_matmul` read them.

Kept values, exact or as integers of 8 or 4 bits, and codes of where they stand, along the input and
in the order of `jaxlab.kernels.packing_nm`. On a GPU where the kernel was measured to win, the
product reads both as they are; elsewhere XLA makes the dense array for the time of the product.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram
from jaxlab.core.matrix import Example, check_dense, matrix, static
from jaxlab.kernels import nm_matmul as kernels
from jaxlab.kernels.layout_nm import PLANAR_WIDTH, layout_of, place_bits
from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, WORD, Planar
from jaxlab.kernels.packing_nm import PackedNM, pack_nm
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.oneshot import nm_one_shot
from jaxlab.methods.nm.packed import check_mask
from jaxlab.methods.nm.product import PatternMatrix
from jaxlab.methods.quantized import LARGEST, check_rounding, round_to_integers


def check_planes(pattern: NMPattern) -> None:
    """Raises a ValueError with the nearest legal value unless planes can hold a pattern.

    >>> check_planes(NMPattern(4, 8)), check_planes(NMPattern(2, 4))
    (None, None)
    """
    if pattern.axis != -2:
        raise ValueError(
            f"nm_planes: axis={pattern.axis}: planes run along the input; nearest: axis=-2"
        )
    bits = place_bits(pattern.m)
    if pattern.n * bits > WORD:
        raise ValueError(
            f"nm_planes: n={pattern.n} places of m={pattern.m} take {pattern.n * bits} bits, more "
            f"than {WORD}; nearest: n={WORD // bits}, or nm_packed"
        )


def nm_pack_planes(
    w: jax.Array,
    mask: jax.Array,
    pattern: NMPattern,
    *,
    quant: Literal["int8", "int4"] | None = None,
    group: int | None = None,
) -> "NMPlanes":
    """Stores the kept weights of every group as the kernels read them.

    Args:
      w: (..., d_in, d_out), of any dtype; floating if `quant` is given.
      mask: booleans of w's shape, n whole blocks true in every group.
      pattern: the groups, along axis -2.
      quant: None keeps the values bit for bit; "int8" and "int4" round them.
      group: with `quant`, consecutive inputs that share a scale, pruned ones counted; None: all of
        a column.

    Raises:
      TypeError: `quant` is given and `w` is not floating.
      ValueError: an argument is out of range, `group` is given without `quant`, or (outside jit)
        `mask` is not of that pattern.

    >>> from jaxlab.methods.nm.mask import nm_mask
    >>> w = jnp.ones((128, 8), jnp.bfloat16)
    >>> nm_pack_planes(w, nm_mask(w, NMPattern(2, 4)), NMPattern(2, 4)).nbytes / w.size
    1.125
    """
    check_planes(pattern)
    pattern.check(w.shape)
    if mask.shape != w.shape:
        raise ValueError(f"nm_pack_planes: the mask of shape {mask.shape} is not w's, {w.shape}")
    if not isinstance(mask, Tracer):
        check_mask("nm_pack_planes", mask, pattern)
    if quant is None:
        if group is not None:
            raise ValueError(
                f"nm_planes: group={group!r} shares scales, which exact values have not; nearest: "
                "group=None, or quant='int8'"
            )
        return _packed(w, mask, pattern, None, 1)
    kept = jnp.where(mask, w, jnp.zeros((), w.dtype))
    check_dense("nm_planes", kept)  # and not w: a pruned infinity does no harm
    return _packed(kept, mask, pattern, quant, check_rounding("nm_planes", kept, quant, group))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _packed(
    w: jax.Array, mask: jax.Array, pattern: NMPattern, quant: str | None, group: int
) -> "NMPlanes":
    scale, (n, m, block) = None, (pattern.n, pattern.m, pattern.block)
    if quant is not None:
        w, scale = round_to_integers(w, LARGEST[quant], group, -2)
    turned, where = jnp.swapaxes(w, -1, -2), jnp.swapaxes(mask, -1, -2)
    stored = pack_nm(turned, where, n, m, block=block, kind=quant)
    values = stored.values.words if isinstance(stored.values, Planar) else stored.values
    layout = stored.version, LAYOUT_VERSION
    return NMPlanes(values, stored.code, scale, n, m, block, w.shape[-2], quant, layout)


@matrix("nm_planes")
class NMPlanes(PatternMatrix):
    """`to_dense()` puts the kept values, times `scale` if there is one, where `code` says.

    values: (..., d_out, d_in n / m), in the dtype of the dense matrix; or, if `quant` says int8 or
    int4, uint16 words of planar integers. code: uint16, (..., d_out, words), the kept places of
    the groups. Both in the order of `jaxlab.kernels.packing_nm`, in these versions of the `layout`
    of codes and of integers. scale: in the dtype of the dense matrix, (..., groups, d_out), for
    consecutive inputs; None without `quant`. Kept values are trained, or the scales of integers.
    """

    values: jax.Array
    code: jax.Array
    scale: jax.Array | None
    n: int = static()
    m: int = static()
    block: int = static()
    d_in: int = static()
    quant: str | None = static()
    layout: tuple[int, int] = static()

    axes = {"values": ("out", "in"), "code": ("out", "in"), "scale": ("in", "out")}
    EXAMPLE = Example(
        shape=(32, 12),
        hyper={"n": 2, "m": 4},
        bad=(
            {"n": 0, "m": 4},
            {"n": 1, "m": 3},
            {"n": 8, "m": 16},
            {"n": 2, "m": 4, "axis": -1},
            {"n": 2, "m": 4, "quant": "int3"},
            {"n": 2, "m": 4, "quant": "int4", "group": 48},
            {"n": 2, "m": 4, "group": 8},
            {"n": 2, "m": 4, "scores": "wanda"},
        ),
    )
    CITE = """@article{xia2023flashllm,
  title={Flash-{LLM}: Enabling Cost-Effective and Highly-Efficient Large Generative Model Inference
    with Unstructured Sparsity},
  author={Xia, Haojun and Zheng, Zhen and Li, Yuchao and Zhuang, Donglin and Zhou, Zhongzhu and
    Qiu, Xiafei and Li, Yong and Lin, Wei and Song, Shuaiwen Leon},
  journal={Proceedings of the VLDB Endowment}, volume={17}, year={2023}
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
        quant: Literal["int8", "int4"] | None = None,
        group: int | None = None,
        scores: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude",
        gram: Gram | None = None,
        key: jax.Array | None = None,
    ) -> "NMPlanes":
        """One-shot pruning, and rounding if `quant` is given.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept blocks of every group; their places take at most 16 bits.
          m: blocks of a group; `m * block` must divide d_in.
          axis: -2, the input, is the only one that kernels read.
          block: consecutive entries that are kept or pruned together.
          quant: None keeps the values bit for bit; "int8" and "int4" round them.
          group: with `quant`, consecutive inputs that share a scale, pruned ones counted; None:
            all of a column.
          scores: what is kept, as `NMPacked.from_dense` has it.
          gram: statistics of the kernel's inputs, likewise.
          key: unused.

        Raises:
          ValueError: an argument is out of range, `group` is given without `quant`, or (outside
            jit) `w` is not finite.

        >>> NMPlanes.from_dense(jnp.ones((128, 4)), n=2, m=4, quant="int4").nbytes  # of 2048 dense
        208
        """
        check_dense("nm_planes", w)
        pattern = NMPattern(n, m, axis, block)
        check_planes(pattern)
        pruned, mask = nm_one_shot(w, pattern, scores=scores, gram=gram)
        return nm_pack_planes(pruned, mask, pattern, quant=quant, group=group)

    @property
    def pattern(self) -> NMPattern:
        """The groups."""
        return NMPattern(self.n, self.m, -2, self.block)

    @property
    def packed(self) -> PackedNM:
        """Values and codes as kernels take them, (..., d_out, d_in)."""
        codes, integers = self.layout
        values = self.values
        if self.quant is not None:
            kept = self.d_in // self.m * self.n
            values = Planar(values, self.quant, kept, PLANAR_WIDTH, integers)
        return PackedNM(values, self.code, self.n, self.m, self.block, codes)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.code.shape[:-2], self.d_in, self.code.shape[-2])

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole tiles of the layout, blocks of integers and groups of a scale."""
        how = layout_of(self.n, self.m, self.block, self.d_in)
        rows = how.tile or how.group * (WORD // how.bits)
        if self.quant is not None:
            kept = FORMATS[self.quant].fields * PLANAR_WIDTH
            rows = math.lcm(rows, kept * self.m // math.gcd(kept * self.m, self.n))
        if self.scale is not None:
            rows = math.lcm(rows, self.d_in // self.scale.shape[-2])
        return (self.d_in if self.d_in % rows else rows), 1

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`, by a kernel where it was measured to win."""
        return kernels.nm_matmul(x, self.packed, self.scale)

    def to_dense(self) -> jax.Array:
        """The dense array: kept values bit for bit, or integers times scales, rounded once."""
        return _dense(self)


@jax.jit
def _dense(planes: NMPlanes) -> jax.Array:
    dense = kernels.dequantize_nm(planes.packed, planes.scale)
    return jnp.swapaxes(dense, -1, -2).astype(planes.dtype)
