"""Monarch matrices as kernels: the two factors in the place of the dense array."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from jaxlab.core.gram import Gram, check_gram
from jaxlab.core.matrix import Cost, Example, Matrix, accumulator, check_weights, matrix, static
from jaxlab.core.registry import suggest
from jaxlab.kernels.monarch_matmul import monarch_matmul, takes_kernel
from jaxlab.methods.monarch.initialise import RANDOM_INITS, init_monarch
from jaxlab.methods.monarch.product import monarch_apply, monarch_apply_t
from jaxlab.methods.monarch.project import project_to_monarch
from jaxlab.methods.monarch.shape import MonarchShape, monarch_param_count, monarch_shapes
from jaxlab.methods.monarch.slices import monarch_to_dense


@matrix("monarch")
class Monarch(Matrix):
    """`to_dense()` is the transpose of `monarch_to_dense`: a kernel is (d_in, d_out).

    Two block-diagonal factors with a fixed permutation after each, w1: (..., k, q, p) on the input
    side and w2: (..., l, s, r) on the output side, k q = l r. Both are trained. What d_in and d_out
    leave of k p inputs and s l outputs is padding. If `blocked`, outputs are in the order of the
    blocks of w2 and not interleaved.
    """

    w1: jax.Array
    w2: jax.Array
    d_in: int = static()
    d_out: int = static()
    blocked: bool = static(default=False)

    # Output t l + j comes from row t of every block j, so consecutive outputs are rows of w2; and
    # slots of w2 follow the blocks of w1, so a split of the input goes through to its last axis.
    axes = {"w1": ("in", None, None), "w2": (None, "out", "in")}
    EXAMPLE = Example(
        shape=(8, 12),
        hyper={"nblocks": 2},
        bad=(
            {"nblocks": 0},
            {"nblocks": 9},
            {"k": 2, "l": 2},
            {"k": 2, "l": 2, "rank": 0},
            {"nblocks": 2, "k": 2, "l": 2, "rank": 1},
            {"nblocks": 2, "init": "nearest"},
            {"nblocks": 2, "gain": 2.0},
        ),
    )
    CITE = """@inproceedings{dao2022monarch,
  title={Monarch: Expressive Structured Matrices for Efficient and Accurate Training},
  author={Dao, Tri and Chen, Beidi and Sohoni, Nimit S and Desai, Arjun and Poli, Michael and
    Grogan, Jessica and Liu, Alexander and Rao, Aniruddh and Rudra, Atri and R{\\'e}, Christopher},
  booktitle={International Conference on Machine Learning}, year={2022}
}
@inproceedings{fu2023monarch,
  title={Monarch Mixer: A Simple Sub-Quadratic GEMM-Based Architecture},
  author={Fu, Daniel Y and Arora, Simran and Grogan, Jessica and Johnson, Isys and Eyuboglu, Sabri
    and Thomas, Armin W and Spector, Benjamin and Poli, Michael and Rudra, Atri and
    R{\\'e}, Christopher},
  booktitle={Advances in Neural Information Processing Systems}, year={2023}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        nblocks: int | None = None,
        k: int | None = None,
        l: int | None = None,  # noqa: E741
        rank: int | None = None,
        init: Literal["project", "variance_preserving", "official", "mup"] = "project",
        gain: float = 1.0,
        blocked: bool = False,
        gram: Gram | None = None,
        center: bool = False,
        sweeps: int = 4,
        key: jax.Array | None = None,
    ) -> Self:
        """The nearest Monarch matrix, or random factors of the same shape.

        Args:
          w: (..., d_in, d_out), floating.
          nblocks: blocks of either factor; 4 by default.
          k: instead of `nblocks`, blocks that split the input;
          l: blocks that split the output;
          rank: of each of the k l slices.
          init: "project" for the nearest; the others as in `init_monarch`, to train from scratch.
          gain: multiplies w2 of random factors.
          blocked: whether entry t of block j of w2 is output j s + t, and not t l + j as in the
            paper: another set of matrices, whose products take a pass over the outputs less.
          gram: statistics of the kernel's inputs, of a stack if `w` is one: "project" then
            minimises the error of the outputs. A run's `calibrate.batches`, or
            `compress_calibrated`, supplies them, and
          center: whether the layer's bias makes up for the mean, so that the factors need not.
          sweeps: with `gram`, how often the factors of each input block are solved for again.
          key: for random factors.

        Raises:
          ValueError: an argument is out of range, `w` is not finite (outside jit), or `key` is
            missing.

        >>> Monarch.from_dense(jnp.ones((16, 24)))
        Monarch(w1=float32[4, 4, 4], w2=float32[4, 6, 4], d_in=16, d_out=24, blocked=False)
        """
        check_weights("monarch", w)
        d_in, d_out = w.shape[-2:]
        shape = monarch_shapes(d_in, d_out, nblocks=nblocks, k=k, l=l, rank=rank)
        if init in _STARTS:
            how = {"gain": gain, "blocked": blocked, "sweeps": sweeps}
            params = _STARTS[init](w, shape, gram=gram, center=center, **how)
        elif init not in RANDOM_INITS:
            known = {*_STARTS, *RANDOM_INITS}
            raise ValueError(f"monarch: init={init!r} is unknown; {suggest(init, known)}")
        elif key is None:
            raise ValueError(f"monarch: init={init!r} needs a key; nearest without: 'project'")
        else:
            params = init_monarch(
                key, shape, init=init, gain=gain, dtype=w.dtype, stack=w.shape[:-2]
            )
        return cls(params["w1"], params["w2"], d_in, d_out, blocked)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.w1.shape[:-3], self.d_in, self.d_out)

    @property
    def sizes(self) -> MonarchShape:
        """Sizes of the factors."""
        (k, q, p), (l, s, r) = self.w1.shape[-3:], self.w2.shape[-3:]  # noqa: E741
        return MonarchShape(k, q, p, l, s, r, self.d_in, self.d_out)

    @property
    def params(self) -> dict[str, jax.Array]:
        """The factors as the functions of this package take them."""
        return {"w1": self.w1, "w2": self.w2}

    def to_dense(self) -> jax.Array:
        """The dense array, accumulated in float32 or better."""
        return jnp.swapaxes(monarch_to_dense(self.params, self.sizes, blocked=self.blocked), -1, -2)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W`: two batched products, rounded to x's dtype after each.

        Where a stored measurement says so, a kernel's: only reverse mode differentiates that.
        """
        if self._takes_kernel(x, transpose=False):
            return monarch_matmul(x, self.w1, self.w2, blocked=self.blocked)
        return monarch_apply(self.params, x, self.sizes, blocked=self.blocked)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W.T`: the same in reverse order."""
        if self._takes_kernel(x, transpose=True):
            return monarch_matmul(x, self.w1, self.w2, blocked=self.blocked, transpose=True)
        return monarch_apply_t(self.params, x, self.sizes, blocked=self.blocked)

    def _takes_kernel(self, x: jax.Array, *, transpose: bool) -> bool:
        fits = x.ndim > 0 and x.shape[-1] == (self.d_out if transpose else self.d_in)
        if not fits or self.w1.ndim != 3 or self.sizes.is_padded:
            return False
        return takes_kernel(x, self.w1, self.w2, blocked=self.blocked, transpose=transpose)

    def cost(self, rows: int) -> Cost:
        """Two batched products, the middle written and read once."""
        shape, itemsize = self.sizes, jnp.dtype(self.dtype).itemsize
        moved = self.nbytes + rows * (self.d_in + 2 * shape.mid + self.d_out) * itemsize
        return Cost(flops=2 * rows * monarch_param_count(shape), bytes=moved)

    @property
    def tile(self) -> tuple[int, int]:
        """What a shard holds at least: whole blocks of w1, and one row of each block of w2.

        Padded sides are not split: their blocks do not end where a shard would.
        """
        shape = self.sizes
        rows, columns = self.d_in, self.d_out
        if self.d_in == shape.k * shape.p:
            rows //= math.gcd(shape.k, shape.r)
        if self.d_out == shape.s * shape.l:
            columns = shape.l
        return rows, columns


def _nearest(
    w: jax.Array,
    shape: MonarchShape,
    *,
    gain: float,
    blocked: bool,
    gram: Gram | None,
    center: bool,
    sweeps: int,
) -> dict[str, jax.Array]:
    if gain != 1.0:
        raise ValueError(f"monarch: gain={gain} is for random factors; nearest: 1.0")
    if gram is not None:
        check_gram("monarch", gram, w.shape[-2], w.shape[:-2])

    whole = dataclasses.replace(shape, n_out=shape.s * shape.l) if blocked else shape

    def project(w, second):
        a = w.T
        if blocked:
            # Rows of the same block stand together; the projection has them interleaved.
            a = jnp.pad(a, ((0, whole.n_out - shape.n_out), (0, 0)))
            a = a.reshape(shape.l, shape.s, -1).swapaxes(0, 1).reshape(whole.n_out, -1)
        return project_to_monarch(a, whole, gram=second, sweeps=sweeps)[0]

    second: Any = None
    if gram is not None:
        second = gram.moment(center=center).astype(accumulator(w.dtype))
    if w.ndim == 2:
        return project(w, second)
    if second is not None:
        second = jnp.broadcast_to(second, (*w.shape[:-1], w.shape[-2]))
        second = second.reshape(-1, *second.shape[-2:])
    # One after another: the slices and Grams of a whole stack would not fit.
    flat = w.reshape(-1, *w.shape[-2:])
    found = jax.lax.map(lambda layer: project(*layer), (flat, second))
    return jax.tree.map(lambda x: x.reshape(*w.shape[:-2], *x.shape[1:]), found)


_STARTS: dict[str, Callable[..., dict[str, jax.Array]]] = {"project": _nearest}
