"""Patterns and masks of N:M sparsity: of every m consecutive entries or blocks, the n largest.

Of equal scores the later ones are kept, in every implementation, so that a mask never depends on
which one ran.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.matrix import accumulator

# Blocks of a group: what the byte of a position can hold.
LARGEST_GROUP = 256


@dataclass(frozen=True)
class NMPattern:
    """n kept of every m consecutive blocks along `axis`, counted from the end.

    A block is `block` consecutive entries, 1 unless said otherwise: whole blocks are kept or
    pruned, so that one position is stored for each block and a group of quantised values can be one
    block (C. Zeng et al., "GQSA: Group Quantization and Sparsity for Accelerating Large Language
    Model Inference", 2024, with blocks of 16).

    The default axis, -2, is the input of a (d_in, d_out) kernel, which is what hardware expects.

    Raises:
      ValueError: not 1 <= n <= m <= 256, block below 1, or an axis that is not negative.
    """

    n: int
    m: int
    axis: int = -2
    block: int = 1

    def __post_init__(self):
        for name in ("n", "m", "axis", "block"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"nm: {name}={value!r} must be a whole number")
        if not 1 <= self.n <= self.m <= LARGEST_GROUP:
            raise ValueError(
                f"nm: n={self.n}, m={self.m} must satisfy 1 <= n <= m <= {LARGEST_GROUP}"
            )
        if self.block < 1:
            raise ValueError(f"nm: block={self.block} must be 1 or more")
        if self.axis >= 0:
            raise ValueError(
                f"nm: axis={self.axis} must be negative, as it is counted from the end: -2 is the "
                "input of a kernel, -1 its output"
            )

    @property
    def density(self) -> float:
        """The fraction of entries that are kept, n / m."""
        return self.n / self.m

    @property
    def index_bits(self) -> int:
        """Bits that hold a position in a group: 1, 2, 4 or 8, so that bytes hold whole ones."""
        return next(b for b in (1, 2, 4, 8) if 2**b >= self.m)

    @property
    def stores_bitmask(self) -> bool:
        """Whether one bit for each block takes less than a position for each kept block.

        >>> [NMPattern(n, m).stores_bitmask for n, m in ((2, 4), (4, 8), (8, 16), (1, 16))]
        [False, True, True, False]
        """
        return self.n * self.index_bits > self.m

    @property
    def position_bits(self) -> int:
        """Bits that the positions of one group take."""
        return min(self.n * self.index_bits, self.m)

    def tile(self, length: int) -> tuple[int, int]:
        """A block (rows, columns) of a matrix that is `length` long along the pattern's axis."""
        self.check_matrix_axis()
        return (length, 1) if self.axis == -2 else (1, length)

    def check_matrix_axis(self) -> None:
        """Raises a ValueError unless the axis is the input or the output of a matrix."""
        if self.axis not in (-1, -2):
            raise ValueError(f"nm: axis={self.axis} must be -2 (input) or -1 (output)")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises a ValueError with the nearest legal value unless groups fill the axis."""
        if -self.axis > len(shape):
            raise ValueError(
                f"nm: axis={self.axis} is none of the {len(shape)} axes of shape {tuple(shape)}; "
                f"nearest: {-len(shape)}"
            )
        length = shape[self.axis]
        if length % (self.m * self.block):
            blocks = "" if self.block == 1 else f" times block={self.block}"
            raise ValueError(
                f"nm: m={self.m}{blocks} must divide axis {self.axis} of shape {tuple(shape)}, "
                f"which is {length} long; {self._nearest(length)}"
            )

    def _nearest(self, length: int) -> str:
        def two(legal: list[int], wanted: int) -> str:
            nearest = sorted(sorted(legal, key=lambda d: abs(d - wanted))[:2])
            return ", ".join(map(str, nearest))

        legal = [d for d in range(self.n, LARGEST_GROUP + 1) if length % (d * self.block) == 0]
        # A block that does not divide the axis leaves no m at all.
        if length == 0 or legal or self.block == 1:
            return f"nearest m: {two(legal, self.m) or 'none'}"
        legal = [b for b in range(1, self.block) if length % (self.m * b) == 0]
        return f"nearest block: {two(legal, self.block) or 'none'}"


def check_scores(w: jax.Array) -> None:
    """Raises a ValueError if a weight has NaN entries; not under jit, where values are unknown."""
    if not isinstance(w, Tracer) and bool(jnp.any(jnp.isnan(w))):
        raise ValueError("nm: the kernel has NaN entries, which have no magnitude to rank")


def nm_mask(
    scores: jax.Array,
    pattern: NMPattern,
    n: jax.Array | int | None = None,
    *,
    method: Literal["pairwise", "argmax", "sort"] | None = None,
) -> jax.Array:
    """Marks the n largest scores of every group; of equal scores the later ones.

    Args:
      scores: real scores of any shape; |W| for magnitude. A block's score is the mean of its
        entries' (in float32, or float64 for float64). NaN counts as the smallest score.
      pattern: group size, axis, block and (unless `n` is given) kept count.
      n: kept count instead of the pattern's; may be traced, except with method="argmax".
      method: "pairwise" compares all pairs of a group (m passes), "argmax" takes n rounds, "sort"
        sorts, which is slow but grows least with m; None chooses. All agree bit for bit.

    Returns:
      Booleans of the scores' shape with exactly n blocks true in every group.

    Raises:
      ValueError: groups do not fill the axis, or method="argmax" with a traced n.

    >>> nm_mask(jnp.array([[0.1, 0.4, 0.3, 0.2]]), NMPattern(2, 4, axis=-1)).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    pattern.check(scores.shape)
    kept = pattern.n if n is None else n
    fixed = isinstance(kept, int)
    if method is None:
        rounds = fixed and kept <= 2 and pattern.m >= 16
        method = "argmax" if rounds else "pairwise" if pattern.m <= 64 else "sort"
    if fixed and not 0 <= kept <= pattern.m:
        raise ValueError(f"nm_mask: n={kept} must be in [0, {pattern.m}]")
    if method not in _SELECT:
        raise ValueError(f"nm_mask: method={method!r}; valid: {', '.join(_SELECT)}")
    if method == "argmax" and not fixed:
        raise ValueError("nm_mask: method='argmax' needs a static n; use 'pairwise' or 'sort'")
    fn = _mask if fixed else _mask_of_traced_n
    return fn(scores, kept, pattern, method)


def _mask_unjitted(
    scores: jax.Array, n: jax.Array | int, pattern: NMPattern, method: str
) -> jax.Array:
    of_blocks = dataclasses.replace(pattern, block=1)
    means = _block_means(scores.astype(accumulator(scores.dtype)), pattern)
    grouped = group(means, of_blocks)
    # -inf and NaN become the lowest finite score: "argmax" marks what it has taken with -inf.
    lowest = jnp.finfo(grouped.dtype).min
    grouped = jnp.nan_to_num(grouped, nan=lowest, posinf=jnp.inf, neginf=lowest)
    mask = ungroup(_SELECT[method](grouped, n, pattern.axis), of_blocks)
    return mask if pattern.block == 1 else jnp.repeat(mask, pattern.block, axis=pattern.axis)


# Jitted here because op by op the selections are hundreds of small launches.
_mask = jax.jit(_mask_unjitted, static_argnums=(1, 2, 3))
_mask_of_traced_n = jax.jit(_mask_unjitted, static_argnums=(2, 3))


def _block_means(s: jax.Array, pattern: NMPattern) -> jax.Array:
    """(..., L, ...) to (..., L / block, ...), always added up in the same order."""
    if pattern.block == 1:
        return s
    axis = s.ndim + pattern.axis
    s = s.reshape((*s.shape[:axis], -1, pattern.block, *s.shape[axis + 1 :]))
    axis += 1
    # Halves are added, because the order of a reduction depends on the layout that XLA picks, and
    # with it the ties: a mask must be the same on a transpose, on a shard and for every method.
    while s.shape[axis] > 1:
        half = s.shape[axis] // 2
        low = jax.lax.slice_in_dim(s, 0, half, axis=axis)
        total = low + jax.lax.slice_in_dim(s, half, 2 * half, axis=axis)
        odd = jax.lax.slice_in_dim(s, 2 * half, None, axis=axis)
        s = jnp.concatenate([total, odd], axis=axis) if odd.shape[axis] else total
    return jnp.squeeze(s, axis) / pattern.block


def _largest_pairwise(s: jax.Array, n: jax.Array | int, axis: int) -> jax.Array:
    index = jax.lax.broadcasted_iota(jnp.int32, s.shape, s.ndim + axis)
    rank = jnp.zeros(s.shape, jnp.int32)
    # One fused elementwise loop: an (m, m) comparison would be materialised.
    for j in range(s.shape[axis]):
        other = jax.lax.slice_in_dim(s, j, j + 1, axis=axis)
        rank += jnp.where(index > j, other <= s, other < s).astype(jnp.int32)
    return rank >= s.shape[axis] - n


def _largest_argmax(s: jax.Array, n: jax.Array | int, axis: int) -> jax.Array:
    assert isinstance(n, int)
    index = jax.lax.broadcasted_iota(jnp.int32, s.shape, s.ndim + axis)
    keep = jnp.zeros(s.shape, bool)
    for _ in range(n):
        left = jnp.where(keep, -jnp.inf, s)
        largest = left == jnp.max(left, axis=axis, keepdims=True)
        # Of equal scores the last; two plain maxima vectorise, an argmax does not.
        last = jnp.max(jnp.where(largest, index, -1), axis=axis, keepdims=True)
        keep |= index == last
    return keep


def _largest_sort(s: jax.Array, n: jax.Array | int, axis: int) -> jax.Array:
    m = s.shape[axis]
    # The n-th largest score decides: all above it stay, and of those equal to it the last ones.
    place = jnp.asarray(m - n)[None]
    threshold = jnp.take(jnp.sort(s, axis=axis), place, axis=axis, mode="clip")
    above, equal = s > threshold, s == threshold
    missing = n - jnp.sum(above, axis=axis, keepdims=True)
    from_the_end = jax.lax.cumsum(equal.astype(jnp.int32), axis=s.ndim + axis, reverse=True)
    return above | (equal & (from_the_end <= missing))


_SELECT = {"pairwise": _largest_pairwise, "argmax": _largest_argmax, "sort": _largest_sort}


def group(x: jax.Array, pattern: NMPattern) -> jax.Array:
    """Splits the axis of length L into (L / (m block), m block); members lie along `axis`."""
    axis, size = x.ndim + pattern.axis, pattern.m * pattern.block
    return x.reshape((*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :]))


def ungroup(x: jax.Array, pattern: NMPattern) -> jax.Array:
    """Joins the axes that `group` split."""
    axis = x.ndim + pattern.axis - 1
    return x.reshape((*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))
