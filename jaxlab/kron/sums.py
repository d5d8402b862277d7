"""Sums of two Kronecker products, by whitening with the second: noise that is a product itself.

Source: O. Stegle et al., "Efficient inference in matrix-variate Gaussian models with iid
observation noise", NeurIPS 2011.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxlab.kron.factorise import factors_of, kron_cholesky, kron_logdet
from jaxlab.kron.product import as_common, as_given, as_grid, columns, over_stack
from jaxlab.kron.shifted import Arrays, kron_add_scalar_logdet, kron_add_scalar_solve


def kron_sum_solve(
    factors: Sequence[jax.Array], noise: Sequence[jax.Array], x: jax.Array
) -> jax.Array:
    """(K_1 (x) ... (x) K_D + S_1 (x) ... (x) S_D)^-1 x: noise that is a product itself.

    Args:
      factors: the K_d, D arrays (..., n_d, n_d), positive semi-definite.
      noise: the S_d, of the same shapes, positive definite.
      x: (..., n_1, ..., n_D) or (..., N).

    Returns:
      As x; NaN where an S_d is not positive definite.

    >>> kron_sum_solve((jnp.eye(2), jnp.eye(1)), (3 * jnp.eye(2), jnp.eye(1)), jnp.ones(2)).tolist()
    [0.25, 0.25]
    """
    factors, (x,) = as_common("kron_sum_solve", factors, x)
    grid, flat = as_grid("kron_sum_solve", x, columns(factors))
    chols, white = _whitened("kron_sum_solve", factors, noise)
    core = (2,) * len(chols), len(chols)
    half = over_stack(functools.partial(_half_solve, upper=False), (chols, grid), core)
    dual = kron_add_scalar_solve(white, 1.0, half)
    y = over_stack(functools.partial(_half_solve, upper=True), (chols, dual), core)
    return as_given(y, len(chols), flat)


def kron_sum_logdet(factors: Sequence[jax.Array], noise: Sequence[jax.Array]) -> jax.Array:
    """Log det(K_1 (x) ... (x) K_D + S_1 (x) ... (x) S_D), (...,); as of `kron_sum_solve`.

    >>> two = kron_sum_logdet((jnp.eye(2), jnp.eye(1)), (3 * jnp.eye(2), jnp.eye(1)))
    >>> round(two.item(), 4)  # 2 log 4
    2.7726
    """
    factors, _ = as_common("kron_sum_logdet", factors)
    chols, white = _whitened("kron_sum_logdet", factors, noise)
    return kron_add_scalar_logdet(white, 1.0) + kron_logdet(chols)


def _whitened(name: str, factors: Arrays, noise: Sequence[jax.Array]) -> tuple[Arrays, Arrays]:
    """The Cholesky factors L_d of the noise, and L_d^-1 K_d L_d^-H."""
    noise, _ = as_common(name, noise)
    shapes = [[a.shape[-2:] for a in arrays] for arrays in (factors, noise)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name}: noise of {shapes[1]} must be of the factors' {shapes[0]}")
    chols = factors_of(kron_cholesky(noise))

    def core(chol: jax.Array, k: jax.Array) -> jax.Array:
        half = jax.lax.linalg.triangular_solve(chol, k, left_side=True, lower=True)
        return jax.lax.linalg.triangular_solve(
            chol, half, lower=True, transpose_a=True, conjugate_a=True
        )

    pairs = zip(chols, factors, strict=True)
    return chols, tuple(over_stack(core, pair, (2, 2)) for pair in pairs)


def _half_solve(chols: Arrays, x: jax.Array, *, upper: bool) -> jax.Array:
    """L^-1 x or L^-H x on a grid, L the product of triangular factors."""
    for chol in chols:
        solved = jax.lax.linalg.triangular_solve(
            chol,
            x.reshape(len(chol), -1),
            left_side=True,
            lower=True,
            transpose_a=upper,
            conjugate_a=upper,
        )
        x = jnp.moveaxis(solved.reshape(x.shape), 0, -1)
    return x
