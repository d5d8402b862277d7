"""Cholesky and eigenvalue factors of a Kronecker product, and what follows from them."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxlab.kron.product import (
    HIGHEST,
    adjoint,
    apply_factors,
    as_common,
    as_given,
    as_grid,
    check_square,
    columns,
    kron_outer,
    over_stack,
)

# Relative to the mean of the diagonal: beyond this a matrix is called indefinite.
MOST_JITTER = 1e-3


class KronCholesky(NamedTuple):
    """The Cholesky factors of a Kronecker product's factors.

    Attributes:
      chols: D arrays (..., n_d, n_d), lower triangular; NaN where `ok` is False.
      jitter: (..., D), what was added to each diagonal, relative to its mean.
      ok: (...,), whether every factor was positive definite with the jitter allowed.
    """

    chols: tuple[jax.Array, ...]
    jitter: jax.Array
    ok: jax.Array


Cholesky: TypeAlias = KronCholesky | Sequence[jax.Array]


def kron_cholesky(
    factors: Sequence[jax.Array], jitter: float = 0.0, *, most: float = MOST_JITTER
) -> KronCholesky:
    """Cholesky factors of Hermitian factors, with no more jitter than they need.

    A factor that has none is tried again with ten times the jitter until it has, beginning at a
    hundred times the rounding error of its dtype if `jitter` is 0. Gradients take the jitter for
    constant.

    Args:
      factors: D arrays (..., n_d, n_d), of which the Hermitian part counts.
      jitter: added to each diagonal from the start, relative to the diagonal's mean.
      most: the largest jitter that is tried.

    Returns:
      Factors, the jitter that was used, and whether that was enough.

    Raises:
      ValueError: a factor is not square, or `jitter` is not in [0, most].

    >>> made = kron_cholesky((jnp.ones((2, 2)), jnp.eye(3)))  # the first is singular
    >>> bool(made.ok), bool(made.jitter[0] > 0), made.jitter[1].item()
    (True, True, 0.0)
    >>> bool(kron_cholesky((-jnp.eye(2),)).ok)
    False
    """
    factors, _ = as_common("kron_cholesky", factors)
    check_square("kron_cholesky", factors)
    if not 0 <= jitter <= most:
        raise ValueError(
            f"kron_cholesky: jitter={jitter} must be in [0, most={most}]; nearest: "
            f"{min(max(jitter, 0.0), most)}"
        )

    def core(factors: tuple[jax.Array, ...]) -> KronCholesky:
        made = [_cholesky(f, jitter, most) for f in factors]
        chols, used, ok = zip(*made, strict=True)
        return KronCholesky(chols, jnp.stack(used), jnp.all(jnp.stack(ok)))

    return over_stack(core, (factors,), ((2,) * len(factors),))


def _cholesky(a: jax.Array, jitter: float, most: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    # The derivative is a Cholesky factor's, written out: no loop has one, and factoring once more
    # for the sake of gradients would cost as much again.
    @jax.custom_jvp
    def factor(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _escalated(a, jitter, most)

    @factor.defjvp
    def _(primals, tangents):
        (a,), (da,) = primals, tangents
        chol, used, ok = factor(a)
        da = (da + adjoint(da)) / 2
        left = jax.lax.linalg.triangular_solve(chol, da, left_side=True, lower=True)
        inside = jax.lax.linalg.triangular_solve(
            chol, left, lower=True, transpose_a=True, conjugate_a=True
        )
        half = jnp.tril(inside) - jnp.diag(jnp.diagonal(inside)) / 2
        dchol = jnp.matmul(chol, half, precision=HIGHEST)
        zero = jnp.zeros(ok.shape, jax.dtypes.float0)
        return (chol, used, ok), (dchol, jnp.zeros_like(used), zero)

    return factor(a)


def _escalated(a: jax.Array, jitter: float, most: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    mean = jnp.mean(jnp.diagonal(a).real)
    first = 100 * float(jnp.finfo(a.dtype).eps)

    def attempt(used: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        chol = jnp.linalg.cholesky(a + (used * mean).astype(a.dtype) * eye)
        return chol, used, jnp.all(jnp.isfinite(chol))

    def again(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, used, ok = state
        return ~ok & (used < most)

    def escalate(state: tuple[jax.Array, jax.Array, jax.Array]):
        return attempt(jnp.clip(10 * state[1], first, most))

    chol, used, ok = jax.lax.while_loop(again, escalate, attempt(jnp.asarray(jitter, mean.dtype)))
    # Of a matrix that is not positive definite some backends return part of a factor.
    return jnp.where(ok, chol, jnp.full_like(chol, jnp.nan)), used, ok


def factors_of(chols: Cholesky) -> tuple[jax.Array, ...]:
    """The arrays of a Cholesky factorisation, however it was passed."""
    return tuple(chols.chols) if isinstance(chols, KronCholesky) else tuple(chols)


def kron_solve(chols: Cholesky, x: jax.Array) -> jax.Array:
    """(A_1 (x) ... (x) A_D)^-1 x, by two triangular solves along each axis.

    Args:
      chols: what `kron_cholesky` returned, or D lower triangular arrays (..., n_d, n_d).
      x: (..., n_1, ..., n_D) or (..., N).

    Returns:
      As x.

    >>> kron_solve((2 * jnp.eye(1), jnp.eye(2)), jnp.array([4.0, 8.0])).tolist()
    [1.0, 2.0]
    """
    chols, (x,) = as_common("kron_solve", factors_of(chols), x)
    grid, flat = as_grid("kron_solve", x, columns(chols))

    def core(chols: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
        for chol in chols:
            rows = x.reshape(len(chol), -1)
            solved = jax.scipy.linalg.cho_solve((chol, True), rows)
            x = jnp.moveaxis(solved.reshape(x.shape), 0, -1)
        return x

    y = over_stack(core, (chols, grid), ((2,) * len(chols), len(chols)))
    return as_given(y, len(chols), flat)


def kron_logdet(chols: Cholesky) -> jax.Array:
    """Log det (A_1 (x) ... (x) A_D) = sum_d (N / n_d) log det A_d, real, (...,).

    >>> round(kron_logdet((2 * jnp.eye(3), jnp.eye(2))).item(), 4)  # 2 * 3 log 4
    8.3178
    """
    chols, _ = as_common("kron_logdet", factors_of(chols))
    size = math.prod(columns(chols))

    def core(chols: tuple[jax.Array, ...]) -> jax.Array:
        parts = [
            2 * size // len(c) * jnp.sum(jnp.log(jnp.diagonal(c).real))  # 2 N / n_d, an integer
            for c in chols
        ]
        return jnp.sum(jnp.stack(parts))

    return over_stack(core, (chols,), ((2,) * len(chols),))


def kron_sqrt_matvec(chols: Cholesky, z: jax.Array) -> jax.Array:
    """L z with L the Cholesky factor of the product: of white noise, a sample of its covariance.

    Args:
      chols: what `kron_cholesky` returned, or D lower triangular arrays.
      z: (..., n_1, ..., n_D) or (..., N).

    >>> kron_sqrt_matvec((2 * jnp.eye(1), jnp.eye(2)), jnp.ones(2)).tolist()
    [2.0, 2.0]
    """
    chols, (z,) = as_common("kron_sqrt_matvec", factors_of(chols), z)
    grid, flat = as_grid("kron_sqrt_matvec", z, columns(chols))
    y = over_stack(apply_factors, (chols, grid), ((2,) * len(chols), len(chols)))
    return as_given(y, len(chols), flat)


def kron_eigh(
    factors: Sequence[jax.Array],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Eigenvalues and eigenvectors of Hermitian factors; those of the product are their products.

    Derivatives of eigenvectors divide by gaps between eigenvalues. `kron_add_scalar_solve` and
    `kron_add_scalar_logdet` have derivatives that do not.

    Args:
      factors: D arrays (..., n_d, n_d).

    Returns:
      `(lams, qs)`: D arrays (..., n_d) ascending, and D arrays (..., n_d, n_d).

    >>> lams, qs = kron_eigh((jnp.diag(jnp.array([3.0, 1.0])), 2 * jnp.eye(1)))
    >>> [lam.tolist() for lam in lams]
    [[1.0, 3.0], [2.0]]
    """
    factors, _ = as_common("kron_eigh", factors)
    check_square("kron_eigh", factors)
    pairs = [jnp.linalg.eigh(f) for f in factors]
    lams, qs = zip(*((pair[0], pair[1]) for pair in pairs), strict=True)
    return lams, qs


def product_spectrum(lams: Sequence[jax.Array]) -> jax.Array:
    """The product's eigenvalues on its grid, those of each factor clipped at 0."""
    return kron_outer([jnp.maximum(lam, jnp.zeros((), lam.dtype)) for lam in lams])
