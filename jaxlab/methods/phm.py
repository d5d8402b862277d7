"""Parametrised hypercomplex multiplication: a sum of n Kronecker products.

Sources: A. Zhang et al., "Beyond Fully-Connected Layers with Quaternions: Parameterization of
Hypercomplex Multiplications with 1/n Parameters", ICLR 2021; C. Van Loan and N. Pitsianis,
"Approximation with Kronecker Products", 1993, for the nearest such sum.

Differs from the paper: kernels are (d_in, d_out) here, so that the tables are transposed.
"""

from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Cost, Example, Matrix, accumulator, check_weights, matrix
from jaxlab.core.registry import suggest


def phm_to_dense(a: jax.Array, s: jax.Array) -> jax.Array:
    """`sum_i a_i (x) s_i`, the Kronecker product.

    Args:
      a: (..., n, n, n), the tables.
      s: (..., n, p, q), the weights.

    Returns:
      (..., n p, n q), in the dtype of `s`, accumulated in float32 or better.

    >>> phm_to_dense(jnp.ones((1, 1, 1)), jnp.ones((1, 2, 3))).shape
    (2, 3)
    """
    wide = accumulator(s.dtype)
    factors = a.astype(wide), s.astype(wide)
    tiles = jnp.einsum("...ijk,...ipq->...jpkq", *factors, precision="highest")
    *stack, n, p, _, q = tiles.shape
    return tiles.reshape(*stack, n * p, n * q).astype(s.dtype)


def phm_apply(a: jax.Array, s: jax.Array, x: jax.Array) -> jax.Array:
    """`x @ phm_to_dense(a, s)` without forming that matrix.

    Multiplies as often as the dense product: the form saves parameters, not FLOPs.

    Args:
      a: (n, n, n).
      s: (n, p, q).
      x: (..., n p), floating; what follows is in its dtype.

    Returns:
      (..., n q).

    >>> phm_apply(jnp.ones((1, 1, 1)), jnp.ones((1, 2, 3)), jnp.ones((4, 2))).shape
    (4, 3)
    """
    n, p, q = s.shape
    a, s = a.astype(x.dtype), s.astype(x.dtype)
    parts = x.reshape(*x.shape[:-1], n, p)
    # What lies between the two products is n times as wide as the side that is mixed.
    if p <= q:
        mixed = jnp.einsum("...jp,ijk->...kip", parts, a)
        y = jnp.einsum("...kip,ipq->...kq", mixed, s)
    else:
        mixed = jnp.einsum("...jp,ipq->...ijq", parts, s)
        y = jnp.einsum("...ijq,ijk->...kq", mixed, a)
    return y.reshape(*x.shape[:-1], n * q)


def hamilton_tables(dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """The tables with which `x @ W` is the product of quaternions `s x`.

    Returns:
      (4, 4, 4): the component c of i_a times i_b is `tables[a, b, c]`, of 1, i, j, k.

    >>> hamilton_tables()[1, 2].tolist()  # i j = k
    [0.0, 0.0, 0.0, 1.0]
    """
    product = [
        [(1, 0), (1, 1), (1, 2), (1, 3)],
        [(1, 1), (-1, 0), (1, 3), (-1, 2)],
        [(1, 2), (-1, 3), (-1, 0), (1, 1)],
        [(1, 3), (1, 2), (-1, 1), (-1, 0)],
    ]
    rows = [[[s if c == unit else 0 for c in range(4)] for s, unit in row] for row in product]
    return jnp.array(rows, dtype)


def rearrange(w: jax.Array, n: int) -> jax.Array:
    """The matrix whose distance to one of rank n is that of `w` to a sum of n Kronecker products.

    Args:
      w: (..., n p, n q).
      n: size of the left factors.

    Returns:
      (..., n n, p q): a row for each n x n position, with the block that stands there.
    """
    *stack, d_in, d_out = w.shape
    tiles = w.reshape(*stack, n, d_in // n, n, d_out // n)
    return jnp.swapaxes(tiles, -3, -2).reshape(*stack, n * n, -1)


def nearest_phm(w: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The sum of n Kronecker products nearest to `w` in the Frobenius norm, balanced.

    Args:
      w: (..., n p, n q), floating; decomposed in float32 or better.
      n: number of products, and size of the tables.

    Returns:
      `(a, s)` of shapes (..., n, n, n) and (..., n, p, q). A term that `w` does not need has a
      table of norm 1 and no weights, so that it can still be trained.

    >>> a, s = nearest_phm(jnp.eye(4), 2)
    >>> bool(jnp.allclose(phm_to_dense(a, s), jnp.eye(4), atol=1e-6))
    True
    """
    *stack, d_in, d_out = w.shape
    wide = rearrange(w.astype(accumulator(w.dtype)), n)
    left, sigma, right = jnp.linalg.svd(wide, full_matrices=False)
    missing = max(n - sigma.shape[-1], 0)
    if missing:  # fewer entries in a block than terms: the rest have tables that are there already
        sigma = jnp.concatenate([sigma, jnp.zeros_like(sigma[..., :1].repeat(missing, -1))], -1)
        left = jnp.concatenate([left, left[..., :1].repeat(missing, -1)], -1)
        right = jnp.concatenate([right, right[..., :1, :].repeat(missing, -2)], -2)
    left, sigma, right = left[..., :n], sigma[..., :n], right[..., :n, :]
    # Two factors that are both zero would never move.
    needed = sigma > n * n * jnp.finfo(sigma.dtype).eps * sigma[..., :1]
    scale = jnp.where(needed, jnp.sqrt(sigma), jnp.ones_like(sigma))
    a = jnp.swapaxes(left * scale[..., None, :], -1, -2).reshape(*stack, n, n, n)
    s = ((sigma / scale)[..., None] * right).reshape(*stack, n, d_in // n, d_out // n)
    return a.astype(w.dtype), s.astype(w.dtype)


@matrix("phm")
class PHM(Matrix):
    """`to_dense() = sum_i a_i (x) s_i`, where the tables `a` are `learned` or `fixed`.

    learned, fixed: (..., n, n, n), one of them None; s: (..., n, d_in / n, d_out / n).
    """

    learned: jax.Array | None
    fixed: jax.Array | None
    s: jax.Array

    frozen = ("fixed",)
    axes = {"learned": (None,) * 3, "fixed": (None,) * 3, "s": (None, "in", "out")}
    EXAMPLE = Example(
        shape=(16, 24),
        hyper={"n": 4},
        bad=(
            {"n": 0},
            {"n": 3},
            {"n": 2, "tables": "hamilton"},
            {"tables": "octonion"},
            {"init": "nearest"},
        ),
    )
    CITE = """@inproceedings{zhang2021beyond,
  title={Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex
    Multiplications with $1/n$ Parameters},
  author={Zhang, Aston and Tay, Yi and Zhang, Shuai and Chan, Alvin and Luu, Anh Tuan and
    Hui, Siu Cheung and Fu, Jie},
  booktitle={ICLR}, year={2021}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        n: int = 4,
        tables: str = "learned",
        init: str = "project",
        key: jax.Array | None = None,
    ) -> Self:
        """The nearest sum of n Kronecker products, or a random one.

        Args:
          w: (..., d_in, d_out), floating.
          n: divides both; stores 1/n of the dense parameters and n^3 for the tables.
          tables: "learned", or "hamilton": those of quaternions, never trained, n = 4.
          init: "project" is nearest to `w` (with fixed tables, by least squares); "random" draws
            tables xavier-uniform, and weights so that entries of W have variance 1 / d_in, and
            takes no more than the shape of `w`.
          key: for "random".

        Raises:
          ValueError: `n` does not divide or does not fit the tables, `tables` or `init` is
            unknown, or a key is missing.

        >>> PHM.from_dense(jnp.ones((8, 12)), n=4, tables="hamilton").s.shape
        (4, 2, 3)
        """
        check_weights("phm", w)
        d_in, d_out = w.shape[-2:]
        for name, value, known in (("tables", tables, _TABLES), ("init", init, _INITS)):
            if value not in known:
                raise ValueError(f"phm: {name}={value!r} is unknown; {suggest(value, known)}")
        if n < 1 or d_in % n or d_out % n:
            legal = [k for k in range(1, min(d_in, d_out) + 1) if d_in % k == d_out % k == 0]
            raise ValueError(
                f"phm: n={n} must divide both axes of a kernel of {d_in} x {d_out}; nearest: "
                f"{min(legal, key=lambda k: abs(k - n))}"
            )
        make = _TABLES[tables]
        a = None if make is None else make(w.dtype)
        if a is not None and len(a) != n:
            raise ValueError(f"phm: n={n} does not fit tables={tables!r}; nearest: n={len(a)}")
        if a is not None:
            a = jnp.broadcast_to(a, (*w.shape[:-2], *a.shape))
        learned, s = _INITS[init](w, n, a, key)
        return cls(learned, a, s)

    @property
    def tables(self) -> jax.Array:
        """(..., n, n, n), whichever they are."""
        found = self.learned if self.fixed is None else self.fixed
        assert found is not None
        return found

    @property
    def dtype(self):
        """That of the weights."""
        return self.s.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        *stack, n, p, q = self.s.shape
        return (*stack, n * p, n * q)

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds the same part of each of the n weights."""
        n = self.s.shape[-3]
        return n, n

    def to_dense(self) -> jax.Array:
        """The sum, accumulated in float32 or better."""
        return phm_to_dense(self.tables, self.s)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """Two products, with the tables and with the weights."""
        return phm_apply(self.tables, self.s, x)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """The same with everything transposed, as a Kronecker product's transpose is."""
        return phm_apply(self.tables.mT, self.s.mT, x)

    def cost(self, rows: int) -> Cost:
        """A dense product's FLOPs and the mixing's, with fewer bytes read."""
        d_in, d_out = self.shape[-2:]
        n = self.s.shape[-3]
        moved = self.nbytes + rows * (d_in + d_out) * self.dtype.itemsize
        return Cost(flops=2 * rows * (d_in * d_out + n * n * min(d_in, d_out)), bytes=moved)


def _project(
    w: jax.Array, n: int, a: jax.Array | None, key: jax.Array | None
) -> tuple[jax.Array | None, jax.Array]:
    if a is None:
        return nearest_phm(w, n)
    wide = accumulator(w.dtype)
    *stack, d_in, d_out = w.shape
    columns = jnp.swapaxes(a.astype(wide).reshape(*stack, n, n * n), -1, -2)
    # Least squares by the normal equations: the tables are few, and orthogonal where they are good.
    gram = columns.mT @ columns
    s = jnp.linalg.solve(gram, columns.mT @ rearrange(w.astype(wide), n))
    return None, s.reshape(*stack, n, d_in // n, d_out // n).astype(w.dtype)


def _draw(
    w: jax.Array, n: int, a: jax.Array | None, key: jax.Array | None
) -> tuple[jax.Array | None, jax.Array]:
    if key is None:
        raise ValueError("phm: init='random' needs a key; nearest: init='project'")
    *stack, d_in, d_out = w.shape
    of_tables, of_weights = jax.random.split(key)
    wide = accumulator(w.dtype)
    # Xavier for n x n tables: variance 2 / (n + n).
    bound = (3 / n) ** 0.5
    learned = jax.random.uniform(of_tables, (*stack, n, n, n), wide, -bound, bound)
    # n terms of variance Var(a) Var(s) each; of fixed tables the mean square stands for Var(a).
    variance = 1 / n if a is None else jnp.mean(jnp.square(a.astype(wide)))
    deviation = jnp.sqrt(jnp.asarray(1 / (n * variance * d_in), wide))
    s = deviation * jax.random.normal(of_weights, (*stack, n, d_in // n, d_out // n), wide)
    return None if a is not None else learned.astype(w.dtype), s.astype(w.dtype)


_TABLES: dict[str, Callable[..., jax.Array] | None] = {
    "learned": None,
    "hamilton": hamilton_tables,
}
_INITS: dict[str, Callable[..., tuple[jax.Array | None, jax.Array]]] = {
    "project": _project,
    "random": _draw,
}
