"""The integers behind a Monarch matrix, and what follows from them alone.

Sources: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
Training", ICML 2022 (section 3 and appendix: the factors; the layer's rule for its blocks). The
multipliers of the learning rates: S. Qiu et al., "Compute Better Spent: Replacing Dense Layers with
Structured Matrices", ICML 2024.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class MonarchShape:
    """Sizes of the factors w1: (k, q, p) and w2: (l, s, r), and of the matrix (n_out, n_in).

    The middle width k q = l r is what both factors share. Inputs beyond n_in are zeros that pad
    the k blocks of p, and outputs beyond n_out of the s l that come out are cut off.

    Raises:
      ValueError: a size is below 1, k q is not l r, or n_in > k p, or n_out > s l.

    >>> MonarchShape(k=2, q=3, p=2, l=3, s=2, r=2, n_in=4, n_out=6).block_ranks.tolist()
    [[1, 1], [1, 1], [1, 1]]
    """

    k: int
    q: int
    p: int
    l: int  # noqa: E741  the papers' letter
    s: int
    r: int
    n_in: int
    n_out: int

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            if size < 1:
                raise ValueError(f"monarch: {name}={size} must be 1 or more; nearest: 1")
        if self.k * self.q != self.l * self.r:
            raise ValueError(
                f"monarch: the factors do not meet: k q = {self.k} x {self.q} = "
                f"{self.k * self.q}, but l r = {self.l} x {self.r} = {self.l * self.r}"
            )
        for name, size, room in [
            ("n_in", self.n_in, self.k * self.p),
            ("n_out", self.n_out, self.s * self.l),
        ]:
            if size > room:
                raise ValueError(
                    f"monarch: {name}={size} is more than the blocks hold, {room}; nearest: {room}"
                )

    @property
    def mid(self) -> int:
        """Width between the factors."""
        return self.k * self.q

    @property
    def is_padded(self) -> bool:
        """Whether blocks reach beyond the inputs or the outputs."""
        return (self.n_in, self.n_out) != (self.k * self.p, self.s * self.l)

    @property
    def block_ranks(self) -> np.ndarray:
        """(l, k) integers: the rank that the slice W[j::l, kk p : (kk + 1) p] may have.

        q / l everywhere if l divides q; else that, rounded down or up. Rows sum to r, and columns
        to q.
        """
        middle = np.arange(self.mid)
        ranks = np.zeros((self.l, self.k), np.int32)
        np.add.at(ranks, (middle % self.l, middle // self.q), 1)
        return ranks

    @property
    def saving(self) -> float:
        """Stored parameters, over those of the dense matrix."""
        return monarch_param_count(self) / (self.n_in * self.n_out)


def shape_of(params: Mapping[str, jax.Array]) -> MonarchShape:
    """The shape that factors have when nothing is padded."""
    (k, q, p), (l, s, r) = params["w1"].shape, params["w2"].shape  # noqa: E741
    return MonarchShape(k, q, p, l, s, r, n_in=k * p, n_out=s * l)


def monarch_shapes(
    n_in: int,
    n_out: int,
    *,
    nblocks: int | None = None,
    k: int | None = None,
    l: int | None = None,  # noqa: E741
    rank: int | None = None,
) -> MonarchShape:
    """The factors of a layer, by one of two rules.

    Args:
      n_in: inputs.
      n_out: outputs.
      nblocks: blocks of either factor, 4 by default. The middle width is about min(n_in, n_out), so
        that `(n_in + n_out) min(n_in, n_out) / nblocks` parameters are stored.
      k: instead of `nblocks`, blocks of w1, which split the input;
      l: blocks of w2, which split the output;
      rank: of each of the k l slices; `rank (l n_in + k n_out)` parameters.

    Returns:
      The shape; sizes that the blocks do not divide are rounded up, and padded.

    Raises:
      ValueError: an argument is out of range, `nblocks` is given beside the others, or k, l and
        rank not together.

    Warns:
      UserWarning: `rank` is more than a slice can have; the surplus is stored and trains nothing.

    >>> shape = monarch_shapes(768, 3072)
    >>> (shape.k, shape.q, shape.p), (shape.l, shape.s, shape.r), shape.saving
    ((4, 192, 192), (4, 768, 192), 0.3125)
    >>> monarch_shapes(16, 24, k=4, l=2, rank=1)
    MonarchShape(k=4, q=2, p=4, l=2, s=12, r=4, n_in=16, n_out=24)
    """
    if k is None and l is None and rank is None:
        return _by_blocks(n_in, n_out, 4 if nblocks is None else nblocks)
    if nblocks is not None or k is None or l is None or rank is None:
        raise ValueError(f"monarch: give nblocks={nblocks}, or all of k={k}, l={l} and rank={rank}")
    for name, value, most in [("k", k, n_in), ("l", l, n_out)]:
        if not 1 <= value <= most:
            raise ValueError(
                f"monarch: {name}={value} must be in [1, {most}] for {n_in} inputs and {n_out} "
                f"outputs; nearest: {min(max(value, 1), most)}"
            )
    shape = MonarchShape(
        k, l * rank, math.ceil(n_in / k), l, math.ceil(n_out / l), k * rank, n_in, n_out
    )
    if rank > min(shape.s, shape.p):
        warnings.warn(
            f"monarch: rank={rank} is more than slices of {shape.s} x {shape.p} can have; "
            f"nearest: {min(shape.s, shape.p)}",
            UserWarning,
            stacklevel=2,
        )
    return shape


def _by_blocks(n_in: int, n_out: int, nblocks: int) -> MonarchShape:
    if not 1 <= nblocks <= min(n_in, n_out):
        raise ValueError(
            f"monarch: nblocks={nblocks} must be in [1, {min(n_in, n_out)}] for {n_in} inputs and "
            f"{n_out} outputs; nearest: {min(max(nblocks, 1), min(n_in, n_out))}"
        )
    wide_in, wide_out = math.ceil(n_in / nblocks), math.ceil(n_out / nblocks)
    middle = min(wide_in, wide_out)
    return MonarchShape(nblocks, middle, wide_in, nblocks, wide_out, middle, n_in, n_out)


def monarch_param_count(shape: MonarchShape, *, padding: bool = True) -> int:
    """Parameters of both factors.

    Args:
      shape: of the factors.
      padding: whether to count those that only padded inputs or outputs reach, which are stored
        and never get a gradient.

    >>> [monarch_param_count(monarch_shapes(10, 7), padding=p) for p in (True, False)]
    [40, 34]
    """
    stored = shape.k * shape.q * shape.p + shape.l * shape.s * shape.r
    idle = (shape.k * shape.p - shape.n_in) * shape.q + (shape.s * shape.l - shape.n_out) * shape.r
    return stored if padding else stored - idle


def monarch_flops(shape: MonarchShape, batch: int) -> int:
    """FLOPs of a product with `batch` vectors, padding included.

    The backward pass takes twice that, and once the first factor's share to compute the middle
    again.

    >>> monarch_flops(monarch_shapes(1024, 4096), 1) / (2 * 1024 * 4096)
    0.3125
    """
    return 2 * batch * monarch_param_count(shape)


def monarch_lr_mults(shape: MonarchShape) -> dict[str, float]:
    """By factor, what to multiply a dense layer's learning rate with: n_in / fan_in / 2.

    The heuristic of Qiu et al. for optimizers like Adam, whose steps have the same size in every
    entry: a factor that sums over fewer entries takes larger steps.

    >>> monarch_lr_mults(monarch_shapes(768, 3072))
    {'w1': 2.0, 'w2': 2.0}
    """
    return {"w1": shape.n_in / shape.p / 2, "w2": shape.n_in / shape.r / 2}
