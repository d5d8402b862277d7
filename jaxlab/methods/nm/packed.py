"""N:M sparse matrices in their stored form: kept values, and bit-packed positions.

A weight of 16 bits at 2:4 takes 1.125 bytes instead of 2; at 1:16, 0.156.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram
from jaxlab.core.matrix import Example, check_dense, matrix, static
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.oneshot import nm_one_shot
from jaxlab.methods.nm.positions import keep, kept_blocks, spread
from jaxlab.methods.nm.product import PackedMatrix, PatternMatrix, nm_matmul
from jaxlab.methods.nm.quantized import NMQuantized, quantize

__all__ = ["NMPacked", "nm_matmul", "nm_pack", "nm_unpack"]


def nm_pack(
    w: jax.Array,
    mask: jax.Array,
    pattern: NMPattern,
    *,
    quant: str | None = None,
    group: int = 16,
) -> "NMPacked | NMQuantized":
    """Stores the kept weights of every group, and their positions bit-packed into bytes.

    Args:
      w: (..., d_in, d_out); floating if `quant` is given.
      mask: booleans of w's shape, n whole blocks true in every group.
      pattern: the groups, along axis -2 or -1.
      quant: None keeps the values bit for bit; "int8" and "int4" round them.
      group: with `quant`, how many consecutive kept values share a scale; must divide the kept
        length of the axis.

    Returns:
      An `NMPacked`, or with `quant` an `NMQuantized`.

    Raises:
      ValueError: an argument is out of range, or (outside jit) a group of `mask` has not exactly
        n whole blocks.

    >>> from jaxlab.methods.nm.mask import nm_mask
    >>> w = jnp.ones((64, 8), jnp.bfloat16)
    >>> nm_pack(w, nm_mask(w, NMPattern(2, 4)), NMPattern(2, 4), quant="int4").nbytes / w.size
    0.4375
    """
    pattern.check_matrix_axis()
    pattern.check(w.shape)
    if mask.shape != w.shape:
        raise ValueError(f"nm_pack: the mask of shape {mask.shape} is not w's, {w.shape}")
    if not isinstance(mask, Tracer):
        check_mask("nm_pack", mask, pattern)
    values, index = keep(w, mask, pattern)
    if quant is None:
        return NMPacked(values, index, pattern.n, pattern.m, pattern.axis, pattern.block)
    values, scale = quantize(values, quant, group, pattern.axis)
    return NMQuantized(values, scale, index, pattern.n, pattern.m, pattern.axis, pattern.block)


def check_mask(owner: str, mask: jax.Array, pattern: NMPattern) -> None:
    """Raises a ValueError unless every group of a mask, which is no tracer, has n whole blocks."""
    counts = kept_blocks(mask, pattern)
    if not bool(jnp.all((counts == 0) | (counts == pattern.block))):
        raise ValueError(f"{owner}: the mask keeps parts of blocks of {pattern.block} entries")
    kept = jnp.sum(counts > 0, axis=pattern.axis)
    if not bool(jnp.all(kept == pattern.n)):
        of = "entries" if pattern.block == 1 else "blocks"
        raise ValueError(
            f"{owner}: groups of the mask hold {int(kept.min())} to {int(kept.max())} {of} and "
            f"not n={pattern.n}; make it with nm_mask"
        )


def nm_unpack(packed: PatternMatrix) -> jax.Array:
    """The dense array of a packed matrix: the kept values bit for bit, zeros elsewhere.

    Args:
      packed: (..., d_in, d_out), of any stored form.

    >>> w = jnp.array([[4.0], [-3.0], [2.0], [1.0]])
    >>> nm_unpack(NMPacked.from_dense(w, n=2, m=4)).T.tolist()
    [[4.0, -3.0, 0.0, 0.0]]
    """
    return packed.to_dense()


@matrix("nm_packed")
class NMPacked(PackedMatrix):
    """`to_dense()` puts `values` at the positions of `index`, with zeros elsewhere.

    Along the axis, of length L in the dense matrix, K = L n / m entries are stored:
    values: K long, in the order of their positions; index: uint8, the positions of kept blocks in
    b = 1, 2, 4 or 8 bits each, or a bit for every block where that is smaller (4:8, 8:16), the
    first in the lowest bits: ceil(min(K b, L) / (8 block)) long.
    """

    values: jax.Array
    index: jax.Array
    n: int = static()
    m: int = static()
    axis: int = static()
    block: int = static(default=1)

    axes = {"values": ("in", "out"), "index": ("in", "out")}
    EXAMPLE = Example(
        shape=(16, 12),
        hyper={"n": 2, "m": 4},
        bad=(
            {"n": 0, "m": 4},
            {"n": 1, "m": 3},
            {"n": 2, "m": 4, "block": 3},
            {"n": 2, "m": 4, "axis": -3},
            {"n": 2, "m": 4, "scores": "wanda"},
        ),
    )
    CITE = """@misc{mishra2021accelerating,
  title={Accelerating Sparse Deep Neural Networks},
  author={Mishra, Asit and Latorre, Jorge Albericio and Pool, Jeff and Stosic, Darko and Stosic,
    Dusan and Venkatesh, Ganesh and Yu, Chong and Micikevicius, Paulius},
  year={2021}, eprint={2104.08378}, archivePrefix={arXiv}
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
        scores: Literal["magnitude", "wanda", "sparsegpt"] = "magnitude",
        gram: Gram | None = None,
        key: jax.Array | None = None,
    ) -> "NMPacked":
        """One-shot pruning: keeps n of every m and packs them.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept blocks of every group.
          m: blocks of a group; `m * block` must divide the axis.
          axis: -2 groups along the input, -1 along the output.
          block: consecutive entries that are kept or pruned together.
          scores: what is kept: the largest magnitudes; the largest contributions to the output
            (Wanda); or what SparseGPT keeps, which also adjusts the kept weights.
          gram: statistics of the kernel's inputs, which the latter two need; a run's
            `calibrate.batches`, or `compress_calibrated`, supplies them.
          key: unused.

        Raises:
          ValueError: an argument is out of range, or `gram` is missing.

        >>> NMPacked.from_dense(jnp.ones((16, 4)), n=2, m=4).nbytes  # of 256 dense
        136
        """
        check_dense("nm_packed", w)
        pattern = NMPattern(n, m, axis, block)
        pruned, mask = nm_one_shot(w, pattern, scores=scores, gram=gram)
        packed = nm_pack(pruned, mask, pattern)
        assert isinstance(packed, NMPacked)
        return packed

    @property
    def kept(self) -> int:
        """Entries that are kept along the axis."""
        return self.values.shape[self.axis]

    def to_dense(self) -> jax.Array:
        """The dense array: kept values bit for bit."""
        return spread(self.values, self.index, self.pattern)
