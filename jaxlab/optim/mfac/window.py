"""The dynamic form of M-FAC: a ring of the last m gradients and products with its inverse Fisher.

F = damp I + G^T G / m, where the rows of G are the gradients. With the Gram matrix K = G G^T and
A = damp m I + K, of m x m, the identities of Woodbury and of push-through are

    F^-1 x = (x - G^T A^-1 G x) / damp,        F^-1 G^T a = m G^T A^-1 a.

Source: E. Frantar, E. Kurtic, D. Alistarh, "M-FAC", NeurIPS 2021, section 3.2. The paper and its
code factor A by a recursion (`mfac_coefficients` has its numbers); Cholesky's has fewer steps in a
row. The paper's code preconditions every vector by the first identity; the second, which subtracts
nothing, keeps float32 exact to 1e-5 for a gradient of the window, if those are independent.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.core.varying import varied, varying
from jaxlab.optim.mfac.checks import check_count, check_damp, check_floating, check_row_dtype
from jaxlab.optim.mfac.compressed import SparseRows, dense_of, with_row
from jaxlab.optim.mfac.products import joined, row_combinations, row_products


class FisherWindow(NamedTuple):
    """A ring buffer of m gradients; rows that have not been written are 0.

    Attributes:
      rows: tree of the gradients' structure; each leaf (m, *shape), or `SparseRows`.
      gram: (m, m) inner products of the rows as they are stored.
      head: int32, where the next gradient goes.
      count: int32, gradients since the window began; past m they have replaced others.
    """

    rows: Any
    gram: jax.Array
    head: jax.Array
    count: jax.Array

    # One Gram matrix for all parameters: rows of some of them are no window (jaxlab.optim.carry).
    joint = True

    def held(self, alive_of: Callable[[str], jax.Array | None]) -> "FisherWindow":
        """The window of gradients that were 0 where a parameter, by its path, does not live."""

        def hold(path: Any, rows: Any) -> Any:
            alive = alive_of(path_str(path))
            if alive is None or alive.shape != rows.shape[1:]:
                return rows
            if isinstance(rows, SparseRows):
                return rows.where(alive)
            return jnp.where(alive[None], rows, jnp.zeros_like(rows))

        rows = jax.tree_util.tree_map_with_path(hold, self.rows, is_leaf=_is_sparse)
        return _with_own_gram(self._replace(rows=rows))


def window_init(m: int, like: Any, dtype: Any = jnp.float32, sharding: Any = None) -> FisherWindow:
    """An empty window.

    Args:
      m: gradients that it holds.
      like: number of parameters, or a tree of floating arrays (or their shapes).
      dtype: that rows are stored in; products accumulate in float32, or float64 for float64.
      sharding: of every leaf of the rows; None leaves it to JAX.

    Raises:
      ValueError: `m` is below 1, or an array or the dtype is not floating.

    >>> window_init(2, 3).rows.shape
    (2, 3)
    """
    check_count("m", m)
    check_row_dtype("dtype", dtype)
    if isinstance(like, int | np.integer):
        like = jax.ShapeDtypeStruct((int(like),), jnp.float32)
    check_floating(like)
    rows = jax.tree.map(lambda x: jnp.zeros((m, *x.shape), dtype, device=sharding), like)
    return empty_window(m, rows, dtype)


def empty_window(m: int, rows: Any, dtype: Any) -> FisherWindow:
    """A window around rows of zeros."""
    gram = jnp.zeros((m, m), accumulator(dtype))
    return FisherWindow(rows, gram, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def window_push(
    win: FisherWindow, g: Any, *, keep: jax.Array | None = None, axis_name: Any = None
) -> FisherWindow:
    """Writes a gradient over the oldest row. Donate the window: otherwise it is copied.

    Args:
      win: the window.
      g: tree of the gradient, rounded to the rows' dtype before anything else; one sparse row
        for each leaf where the window's rows are sparse.
      keep: where False, the window stays as it is; None is `is_row` of the gradient.
      axis_name: mesh axes that parameters are split over, inside `shard_map`.

    Raises:
      ValueError: a leaf of `g` has the wrong shape.

    >>> win = window_push(window_init(2, 2), jnp.array([3.0, 4.0]))
    >>> win.gram.tolist(), int(win.head), int(win.count)
    ([[25.0, 0.0], [0.0, 0.0]], 1, 1)
    """
    check_shapes(win, g)
    if keep is None:
        keep = is_row(win, g, axis_name)

    # In `shard_map`, rows that began as zeros are the same on all devices until written.
    rows = jax.tree.map(lambda rows, x: varied(rows, varying(x, keep, win.head)), win.rows, g)

    def written(rows, keep):
        def write(rows, x):
            if isinstance(rows, SparseRows):
                return rows.written(x, win.head, keep)
            return with_row(rows, x, win.head, keep)

        return jax.tree.map(write, rows, g, is_leaf=_is_sparse)

    # Fused with its readers, the row would be written once for each, into copies of the window. On
    # CPUs, with jax 0.10, only a branch keeps XLA from it; on GPUs the host would wait for what
    # decides a branch.
    rows = jax.lax.platform_dependent(
        rows,
        cpu=lambda rows: jax.lax.cond(keep, lambda: written(rows, True), lambda: rows),
        default=lambda rows: jax.lax.optimization_barrier(written(rows, keep)),
    )
    products = window_products(win._replace(rows=rows), _as_stored(win, g), axis_name)
    gram = win.gram.at[win.head, :].set(products).at[:, win.head].set(products)
    moved = keep.astype(jnp.int32)
    return FisherWindow(
        rows,
        jnp.where(keep, gram, win.gram),
        (win.head + moved) % win.gram.shape[0],
        win.count + moved,
    )


def is_row(win: FisherWindow, g: Any, axis_name: Any = None) -> jax.Array:
    """Whether a gradient is finite, and its square too: one of 1e30 has no Gram matrix."""
    total = win.gram.dtype
    xs = jax.tree.leaves(_as_stored(win, g))
    pairs = joined(list(zip(xs, xs, strict=True)), axis=0)
    squares = [jnp.sum(jnp.square(x.astype(total))) for x, _ in pairs]
    norm = functools.reduce(jnp.add, squares, jnp.zeros((), total))
    return jnp.isfinite(norm if axis_name is None else jax.lax.psum(norm, axis_name))


def precondition_row(
    win: FisherWindow,
    j: jax.Array | int,
    damp: jax.typing.ArrayLike,
    *,
    normaliser: str = "window",
) -> Any:
    """F^-1 times row j, by the identity without a subtraction: one pass over the window.

    Args:
      win: the window.
      j: the row, in [0, m); may be traced, and is then not checked.
      damp: the damping, above 0; may be traced.
      normaliser: "window" divides the sum of squares by m, as the paper's code does, also while
        rows are empty; "count" by the rows that have been written.

    Returns:
      Tree of the gradient's structure, in the dtype of the Gram matrix.

    Raises:
      ValueError: `damp` is not above 0, the normaliser is unknown, or there is no row j.

    >>> win = window_push(window_init(2, 2), jnp.array([0.0, 4.0]))
    >>> precondition_row(win, 0, 24.0).tolist()  # g m / (m damp + |g|^2)
    [0.0, 0.125]
    """
    size, m = divisor(win, normaliser), win.gram.shape[0]
    if not isinstance(j, Tracer) and not 0 <= j < m:
        raise ValueError(f"precondition_row: j={j} must be in [0, {m}), one of the window's rows")
    weights = size * inverse_column(win.gram, size * as_damping(damp, win), j)
    return window_combination(weights, win.rows)


def ihvp(
    win: FisherWindow,
    x: Any,
    damp: jax.typing.ArrayLike,
    *,
    normaliser: str = "window",
    axis_name: Any = None,
) -> Any:
    """F^-1 x for any x: linear and symmetric in x, so that it is its own transpose.

    Args:
      win: the window.
      x: tree of the gradient's structure.
      damp: the damping, above 0; may be traced. Where it is far below the squares of the
        gradients, the subtraction in float32 loses digits in the span of the window.
      normaliser: as of `precondition_row`.
      axis_name: mesh axes that parameters are split over, inside `shard_map`.

    Returns:
      Tree of the structure and the dtypes of `x`.

    Raises:
      ValueError: a leaf of `x` has the wrong shape, `damp` is not above 0, or the normaliser is
        unknown.

    >>> ihvp(window_init(2, 2), jnp.array([3.0, 4.0]), 0.5).tolist()  # nothing but the damping
    [6.0, 8.0]
    """
    check_shapes(win, x)
    size, damping = divisor(win, normaliser), as_damping(damp, win)
    weights = solve(win.gram, size * damping, window_products(win, x, axis_name))

    def subtract(x, y):
        return ((x.astype(y.dtype) - y) / damping.astype(y.dtype)).astype(x.dtype)

    return jax.tree.map(subtract, x, window_combination(weights, win.rows))


def solve(gram: jax.Array, shift: jax.Array, b: jax.Array) -> jax.Array:
    """(shift I + gram)^-1 b by Cholesky's factors."""
    return _by_factor(
        gram, shift, lambda factor: jax.scipy.linalg.cho_solve((factor, True), b.astype(gram.dtype))
    )


def inverse_column(gram: jax.Array, shift: jax.Array, j: jax.Array | int) -> jax.Array:
    """Column j of (shift I + gram)^-1, by one triangular system where `solve` has two.

    >>> inverse_column(jnp.diag(jnp.array([1.0, 3.0, 7.0])), jnp.array(1.0), 1).tolist()
    [0.0, 0.25, 0.0]
    """

    def last(factor: jax.Array) -> jax.Array:
        y = jnp.zeros_like(factor[0]).at[-1].set(1 / factor[-1, -1])
        return jax.scipy.linalg.solve_triangular(factor, y, trans=1, lower=True)

    # With row j as the last, L y = e_j has y = e_j / L_jj.
    return jnp.roll(_by_factor(jnp.roll(gram, -(j + 1), (0, 1)), shift, last), j + 1)


def _by_factor(
    gram: jax.Array, shift: jax.Array, solved: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """What Cholesky's factor of shift I + gram solves.

    In float32 the factorisation fails for nearly parallel gradients if the shift is some 1e7 times
    smaller than their squares. Then the diagonal is raised by the root of the rounding error, which
    balances what rounding and what the change costs. The first factor is used before it is known to
    be finite, so that a GPU's host waits only afterwards.
    """
    matrix = gram + shift * jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jnp.linalg.cholesky(matrix, symmetrize_input=False)
    is_good = jnp.all(jnp.isfinite(jnp.diag(factor)))
    # What is not chosen must be finite, too: a derivative passes through both.
    x = solved(jnp.where(is_good, factor, jnp.eye(gram.shape[0], dtype=gram.dtype)))

    def raised() -> jax.Array:
        share = float(jnp.finfo(gram.dtype).eps) ** 0.5
        return solved(jnp.linalg.cholesky(matrix + share * jnp.diag(jnp.diag(matrix))))

    return jax.lax.cond(is_good, lambda: x, raised)


def window_products(win: FisherWindow, x: Any, axis_name: Any = None) -> jax.Array:
    """G x: the inner products of every row with x, (m,)."""
    leaves = jax.tree.leaves(win.rows, is_leaf=_is_sparse), jax.tree.leaves(x)
    pairs = list(zip(*leaves, strict=True))
    parts = [rows.products(x) for rows, x in pairs if isinstance(rows, SparseRows)]
    dense = joined([pair for pair in pairs if not _is_sparse(pair[0])])
    parts += [row_products(rows, x) for rows, x in dense]
    total = functools.reduce(jnp.add, parts, jnp.zeros_like(win.gram[0]))
    return total if axis_name is None else jax.lax.psum(total, axis_name)


@jax.jit
def _with_own_gram(win: FisherWindow) -> FisherWindow:
    # Row by row, as a push does it: a second window would not fit beside the first.
    def products(i: jax.Array) -> jax.Array:
        def row(rows: Any) -> jax.Array:
            return rows.dense(i) if isinstance(rows, SparseRows) else rows[i]

        return window_products(win, jax.tree.map(row, win.rows, is_leaf=_is_sparse))

    return win._replace(gram=jax.lax.map(products, jnp.arange(win.gram.shape[0])))


def window_combination(weights: jax.Array, rows: Any) -> Any:
    """G^T weights: a tree of the gradient's structure."""
    leaves, tree = jax.tree.flatten(rows, is_leaf=_is_sparse)
    dense = iter(row_combinations(weights, [x for x in leaves if not _is_sparse(x)]))
    return tree.unflatten(
        [x.combination(weights) if _is_sparse(x) else next(dense) for x in leaves]
    )


def divisor(win: FisherWindow, normaliser: str) -> jax.Array:
    """What the sum of squares is divided by, as a float of the Gram matrix's dtype."""
    check_normaliser(normaliser)
    return jnp.asarray(NORMALISERS[normaliser](win), win.gram.dtype)


NORMALISERS: dict[str, Callable[[FisherWindow], Any]] = {
    "window": lambda win: win.gram.shape[0],
    "count": lambda win: jnp.clip(win.count, 1, win.gram.shape[0]),
}


def check_normaliser(normaliser: str) -> None:
    """Raises a ValueError unless there is such a divisor."""
    if normaliser not in NORMALISERS:
        raise ValueError(f"mfac: normaliser={normaliser!r}; {suggest(normaliser, NORMALISERS)}")


def as_damping(damp: jax.typing.ArrayLike, win: FisherWindow) -> jax.Array:
    """The damping in the Gram matrix's dtype, checked unless it is traced."""
    check_damp("mfac", damp)
    return jnp.asarray(damp).astype(win.gram.dtype)


def check_shapes(win: FisherWindow, x: Any) -> None:
    """Raises a ValueError unless x has the structure and the shapes of a row."""
    expected = {p: r.shape[1:] for p, r in leaf_paths(win.rows, is_leaf=_is_sparse).items()}
    actual = {
        p: y.shape[1:] if _is_sparse(y) else y.shape
        for p, y in leaf_paths(x, is_leaf=_is_sparse).items()
    }
    if expected != actual:
        raise ValueError(f"mfac: shapes {actual} are not those of the window's rows, {expected}")


def _is_sparse(x: Any) -> bool:
    return isinstance(x, SparseRows)


def _as_stored(win: FisherWindow, g: Any) -> Any:
    # Products with an unrounded row would not make a Gram matrix.
    def stored(rows, x):
        return dense_of(x) if isinstance(x, SparseRows) else x.astype(rows.dtype)

    return jax.tree.map(stored, win.rows, g, is_leaf=_is_sparse)
