"""The matrix of two thin factors, and which decomposition it starts from."""

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Cross, Gram
from jaxlab.core.matrix import (
    Array,
    Cost,
    Example,
    Matrix,
    accumulator,
    check_weights,
    matmul,
    matrix,
    to_dense,
)
from jaxlab.core.registry import suggest
from jaxlab.kernels.low_rank_matmul import low_rank_matmul, wins
from jaxlab.methods.low_rank.factors import (
    Factors,
    Split,
    asvd_factorize,
    kfac_factorize,
    svd_factorize,
    whiten_factorize,
)
from jaxlab.methods.low_rank.lord import lord_factorize
from jaxlab.methods.low_rank.rank import breakeven_rank, check_rank, rank_from_ratio

_log = logging.getLogger(__name__)


class _Measured(NamedTuple):
    """What a decomposition may look at besides the weights."""

    gram: Gram | None
    gradient_gram: Gram | None
    cross: Cross | None
    center: bool
    alpha: float


def _svd(w: jax.Array, rank: int, m: _Measured, **how: Any) -> Factors:
    return svd_factorize(w, rank, **how)


def _lord(w: jax.Array, rank: int, m: _Measured, **how: Any) -> Factors:
    assert m.gram is not None
    # The bias is the layer's, and whoever says `center` corrects it.
    return lord_factorize(w, None, m.gram, rank, center=m.center, cross=m.cross, **how)[0]


def _asvd(w: jax.Array, rank: int, m: _Measured, **how: Any) -> Factors:
    assert m.gram is not None
    return asvd_factorize(w, m.gram.absmean, rank, m.alpha, **how)


def _whiten(w: jax.Array, rank: int, m: _Measured, **how: Any) -> Factors:
    assert m.gram is not None
    return whiten_factorize(w, m.gram, rank, **how)


def _kfac(w: jax.Array, rank: int, m: _Measured, **how: Any) -> Factors:
    assert m.gram is not None
    assert m.gradient_gram is not None
    return kfac_factorize(w, m.gram, m.gradient_gram, rank, **how)


class _Decomposition(NamedTuple):
    """A decomposition, what it cannot do without, and what it takes where there is some."""

    factorize: Callable[..., Factors]
    needs: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()


_DECOMPOSITIONS = {
    "svd": _Decomposition(_svd),
    "lord": _Decomposition(_lord, ("gram",), frozenset({"cross"})),
    "asvd": _Decomposition(_asvd, ("gram",)),
    "whiten": _Decomposition(_whiten, ("gram",)),
    "kfac": _Decomposition(_kfac, ("gram", "gradient_gram"), frozenset({"gradient_gram"})),
}


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
        bad=(
            {"rank": 0},
            {"rank": 9},
            {"ratio": 0.0},
            {},
            {"rank": 2, "ratio": 0.5},
            {"ratio": 0.5, "align": 0},
            {"rank": 2, "decomposition": "pca"},
            {"rank": 2, "decomposition": "lord"},
            {"rank": 2, "split": "left"},
        ),
    )
    CITE = """@article{eckart1936approximation,
  title={The approximation of one matrix by another of lower rank},
  author={Eckart, Carl and Young, Gale},
  journal={Psychometrika}, volume={1}, pages={211--218}, year={1936}
}
@misc{kaushal2023lord,
  title={LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression},
  author={Kaushal, Ayush and Vaidhya, Tejas and Rish, Irina},
  year={2023}, eprint={2309.14021}, archivePrefix={arXiv}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        rank: int | None = None,
        ratio: float | None = None,
        align: int = 1,
        decomposition: Literal["svd", "lord", "asvd", "whiten", "kfac"] | None = None,
        split: Split | None = None,
        alpha: float = 0.5,
        gram: Gram | None = None,
        center: bool = False,
        gradient_gram: Gram | None = None,
        cross: Cross | None = None,
        key: jax.Array | None = None,
    ) -> Self:
        """The nearest matrix of a given rank, or of the rank that `ratio` of the parameters buys.

        Args:
          w: (..., d_in, d_out), floating.
          rank: 1 to min(d_in, d_out); stores less than the dense matrix below
            d_in d_out / (d_in + d_out), and says so in the log above it.
          ratio: instead of `rank`, the kept fraction of parameters; in (0, 1].
          align: a rank that follows from `ratio` is rounded down to a multiple of it.
          decomposition: nearest in which sense. "svd": of the weights; "lord": of the layer's
            outputs on the inputs that `gram` describes; "asvd", "whiten": of the weights, scaled or
            rotated by the inputs; "kfac": of the loss, to second order. None is "lord" with
            a `gram`, else "svd".
          split: "orthonormal" columns of v transposed, or "balanced" factors, which train at the
            same scale. None is "orthonormal" for "lord" and "balanced" for the others.
          alpha: exponent of the scale of "asvd".
          gram: statistics of the kernel's inputs; a run's `calibrate.batches`, or
            `compress_calibrated`, supplies them, and the three to follow.
          center: whether the layer's bias makes up for the mean, so that "lord" need not.
          gradient_gram: statistics of the loss's gradients at the kernel's output, for "kfac".
          cross: moments of the inputs before and after the compression of other kernels, which
            "lord" then makes up for.
          key: unused; the decompositions are deterministic.

        Raises:
          ValueError: an argument is out of range, not exactly one of `rank` and `ratio` is given,
            or the decomposition's statistics are missing or do not fit.

        >>> W = LowRank.from_dense(jnp.ones((4, 6)), rank=1)
        >>> W.shape, W.nbytes
        ((4, 6), 40)
        """
        check_weights("low_rank", w)
        rank = _rank(w, rank, ratio, align)
        name = decomposition or ("svd" if gram is None else "lord")
        if name not in _DECOMPOSITIONS:
            raise ValueError(
                f"low_rank: decomposition={name!r} is unknown; {suggest(name, _DECOMPOSITIONS)}"
            )
        chosen = _DECOMPOSITIONS[name]
        measured = _Measured(gram, gradient_gram, cross, center, alpha)
        for missing in (need for need in chosen.needs if getattr(measured, need) is None):
            raise ValueError(
                f"low_rank: decomposition={name!r} needs {missing}, statistics of the layer: set "
                "calibrate.batches (in a phase: batches), or use compress_calibrated"
            )
        how = {} if split is None else {"split": split}
        # The functions are in the papers' layout, W: (d_out, d_in) and y = W x.
        found = chosen.factorize(_turned(w), rank, measured, **how)
        return cls(_turned(found["w1"]), _turned(found["w2"]))

    @classmethod
    def needs(cls, hyper: dict[str, Any]) -> frozenset[str]:
        """By the decomposition: gradients, or what the kernels before have changed."""
        chosen = _DECOMPOSITIONS.get(hyper.get("decomposition") or "lord")
        return chosen.takes if chosen else frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.u.shape[:-1], self.v.shape[-1])

    def to_dense(self) -> jax.Array:
        """`u @ v`, accumulated in float32 or better."""
        u, v = to_dense(self.u), to_dense(self.v)
        dense = jnp.matmul(u, v, precision="highest", preferred_element_type=accumulator(u.dtype))
        return dense.astype(u.dtype)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`(x @ u) @ v`, by a kernel where it was measured to win: there in reverse mode only."""
        u, v = self.u, self.v
        if isinstance(u, jax.Array) and isinstance(v, jax.Array) and wins(x, u, v):
            return low_rank_matmul(x, u, v)
        return matmul(matmul(x, u), v)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`(x @ v.T) @ u.T`."""
        return matmul(matmul(x, self.v.T), self.u.T)

    def cost(self, rows: int) -> Cost:
        """Two thin products."""
        d_in, d_out = self.shape[-2:]
        rank = self.u.shape[-1]
        moved = self.nbytes + rows * (d_in + 2 * rank + d_out) * self.dtype.itemsize
        return Cost(flops=2 * rows * rank * (d_in + d_out), bytes=moved)


def _rank(w: jax.Array, rank: int | None, ratio: float | None, align: int) -> int:
    if (rank is None) == (ratio is None):
        raise ValueError(f"low_rank: rank={rank} and ratio={ratio}; give one, e.g. ratio=0.5")
    d_in, d_out = w.shape[-2:]
    if rank is None:
        assert ratio is not None
        return rank_from_ratio(d_in, d_out, ratio, align)
    check_rank(w, rank)
    limit = breakeven_rank(d_in, d_out)
    if rank > limit and not isinstance(w, Tracer):
        # Logged, because a factored kernel at full rank is a legal start for training.
        _log.warning(
            "low_rank: rank=%d of a %d x %d kernel stores more than the dense one; it pays below "
            "%.6g, and low_rank_rules keeps such a kernel dense",
            *(rank, d_in, d_out, limit),
        )
    return rank


def _turned(w: jax.Array) -> jax.Array:
    return jnp.swapaxes(w, -1, -2)
