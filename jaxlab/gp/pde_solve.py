"""The grid values that maximise GP-HM's log joint for given kernels: no optimizer, least squares.

With C = W W^T and u = W z the density's terms in u are |z|^2 + |M z - b|^2, with rows for weighted
boundary values and the weighted equation. A linear equation takes one least squares problem, others
several (Gauss-Newton). In one dimension it is solved by QR of [M; I], which does not square M's
condition number; in more by conjugate gradients on I + M^T M, in the eigenvectors of each C_d:
there derivatives are nearly diagonal, and the exact diagonal is the preconditioner.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.gp.grid_process import Solution, along, covariance
from jaxlab.gp.pde import GPHMConfig, Params, check_params, gphm_solution, second_config
from jaxlab.gp.pde_problem import Problem
from jaxlab.gp.spectral import kernel_matrix
from jaxlab.kron.iterative import conjugate_gradients

# By None or a derivative (axis, order): the matrix of each axis that takes z to u or to it.
_Maps = dict[tuple[int, int] | None, tuple[jax.Array, ...]]


class _Rows(NamedTuple):
    """The rows of M and b: those of the boundary's values, and those of the equation.

    Attributes:
      imposed: booleans of the grid's shape, where there is a row of the boundary.
      at_boundary: what its rows are multiplied with, 0 elsewhere.
      boundary: its right side.
      slopes: of the equation, by u (None) and its derivatives.
      target: its right side.
    """

    imposed: np.ndarray
    at_boundary: jax.Array
    boundary: jax.Array
    slopes: Mapping[Any, jax.Array]
    target: jax.Array


@dataclasses.dataclass(frozen=True)
class Solver:
    """How grid values are found.

    Attributes:
      newton_steps: of an equation that is not linear, from u = 0.
      iterations: of conjugate gradients, at most.
      tolerance: they end when the residual is so much smaller than the right side.
    """

    newton_steps: int = 5
    iterations: int = 500
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        for name in ("newton_steps", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


def with_solution(
    params: Params, problem: Problem, cfg: GPHMConfig | None = None, solver: Solver | None = None
) -> dict[str, Any]:
    """Parameters with the best grid values "u" where they have none.

    The log joint's gradient with respect to the kernels is then that of its maximum over u: at the
    maximum the derivative with respect to u is 0, and so u is a constant here.

    Args:
      params: as for `gphm_log_joint`, without "u"; a second process is fitted to what the first
        leaves.
      problem: the problem.
      cfg: settings of the model; the defaults if None.
      solver: settings of the solver; the defaults if None.

    Returns:
      The parameters, with "u"; and with "unsolved", what conjugate gradients left of the last
      system relative to its right side: above the tolerance, u is not at the maximum.

    Raises:
      ValueError: shapes or settings do not fit, or the parameters are float32.
    """
    cfg = cfg or GPHMConfig()
    check_params(params, problem, cfg)
    return _with_solution(params, problem, cfg, solver or Solver(), None)


def _with_solution(
    params: Params, problem: Problem, cfg: GPHMConfig, solver: Solver, fixed: Solution | None
) -> dict[str, Any]:
    if "second" in params:
        first = _with_solution(params["first"], problem, cfg, solver, fixed)
        fixed = jax.lax.stop_gradient(gphm_solution(first, problem, cfg))
        second = _with_solution(params["second"], problem, second_config(cfg), solver, fixed)
        return {"first": first, "second": second}
    if "u" in params:
        return dict(params)
    constant = jax.lax.stop_gradient(params)
    u, unsolved = _best_u(constant, problem, cfg, solver, fixed)
    return {**params, "u": u, "unsolved": unsolved}


def _best_u(
    params: Params, problem: Problem, cfg: GPHMConfig, solver: Solver, fixed: Solution | None
) -> tuple[jax.Array, jax.Array]:
    maps = _whitened(params, problem, cfg)
    log_tau, log_v = (
        jnp.minimum(params[name], cfg.largest_log_precision) for name in ("log_tau", "log_v")
    )
    dtype = log_v.dtype
    at_boundary = jnp.sqrt(
        cfg.boundary_weight * jnp.exp(log_tau) * jnp.asarray(problem.weights, dtype)
    )
    inside = jnp.exp(0.5 * log_v)
    known = jnp.zeros(problem.shape, dtype) if fixed is None else fixed.u
    derivatives = {key: jnp.zeros_like(known) for key in problem.orders}
    derivatives = derivatives if fixed is None else fixed.derivatives
    boundary = at_boundary * (jnp.asarray(problem.boundary, dtype) - known)

    def step(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        now = {key: _apply(matrices, z) for key, matrices in maps.items()}
        u = known + now[None]
        found = {key: derivatives[key] + now[key] for key in derivatives}
        residual, slopes = _linearised(problem, u, found)
        slopes = {key: inside * slope for key, slope in slopes.items()}
        target = -inside * residual
        for key, slope in slopes.items():
            target = target + slope * now[key]
        least = _LEAST_SQUARES[min(len(problem.axes), 2)]
        rows = _Rows(problem.weights > 0, at_boundary, boundary, slopes, target)
        return least(maps, rows, z, solver)

    z = jnp.zeros(problem.shape, dtype)
    z, unsolved = jax.lax.scan(step, z, length=1 if problem.linear else solver.newton_steps)
    return _apply(maps[None], z), unsolved[-1]


def _linearised(problem: Problem, u: jax.Array, found: Mapping[tuple[int, int], jax.Array]) -> Any:
    """The residual, and its derivatives with respect to u (None) and the derivatives of u.

    An operator acts cell by cell, so the gradient of the residual's sum has them all.
    """

    def total(u: jax.Array, found: Mapping[tuple[int, int], jax.Array]) -> Any:
        residual = problem.residual(u, found)
        return jnp.sum(residual), residual

    (_, residual), slopes = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(u, found)
    return residual, {None: slopes[0], **slopes[1]}


def _whitened(params: Params, problem: Problem, cfg: GPHMConfig) -> _Maps:
    root = _ROOTS[min(len(problem.axes), 2)]
    roots, duals = [], []
    for part, x in zip(params["kernels"], problem.axes, strict=True):
        w, dual = root(covariance(part, x, cfg.envelope, cfg.jitter))
        roots.append(w)
        duals.append(dual)
    # K_e C_e^-1 W_e of the other axes.
    others = [
        w - cfg.jitter * d if cfg.exact_mean else w for w, d in zip(roots, duals, strict=True)
    ]
    maps: _Maps = {None: tuple(roots)}
    for axis, order in problem.orders:
        part, x = params["kernels"][axis], problem.axes[axis]
        matrix = kernel_matrix(part, x, order, envelope=cfg.envelope) @ duals[axis]
        maps[axis, order] = (*others[:axis], matrix, *others[axis + 1 :])
    return maps


def _cholesky_root(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """W with W W^T the matrix, and W^-T."""
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return factor, jax.scipy.linalg.solve_triangular(factor, eye, lower=True).T


def _eigen_root(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    root = jnp.sqrt(values)[None]
    return vectors * root, vectors / root


def _apply(matrices: tuple[jax.Array, ...], z: jax.Array) -> jax.Array:
    for axis, matrix in enumerate(matrices):
        z = along(lambda v, m=matrix: m @ v, z, axis)
    return z


def _by_qr(maps: _Maps, rows: _Rows, z: jax.Array, solver: Solver) -> tuple[jax.Array, jax.Array]:
    n = len(z)
    slopes, here = rows.slopes, np.flatnonzero(rows.imposed)
    inside = sum((slopes[key][:, None] * maps[key][0] for key in maps), jnp.zeros((n, n), z.dtype))
    imposed = rows.at_boundary[here, None] * maps[None][0][here]
    left = jnp.concatenate([imposed, inside, jnp.eye(n, dtype=z.dtype)])
    right = jnp.concatenate([rows.boundary[here], rows.target, jnp.zeros_like(z)])
    # R of [A b] has Q^T b in its last column: Q is never formed.
    r = jnp.linalg.qr(jnp.concatenate([left, right[:, None]], axis=1), mode="r")
    return jax.scipy.linalg.solve_triangular(r[:n, :n], r[:n, n]), jnp.zeros((), z.dtype)


def _by_conjugate_gradients(
    maps: _Maps, rows: _Rows, z: jax.Array, solver: Solver
) -> tuple[jax.Array, jax.Array]:
    slopes = rows.slopes

    def forward(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        inside = sum((slopes[k] * _apply(maps[k], z) for k in maps), jnp.zeros_like(z))
        return rows.at_boundary * _apply(maps[None], z), inside

    transposed = jax.linear_transpose(forward, z)
    diagonal = 1 + _diagonal(maps, rows.at_boundary, slopes)

    def normal(z: jax.Array) -> jax.Array:
        return z + transposed(forward(z))[0]

    right = transposed((rows.boundary, rows.target))[0]
    size = jnp.linalg.norm(right.reshape(-1))
    # From where the last step of Newton's method ended.
    more, _ = conjugate_gradients(
        normal,
        right - normal(z),
        lambda r: r / diagonal,
        lambda r: r,
        solver.tolerance * size,
        solver.iterations,
    )
    z = z + more
    left = jnp.linalg.norm((right - normal(z)).reshape(-1))
    return z, left / jnp.where(size > 0, size, jnp.ones_like(size))


def _diagonal(maps: _Maps, at_boundary: jax.Array, slopes: Mapping[Any, jax.Array]) -> jax.Array:
    """That of M^T M, with the mean of each slope in the place of the slope."""
    squares = tuple((w**2).T for w in maps[None])
    total = _apply(squares, at_boundary**2)
    for one, left in maps.items():
        for other, right in maps.items():
            term = jnp.mean(slopes[one]) * jnp.mean(slopes[other])
            for a, b in zip(left, right, strict=True):
                along_axis = jnp.sum(a * b, axis=0)
                term = jnp.multiply.outer(term, along_axis)
            total = total + term
    return total


# By the number of axes, two standing for more.
_ROOTS: dict[int, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {
    1: _cholesky_root,
    2: _eigen_root,
}
_LEAST_SQUARES = {1: _by_qr, 2: _by_conjugate_gradients}
