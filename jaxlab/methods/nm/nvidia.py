"""Export of 2:4 weights as NVIDIA's sparse tensor cores take them: half the values, and metadata.

A group of four that keeps positions i < j has the four bits `i | j << 2`. Words hold the groups of
a row in order, the first in the lowest bits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.positions import keep


class _Format(NamedTuple):
    """How many of a group are kept, and how many groups' codes a word of metadata holds."""

    kept: int
    groups: int
    word: Any
    # Scores by which pruned members fill a group up, below the 1 of a kept one.
    filling: tuple[float, ...]

    @property
    def members(self) -> int:
        return len(self.filling)


_HALF = _Format(2, 4, jnp.uint16, (0.0, 0.0, 0.2, 0.1))
# 32-bit values are kept 1 of 2: each is two halves of a group of four.
_FORMATS = {
    "float16": _HALF,
    "bfloat16": _HALF,
    "int8": _Format(2, 8, jnp.uint32, _HALF.filling),
    "float32": _Format(1, 4, jnp.uint16, (0.0, 0.1)),
}


def pack_24_nvidia(w: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values and metadata of a weight that is 2:4 along its last axis.

    A group that keeps fewer than two entries still gets two ascending positions, with the value 0
    at those that are not kept: position 2 is taken first, then 3.

    The metadata is in row order, as PyTorch's semi-structured conversion has it before it reorders
    and as the bit layout of `mma.sp` on compute capability 8.0 defines it. CUTLASS kernels want it
    reordered within tiles, and cuSPARSELt has an opaque layout of its own that only its own
    compression makes.

    Args:
      w: (..., out, in), the transpose of a kernel here: float16, bfloat16 or int8, of which 2 of
        4 are kept, or float32 for TF32 products, of which 1 of 2 are. `in` must be divisible by 16,
        32 for int8, 8 for float32, so that words are whole.
      mask: booleans of w's shape, at most 2 true of every 4 (1 of every 2 for float32).

    Returns:
      `(values, metadata)`: (..., out, in / 2) in w's dtype; and (..., out, in / 16) uint16 with 4
      groups in a word, (..., out, in / 32) uint32 with 8 for int8, or (..., out, in / 8) uint16
      with 4 groups of two for float32, whose codes are 4 (the first is kept) and 14.

    Raises:
      TypeError: a dtype that is not listed.
      ValueError: shapes do not fit, or (outside jit) a group of the mask keeps too many.

    >>> w = jnp.arange(16, dtype=jnp.float16)[None]
    >>> values, metadata = pack_24_nvidia(w, w % 4 < 2)
    >>> values.tolist(), hex(metadata[0, 0])
    ([[0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0]], '0x4444')
    """
    if w.dtype.name not in _FORMATS:
        raise TypeError(f"pack_24_nvidia: w is {w.dtype}; valid: {', '.join(_FORMATS)}")
    if mask.shape != w.shape or w.ndim < 2:
        raise ValueError(
            f"pack_24_nvidia: w {w.shape} and mask {mask.shape} must have one shape (..., out, in)"
        )
    form = _FORMATS[w.dtype.name]
    whole = form.members * form.groups
    if w.shape[-1] % whole:
        nearest = max(round(w.shape[-1] / whole), 1) * whole
        raise ValueError(
            f"pack_24_nvidia: the input axis, {w.shape[-1]} long, must be divisible by {whole} for "
            f"{w.dtype}; nearest: {nearest}"
        )
    if not isinstance(mask, Tracer):
        most = int(jnp.max(jnp.sum(_groups(mask, form), axis=-1)))
        if most > form.kept:
            raise ValueError(
                f"pack_24_nvidia: a group of the mask keeps {most} of {form.members}; at most "
                f"{form.kept} can be, as nm_mask(scores, NMPattern({form.kept}, {form.members}, "
                "axis=-1)) makes it"
            )
    return _pack(w, mask, form)


@functools.partial(jax.jit, static_argnums=2)
def _pack(w: jax.Array, mask: jax.Array, form: _Format) -> tuple[jax.Array, jax.Array]:
    pattern = NMPattern(form.kept, form.members, axis=-1)
    scores = _groups(mask, form).astype(jnp.float32)
    scores += jnp.broadcast_to(jnp.array(form.filling, jnp.float32), scores.shape)
    chosen = nm_mask(scores.reshape(w.shape), pattern)
    values, _ = keep(jnp.where(mask, w, jnp.zeros((), w.dtype)), chosen, pattern)
    # In halves, so that a group has four of them for every dtype.
    chosen = jnp.repeat(_groups(chosen, form), 4 // form.members, axis=-1)
    place = jax.lax.broadcasted_iota(jnp.uint32, chosen.shape, chosen.ndim - 1)
    # The first chosen has none before it, and its position stands in the lower two bits.
    before = jnp.cumsum(chosen, axis=-1, dtype=jnp.uint32) - jnp.uint32(1)
    code = jnp.where(chosen, place << (2 * before), jnp.uint32(0))
    code = jnp.sum(code, axis=-1, dtype=jnp.uint32)
    words = code.reshape((*code.shape[:-1], code.shape[-1] // form.groups, form.groups))
    shift = jax.lax.broadcasted_iota(jnp.uint32, words.shape, words.ndim - 1) * jnp.uint32(4)
    return values, jnp.sum(words << shift, axis=-1, dtype=jnp.uint32).astype(form.word)


def _groups(x: jax.Array, form: _Format) -> jax.Array:
    return x.reshape((*x.shape[:-1], x.shape[-1] // form.members, form.members))
