"""Patterns and masks of N:M sparsity: of every m consecutive entries, the n largest.

Of equal scores the later ones are kept, in every implementation, so that a mask never depends on
which one ran.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.matrix import accumulator


@dataclass(frozen=True)
class NMPattern:
    """n kept of every m consecutive entries along `axis`, counted from the end.

    The default axis, -2, is the input of a (d_in, d_out) kernel, which is what hardware expects.

    Raises:
      ValueError: not 1 <= n <= m <= 256, or the axis is neither -1 nor -2.
    """

    n: int
    m: int
    axis: int = -2

    def __post_init__(self):
        for name in ("n", "m"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"nm: {name}={value!r} must be a whole number")
        if not 1 <= self.n <= self.m <= 256:
            raise ValueError(f"nm: n={self.n}, m={self.m} must satisfy 1 <= n <= m <= 256")
        if self.axis not in (-1, -2):
            raise ValueError(f"nm: axis={self.axis} must be -2 (input) or -1 (output)")

    @property
    def index_bits(self) -> int:
        """Bits that hold a position in a group: 1, 2, 4 or 8, so that bytes hold whole ones."""
        return next(b for b in (1, 2, 4, 8) if 2**b >= self.m)

    def tile(self, length: int) -> tuple[int, int]:
        """A block (rows, columns) that is `length` long along the pattern's axis."""
        return (length, 1) if self.axis == -2 else (1, length)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises a ValueError with the nearest legal m unless m divides the axis."""
        length = shape[self.axis]
        if length % self.m:
            divisors = [d for d in range(self.n, length + 1) if length % d == 0 and d <= 256]
            nearest = sorted(sorted(divisors, key=lambda d: abs(d - self.m))[:2])
            raise ValueError(
                f"nm: m={self.m} must divide axis {self.axis} of shape {tuple(shape)}, which is "
                f"{length} long; nearest m: {', '.join(map(str, nearest)) or 'none'}"
            )


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
      scores: real scores of any shape; |W| for magnitude. NaN counts as the smallest score.
      pattern: group size, axis and (unless `n` is given) kept count.
      n: kept count instead of the pattern's; may be traced, except with method="argmax".
      method: "pairwise" compares all pairs of a group (m passes), "argmax" takes n rounds, "sort"
        sorts, which is slow but grows least with m; None chooses. All agree bit for bit.

    Returns:
      Booleans of the scores' shape with exactly n true in every group.

    Raises:
      ValueError: m does not divide the axis, or method="argmax" with a traced n.

    >>> nm_mask(jnp.array([[0.1, 0.4, 0.3, 0.2]]), NMPattern(2, 4, axis=-1)).astype(int).tolist()
    [[0, 1, 1, 0]]
    """
    pattern.check(scores.shape)
    kept = pattern.n if n is None else n
    fixed = isinstance(kept, int)
    if method is None:
        rounds = fixed and kept <= 2 and pattern.m >= 16
        method = "argmax" if rounds else "pairwise" if pattern.m <= 64 else "sort"
    if method == "argmax" and not fixed:
        raise ValueError("nm_mask: method='argmax' needs a static n; use 'pairwise' or 'sort'")
    fn = _mask if fixed else _mask_of_traced_n
    return fn(scores, kept, pattern, method)


def _mask_unjitted(
    scores: jax.Array, n: jax.Array | int, pattern: NMPattern, method: str
) -> jax.Array:
    grouped = group(scores.astype(accumulator(scores.dtype)), pattern)
    # -inf and NaN become the lowest finite score: "argmax" marks what it has taken with -inf.
    lowest = jnp.finfo(grouped.dtype).min
    grouped = jnp.nan_to_num(grouped, nan=lowest, posinf=jnp.inf, neginf=lowest)
    return _SELECT[method](grouped, n, pattern.axis).reshape(scores.shape)


# Jitted here because op by op the selections are hundreds of small launches.
_mask = jax.jit(_mask_unjitted, static_argnums=(1, 2, 3))
_mask_of_traced_n = jax.jit(_mask_unjitted, static_argnums=(2, 3))


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
    """Splits the axis of length L into (L / m, m): a group's members lie along `pattern.axis`."""
    axis = x.ndim + pattern.axis
    shape = (*x.shape[:axis], x.shape[axis] // pattern.m, pattern.m, *x.shape[axis + 1 :])
    return x.reshape(shape)


def ungroup(x: jax.Array, pattern: NMPattern) -> jax.Array:
    """Joins the axes that `group` split."""
    axis = x.ndim + pattern.axis - 1
    return x.reshape((*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]))
