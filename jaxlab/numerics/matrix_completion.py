"""Matrix completion: a matrix of low rank from some of its entries, by alternating minimisation.

Sources: P. Jain, P. Netrapalli, S. Sanghavi, "Low-rank Matrix Completion using Alternating
Minimization", STOC 2013 (algorithm and start); Y. Gu, Z. Song, J. Yin, L. Zhang, "Low Rank Matrix
Completion via Robust Alternating Minimization in Nearly Linear Time", ICLR 2024 (regressions need
be solved approximately only, which takes O(|Omega| k) instead of O(|Omega| k^2)).

Differs from them: all entries serve every iteration, none are set aside; the start's singular
vectors come from subspace iteration on the entries, and no m x n array is ever formed; the
approximate solver is the method of conjugate gradients and does not sketch.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.ops import segment_sum

from jaxlab.core.registry import suggest

_START_ITERS = 20


def complete(
    rows: jax.Array,
    cols: jax.Array,
    vals: jax.Array,
    shape: tuple[int, int],
    rank: int,
    *,
    iters: int = 30,
    solver: str = "exact",
    cg_iters: int = 10,
    mu: float = 2.0,
) -> tuple[jax.Array, jax.Array]:
    """Factors of a matrix of rank k that is `vals` at (rows, cols).

    An entry that is given twice is two observations: the regressions weigh it twice, towards the
    mean of its values. Rows and columns without an entry come out as zeros.

    Args:
      rows: (e,), integers in [0, m).
      cols: (e,), integers in [0, n).
      vals: (e,), float32 or float64; computed in its dtype. May be mapped over with `jax.vmap`.
      shape: (m, n); static.
      rank: k; static.
      iters: alternations, each solving for v and then for u; static.
      solver: "exact" by Cholesky of every k x k system, in O(e k^2) time and memory; "cg" by
        conjugate gradients from the last solution, in O(e k) memory and O(e k cg_iters) time.
      cg_iters: of "cg"; k of them are exact but for rounding.
      mu: incoherence: a row of the start longer than 2 mu sqrt(k / m) is cut to that length.

    Returns:
      `(u, v)` of shapes (m, k) and (n, k): the matrix is `u @ v.T`, and v has orthonormal columns.

    Raises:
      TypeError: indices are not integers, or values are not float32 or float64.
      ValueError: lengths differ, `rank`, `iters`, `cg_iters` or `mu` is out of range, `solver` is
        unknown, or (outside jit) an index is; under jit such an entry is wrongly placed or dropped.

    >>> table = jnp.outer(jnp.arange(1.0, 4), jnp.arange(1.0, 4))
    >>> rows, cols = jnp.array([0, 0, 0, 1, 1, 2, 2]), jnp.array([0, 1, 2, 0, 1, 0, 1])
    >>> u, v = complete(rows, cols, table[rows, cols], (3, 3), 1)
    >>> round(float((u @ v.T)[2, 2]), 3)
    9.0
    """
    rows, cols, vals = (jnp.asarray(x) for x in (rows, cols, vals))
    _check(rows, cols, vals, shape, rank, iters, solver, cg_iters, mu)
    limit = 2 * mu * (rank / shape[0]) ** 0.5
    return _complete(rows, cols, vals, (shape[0], shape[1]), rank, iters, solver, cg_iters, limit)


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _complete(
    rows: jax.Array,
    cols: jax.Array,
    vals: jax.Array,
    shape: tuple[int, int],
    rank: int,
    iters: int,
    solver: str,
    cg_iters: int,
    limit: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    n = shape[1]
    solve = partial(_SOLVERS[solver], cg_iters=cg_iters)

    def alternate(carry: tuple[jax.Array, jax.Array], _: None):
        u, v = carry
        # The product stays as it is when a factor is orthonormalised: each solve begins there.
        u, left = jnp.linalg.qr(u)
        v, right = jnp.linalg.qr(solve(u[rows], cols, vals, v @ left.T))
        return (solve(v[cols], rows, vals, u @ right.T), v), None

    start = _start(rows, cols, vals, shape, rank, limit)
    factors, _ = jax.lax.scan(alternate, (start, jnp.zeros((n, rank), vals.dtype)), length=iters)
    return factors


def _start(
    rows: jax.Array,
    cols: jax.Array,
    vals: jax.Array,
    shape: tuple[int, int],
    rank: int,
    limit: jax.typing.ArrayLike,
) -> jax.Array:
    """The top left singular vectors of the zero-filled matrix, long rows cut: (m, k).

    The matrix is usually scaled by m n / |Omega|, which does not change these vectors.
    """
    m, n = shape
    # Any generic subspace will do, and one that is always the same makes the result a function.
    u = jax.random.normal(jax.random.key(0), (m, rank), vals.dtype)

    def power(u: jax.Array, _: None):
        v = jnp.linalg.qr(segment_sum(vals[:, None] * u[rows], cols, n))[0]
        return jnp.linalg.qr(segment_sum(vals[:, None] * v[cols], rows, m))[0], None

    u, _ = jax.lax.scan(power, u, length=_START_ITERS)
    length = jnp.linalg.norm(u, axis=1, keepdims=True)
    longest = jnp.asarray(limit, u.dtype)
    return u * (longest / jnp.maximum(length, longest))


def _ridge(trace: jax.Array, rank: int) -> jax.Array:
    """1e-8 tr / k, more where the dtype cannot tell that from 0; 1 where nothing was observed."""
    factor = max(1e-8, 4 * rank * float(jnp.finfo(trace.dtype).eps))
    return jnp.where(trace > 0, factor / rank * trace, jnp.ones_like(trace))


def _exact(
    known: jax.Array, index: jax.Array, vals: jax.Array, begin: jax.Array, cg_iters: int
) -> jax.Array:
    """Solves for every row w_j of a factor: `known[e] . w_j = vals[e]` over the e with index j.

    Args:
      known: (e, k), the other factor's rows.
      index: (e,), in [0, n).
      vals: (e,).
      begin: (n, k), of which only the shape matters.
      cg_iters: unused.
    """
    n, k = begin.shape
    gram = segment_sum(known[:, :, None] * known[:, None, :], index, n)
    right = segment_sum(vals[:, None] * known, index, n)
    ridge = _ridge(jnp.trace(gram, axis1=1, axis2=2), k)
    gram = gram + ridge[:, None, None] * jnp.eye(k, dtype=gram.dtype)[None]
    factor = jnp.linalg.cholesky(gram)
    return jax.scipy.linalg.cho_solve((factor, True), right[..., None])[..., 0]


def _conjugate_gradients(
    known: jax.Array, index: jax.Array, vals: jax.Array, begin: jax.Array, cg_iters: int
) -> jax.Array:
    """As `_exact`, by `cg_iters` steps from `begin` for all rows at once; forms no k x k system."""
    n, k = begin.shape
    ridge = _ridge(segment_sum(jnp.sum(known**2, 1), index, n), k)[:, None]

    def normal(w: jax.Array) -> jax.Array:
        products = jnp.sum(known * w[index], axis=1, keepdims=True)
        return segment_sum(known * products, index, n) + ridge * w

    def over(a: jax.Array, b: jax.Array) -> jax.Array:
        # A row that has converged stays.
        return jnp.where(b > 0, a / jnp.where(b > 0, b, jnp.ones_like(b)), jnp.zeros_like(a))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array], _: None):
        w, residual, direction, size = carry
        image = normal(direction)
        alpha = over(size, jnp.sum(direction * image, axis=1, keepdims=True))
        w, residual = w + alpha * direction, residual - alpha * image
        later = jnp.sum(residual**2, axis=1, keepdims=True)
        return (w, residual, residual + over(later, size) * direction, later), None

    residual = segment_sum(vals[:, None] * known, index, n) - normal(begin)
    size = jnp.sum(residual**2, axis=1, keepdims=True)
    (w, *_), _ = jax.lax.scan(step, (begin, residual, residual, size), length=cg_iters)
    return w


_SOLVERS: dict[str, Callable[..., jax.Array]] = {"exact": _exact, "cg": _conjugate_gradients}


def _check(
    rows: jax.Array,
    cols: jax.Array,
    vals: jax.Array,
    shape: tuple[int, int],
    rank: int,
    iters: int,
    solver: str,
    cg_iters: int,
    mu: float,
) -> None:
    for name, index in (("rows", rows), ("cols", cols)):
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise TypeError(f"complete: {name} are {index.dtype}; nearest: int32")
    if vals.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"complete: vals are {vals.dtype}; nearest: float32")
    if vals.ndim != 1 or not rows.shape == cols.shape == vals.shape or not vals.size:
        raise ValueError(
            f"complete: rows {rows.shape}, cols {cols.shape} and vals {vals.shape} must be of one "
            "length, 1 or more"
        )
    if solver not in _SOLVERS:
        raise ValueError(f"complete: solver={solver!r} is unknown; {suggest(solver, _SOLVERS)}")
    most = min(shape)
    if not 1 <= rank <= most:
        raise ValueError(
            f"complete: rank={rank} must be in [1, {most}] for {shape[0]} x {shape[1]}; nearest: "
            f"{min(max(rank, 1), most)}"
        )
    for name, value in (("iters", iters), ("cg_iters", cg_iters)):
        if value < 1:
            raise ValueError(f"complete: {name}={value} must be 1 or more; nearest: 1")
    if mu < 1:
        raise ValueError(f"complete: mu={mu} must be 1 or more; nearest: 1")
    for axis, (name, index) in enumerate((("rows", rows), ("cols", cols))):
        if isinstance(index, Tracer):
            continue
        # In NumPy: under jit even JAX's minimum of a constant is traced.
        known = np.asarray(index)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= shape[axis]:
            raise ValueError(
                f"complete: {name} are {low} to {high} and must be in [0, {shape[axis] - 1}]; "
                f"nearest: {max(low, 0)} to {min(high, shape[axis] - 1)}"
            )
