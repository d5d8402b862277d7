"""K + diag(noise), all cells seen or not, by conjugate gradients; and what they converge to.

The default works on the posterior's own coordinates. With K = Q Lambda Q^T, W = mask / noise and
f = Q Lambda^1/2 z the solution is W (y - f) where

    (I + Lambda^1/2 Q^T W Q Lambda^1/2) z = Lambda^1/2 Q^T W y.

Of few cells missing at random or many, Q^T W Q is near mean(W) I on every smooth function, so that
the diagonal 1 + mean(W) Lambda preconditions this system well, whatever the noise: tens of steps,
where the same preconditioner in the coordinates of y takes hundreds or does not end.

Source of the setting: J. A. Lin et al., "Scalable Gaussian Processes with Latent Kronecker
Structure", ICML 2025, who precondition by a pivoted Cholesky factor of low rank instead.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxlab.core.registry import suggest
from jaxlab.kron.factorise import product_spectrum
from jaxlab.kron.product import (
    adjoint,
    apply_factors,
    as_common,
    as_given,
    as_grid,
    check_square,
    columns,
    over_stack,
)
from jaxlab.kron.shifted import Arrays, Eigh, decomposed, solve_shifted

_TOLERANCE = {"float64": 1e-10, "float32": 1e-3}
# Rounding in the eigenbasis is made good by solving once more for what is left.
_ROUNDS = 3
# A gradient whose solve ends so many times above the tolerance is NaN: no flag goes with it.
_SLACK = 100
# The solution, what is left of the right-hand side, and the steps taken.
_Round: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


class Solved(NamedTuple):
    """The solution of a linear system that was found step by step.

    Attributes:
      x: as the right-hand side.
      residual: (...,), norm of what is left over that of the right-hand side, recomputed.
      iterations: (...,), steps taken.
      ok: (...,), whether the residual is at most the tolerance.
    """

    x: jax.Array
    residual: jax.Array
    iterations: jax.Array
    ok: jax.Array


def kron_add_diag_solve(
    factors: Sequence[jax.Array],
    diag: jax.Array,
    x: jax.Array,
    tol: float | None = None,
    maxiter: int = 500,
    precond: str = "spectral",
    *,
    eigh: Eigh | None = None,
) -> Solved:
    """(K + diag(d))^-1 x, with implicit gradients in the factors, the diagonal and x.

    Args:
      factors: D real arrays (..., n_d, n_d), symmetric and positive semi-definite.
      diag: positive; a scalar, (..., n_1, ..., n_D) or (..., N).
      x: (..., n_1, ..., n_D) or (..., N).
      tol: of the residual relative to x; None is 1e-10 in float64 and 1e-3 in float32.
      maxiter: most steps.
      precond: "spectral", as the module says; "eigh", the inverse of K + mean(d) I; "none".
      eigh: what `kron_eigh` returned for the factors, if at hand.

    Returns:
      The solution, its residual, the steps taken, and whether the tolerance was met.

    Raises:
      TypeError: something is complex.
      ValueError: shapes do not fit, or `tol`, `maxiter` or `precond` is out of range.

    >>> solved = kron_add_diag_solve((jnp.eye(2), jnp.eye(1)), jnp.array([1.0, 3.0]), jnp.ones(2))
    >>> solved.x.tolist(), bool(solved.ok)
    ([0.5, 0.25], True)
    """
    mask = jnp.ones(columns(as_common("kron_add_diag_solve", factors)[0]), bool)
    return _masked("kron_add_diag_solve", factors, mask, diag, x, tol, maxiter, precond, eigh)


def kron_masked_solve(
    factors: Sequence[jax.Array],
    mask: jax.Array,
    sigma2: jax.typing.ArrayLike,
    y: jax.Array,
    tol: float | None = None,
    maxiter: int = 500,
    precond: str = "spectral",
    *,
    eigh: Eigh | None = None,
) -> Solved:
    """(P K P^T + sigma^2 I)^-1 P y, P the selection of the cells that were seen.

    Args:
      factors: D real arrays (..., n_d, n_d), symmetric and positive semi-definite.
      mask: booleans (..., n_1, ..., n_D) or (..., N): which cells were seen.
      sigma2: positive; (...,), or one of each cell as `diag` of `kron_add_diag_solve`.
      y: (..., n_1, ..., n_D) or (..., N); what it holds elsewhere does not count.
      tol: as of `kron_add_diag_solve`, like the rest.
      maxiter: most steps.
      precond: "spectral", "eigh" or "none".
      eigh: what `kron_eigh` returned for the factors.

    Returns:
      The solution on the whole grid, 0 where nothing was seen; K times it is the posterior mean.
      A gradient is NaN where the solve that it takes ends far above the tolerance.

    Raises:
      TypeError: something is complex, or the mask is not of booleans.
      ValueError: as `kron_add_diag_solve`.

    >>> seen = jnp.array([True, False])
    >>> kron_masked_solve((jnp.eye(2), jnp.eye(1)), seen, 1.0, jnp.array([4.0, jnp.nan])).x.tolist()
    [2.0, 0.0]
    """
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"kron_masked_solve: mask is {mask.dtype}; nearest: mask.astype(bool)")
    factors, _ = as_common("kron_masked_solve", factors)
    mask, _ = as_grid("kron_masked_solve: mask", mask, columns(factors))
    return _masked("kron_masked_solve", factors, mask, sigma2, y, tol, maxiter, precond, eigh)


def _masked(name, factors, mask, noise, y, tol, maxiter, precond, eigh) -> Solved:
    factors, (y,) = as_common(name, factors, y)
    check_square(name, factors)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"{name}: {y.dtype} is not real; nearest: float32")
    if precond not in _SOLVERS:
        raise ValueError(f"{name}: precond={precond!r}; {suggest(precond, _SOLVERS)}")
    if maxiter < 1:
        raise ValueError(f"{name}: maxiter={maxiter} must be 1 or more; nearest: 1")
    tol = _TOLERANCE.get(y.dtype.name, 1e-3) if tol is None else tol
    if not 0 < tol < 1:
        raise ValueError(f"{name}: tol={tol} must be in (0, 1); nearest: 1e-6")
    n, d = columns(factors), len(factors)
    grid, flat = as_grid(name, y, n)
    noise = noise_grid(name, noise, grid, n)
    core = functools.partial(solve_seen, tol=tol, maxiter=maxiter, solver=_SOLVERS[precond])
    eig = decomposed(factors, eigh)
    arrays = (factors, eig, mask, noise, grid)
    solved = over_stack(core, arrays, ((2,) * d, ((1,) * d, (2,) * d), d, d, d))
    return solved._replace(x=as_given(solved.x, d, flat))


def noise_grid(
    name: str, noise: jax.typing.ArrayLike, like: jax.Array, n: tuple[int, ...]
) -> jax.Array:
    """Noise variances of every cell, (..., n_1, ..., n_D), from (...,), (..., N) or themselves.

    One of each member of the stack of `like` goes before one of each cell, where both would fit.
    """
    noise = jnp.asarray(noise, like.dtype)
    stack = like.shape[: like.ndim - len(n)]
    of_stack = stack and noise.shape == stack
    if not of_stack and noise.ndim >= len(n) and noise.shape[noise.ndim - len(n) :] == n:
        return noise
    if not of_stack and noise.ndim and noise.shape[-1] == math.prod(n) > 1:
        return as_grid(name, noise, n)[0]
    return jnp.broadcast_to(noise[(..., *[None] * len(n))], (*noise.shape, *n))


def solve_seen(
    factors: Arrays,
    eig: tuple[Arrays, Arrays],
    mask: jax.Array,
    noise: jax.Array,
    y: jax.Array,
    *,
    tol: float,
    maxiter: int,
    solver: "Callable[..., tuple[jax.Array, jax.Array]]",
) -> Solved:
    """`kron_masked_solve` on a grid without stacks."""

    def product(x: jax.Array) -> jax.Array:
        seen = jnp.where(mask, x, jnp.zeros_like(x))
        return jnp.where(mask, apply_factors(factors, seen), jnp.zeros_like(x)) + noise * x

    weight = jax.lax.stop_gradient(jnp.where(mask, 1 / noise, jnp.zeros_like(noise)))
    fixed = jax.lax.stop_gradient((factors, eig, noise))

    def solve(product: Callable[[jax.Array], jax.Array], b: jax.Array):
        size = jnp.linalg.norm(b.reshape(-1))
        stop = tol * size

        def norm(v: jax.Array) -> jax.Array:
            return jnp.linalg.norm(v.reshape(-1))

        def improved(carry: _Round) -> _Round:
            x, left, spent = carry
            budget = maxiter - spent
            found, steps = solver(*fixed, weight, jnp.where(mask, left, 0), stop, budget)
            # What was not seen is divided by its noise, exactly: its rows are diagonal.
            other = x + jnp.where(mask, found, left / fixed[2])
            beyond = b - product(other)
            # A round that ran out of steps may be worse than none.
            better = norm(beyond) < norm(left)
            x, left = (jnp.where(better, n, o) for n, o in ((other, x), (beyond, left)))
            return x, left, spent + steps

        def refine(carry: _Round, none: None) -> tuple[_Round, None]:
            left, spent = carry[1:]
            going = (norm(left) > stop) & (spent < maxiter)
            return jax.lax.cond(going, improved, lambda carry: carry, carry), none

        start = jnp.zeros_like(b), b, jnp.zeros((), jnp.int32)
        (x, left, steps), _ = jax.lax.scan(refine, start, length=_ROUNDS)
        residual = norm(left)
        return x, (jnp.where(size > 0, residual / jnp.where(size > 0, size, 1), residual), steps)

    def solve_back(product: Callable[[jax.Array], jax.Array], b: jax.Array):
        x, aux = solve(product, b)
        return jnp.where(aux[0] <= _SLACK * tol, x, jnp.full_like(x, jnp.nan)), aux

    seen = jnp.where(mask, y, jnp.zeros_like(y))
    x, (residual, steps) = jax.lax.custom_linear_solve(
        product, seen, solve, transpose_solve=solve_back, has_aux=True
    )
    return Solved(x, residual, steps, residual <= tol)


def _spectral(factors, eig, noise, weight, b, stop, budget):
    """In the coordinates z of the module's docstring; the residual is bounded by Lambda^1/2 r."""
    lams, qs = eig
    backs = tuple(adjoint(q) for q in qs)
    spectrum = product_spectrum(lams)
    root = jnp.sqrt(spectrum)
    scale = 1 + jnp.mean(weight) * spectrum

    def onto(v: jax.Array) -> jax.Array:
        return root * apply_factors(backs, weight * v)

    def out(z: jax.Array) -> jax.Array:
        return apply_factors(qs, root * z)

    z, steps = conjugate_gradients(
        lambda z: z + onto(out(z)), onto(b), lambda r: r / scale, lambda r: root * r, stop, budget
    )
    return weight * (b - out(z)), steps


def _eigh(factors, eig, noise, weight, b, stop, budget):
    """In the coordinates of y, by the inverse that all cells at the mean noise would have."""
    seen = weight > 0
    mean = jnp.mean(noise)

    def precondition(r: jax.Array) -> jax.Array:
        return jnp.where(seen, solve_shifted(eig, mean, r), jnp.zeros_like(r))

    return _plain(factors, eig, noise, weight, b, stop, budget, precondition)


def _plain(factors, eig, noise, weight, b, stop, budget, precondition=lambda r: r):
    """In the coordinates of y."""
    seen = weight > 0

    def product(x: jax.Array) -> jax.Array:
        return jnp.where(seen, apply_factors(factors, x) + noise * x, jnp.zeros_like(x))

    return conjugate_gradients(product, b, precondition, lambda r: r, stop, budget)


_SOLVERS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "spectral": _spectral,
    "eigh": _eigh,
    "none": _plain,
}


def conjugate_gradients(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    precondition: Callable[[jax.Array], jax.Array],
    measure: Callable[[jax.Array], jax.Array],
    stop: jax.Array,
    budget: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Conjugate gradients from 0 until the norm of `measure(residual)` is at most `stop`.

    Args:
      product: a symmetric positive definite map of arrays like b.
      b: the right-hand side.
      precondition: near to the inverse of `product`.
      measure: what of the residual has to be small.
      stop: scalar.
      budget: most steps.

    Returns:
      The solution, and the number of steps.
    """

    def going(state: tuple[jax.Array, ...]) -> jax.Array:
        _, r, _, _, steps = state
        return (jnp.linalg.norm(measure(r).reshape(-1)) > stop) & (steps < budget)

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        x, r, direction, size, steps = state
        image = product(direction)
        length = size / jnp.sum(direction * image)
        r = r - length * image
        better = precondition(r)
        later = jnp.sum(r * better)
        return x + length * direction, r, better + later / size * direction, later, steps + 1

    first = precondition(b)
    state = jnp.zeros_like(b), b, first, jnp.sum(b * first), jnp.zeros((), jnp.int32)
    x, _, _, _, steps = jax.lax.while_loop(going, step, state)
    return x, steps
