"""Low-rank matrices: `W ~ U V`, started from the truncated singular value decomposition.

Source: C. Eckart and G. Young, "The approximation of one matrix by another of lower rank",
Psychometrika 1, 1936: among all matrices of rank r, the truncated SVD is the nearest to W in the
Frobenius norm, at a squared distance of the sum of the discarded squared singular values.
"""

from typing import Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import (
    Array,
    Cost,
    Example,
    Matrix,
    accumulator,
    check_dense,
    matmul,
    matrix,
    to_dense,
)


def rank_from_ratio(d_in: int, d_out: int, ratio: float) -> int:
    """The largest rank whose two factors hold at most `ratio` of the dense parameters.

    Args:
      d_in: rows of the dense matrix.
      d_out: columns of the dense matrix.
      ratio: kept fraction of `d_in * d_out` parameters.

    Returns:
      `floor(ratio * d_in * d_out / (d_in + d_out))`, clipped to [1, min(d_in, d_out)].

    >>> rank_from_ratio(64, 64, 0.5)
    16
    """
    return min(max(int(ratio * d_in * d_out / (d_in + d_out)), 1), min(d_in, d_out))


def truncated_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Balanced factors of the nearest matrix of rank `rank`.

    Args:
      w: (..., d_in, d_out), floating; decomposed in float32 or better.
      rank: number of singular values kept.

    Returns:
      `(u, v)` of shapes (..., d_in, rank) and (..., rank, d_out) in w's dtype; each carries the
      square roots of the singular values, so that both train at the same scale.

    >>> u, v = truncated_svd(jnp.eye(3), 3)
    >>> bool(jnp.allclose(u @ v, jnp.eye(3), atol=1e-6))
    True
    """
    wide = w.astype(accumulator(w.dtype))
    left, s, right = jnp.linalg.svd(wide, full_matrices=False)
    root = jnp.sqrt(s[..., :rank])
    u = left[..., :, :rank] * root[..., None, :]
    v = root[..., :, None] * right[..., :rank, :]
    return u.astype(w.dtype), v.astype(w.dtype)


@matrix("low_rank")
class LowRank(Matrix):
    """`to_dense() = u @ v` with u: (..., d_in, rank) and v: (..., rank, d_out).

    Both factors are trained as they are, and may be matrices themselves (N:M factors, say).
    """

    u: Array
    v: Array

    factors = ("u", "v")
    axes = {"u": ("in", None), "v": (None, "out")}
    EXAMPLE = Example(
        shape=(8, 12),
        hyper={"rank": 4},
        bad=({"rank": 0}, {"rank": 9}, {"ratio": 0.0}, {}, {"rank": 2, "ratio": 0.5}),
    )
    CITE = """@article{eckart1936approximation,
  title={The approximation of one matrix by another of lower rank},
  author={Eckart, Carl and Young, Gale},
  journal={Psychometrika}, volume={1}, pages={211--218}, year={1936}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        rank: int | None = None,
        ratio: float | None = None,
        key: jax.Array | None = None,
    ) -> Self:
        """The nearest matrix of a given rank, or of the rank that `ratio` of the parameters buys.

        Args:
          w: (..., d_in, d_out), floating.
          rank: 1 to min(d_in, d_out); stores less than the dense matrix below
            d_in d_out / (d_in + d_out).
          ratio: instead of `rank`, the kept fraction of parameters; in (0, 1].
          key: unused; the decomposition is deterministic.

        Raises:
          ValueError: `rank` or `ratio` is out of range, or not exactly one of them is given.

        >>> W = LowRank.from_dense(jnp.ones((4, 6)), rank=1)
        >>> W.shape, W.nbytes
        ((4, 6), 40)
        """
        check_dense("low_rank", w)
        d_in, d_out = w.shape[-2:]
        if (rank is None) == (ratio is None):
            raise ValueError(f"low_rank: give one of rank={rank} and ratio={ratio}")
        if rank is None:
            assert ratio is not None
            if not 0 < ratio <= 1:
                raise ValueError(f"low_rank: ratio={ratio} must be in (0, 1]")
            rank = rank_from_ratio(d_in, d_out, ratio)
        if not 1 <= rank <= min(d_in, d_out):
            nearest = min(max(rank, 1), min(d_in, d_out))
            raise ValueError(
                f"low_rank: rank={rank} must be in [1, {min(d_in, d_out)}] for a kernel of "
                f"{d_in} x {d_out}; nearest: {nearest}"
            )
        return cls(*truncated_svd(w, rank))

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.u.shape[:-1], self.v.shape[-1])

    def to_dense(self) -> jax.Array:
        """`u @ v`, accumulated in float32 or better."""
        u, v = to_dense(self.u), to_dense(self.v)
        return jnp.matmul(u, v, preferred_element_type=accumulator(u.dtype)).astype(u.dtype)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`(x @ u) @ v`."""
        return matmul(matmul(x, self.u), self.v)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`(x @ v.T) @ u.T`."""
        return matmul(matmul(x, self.v.T), self.u.T)

    def cost(self, rows: int) -> Cost:
        """Two thin products."""
        d_in, d_out = self.shape[-2:]
        rank = self.u.shape[-1]
        moved = self.nbytes + rows * (d_in + 2 * rank + d_out) * self.dtype.itemsize
        return Cost(flops=2 * rows * rank * (d_in + d_out), bytes=moved)
