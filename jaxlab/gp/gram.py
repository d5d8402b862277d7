"""Solves with a covariance matrix and its log-determinant from one factorisation, both ways.

The gradient of the log-determinant is the inverse, so that is formed once, and everything else is
products with it: n^3 / 3 multiplications and additions for the Cholesky factor, n^3 / 2 for its
inverse, n^3 for C^-1, then n^2 m for each solve with m right sides and 2 n^2 m for its gradient.
Backpropagation through the factorisation would add five triangular solves of n^3 / 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gram(NamedTuple):
    """A matrix and its inverse, (..., n, n); the log-determinant (...).

    Gradients go to `matrix`; the others are constants to them.
    """

    matrix: jax.Array
    inverse: jax.Array
    log_determinant: jax.Array


def factorise(matrix: jax.Array) -> Gram:
    """Factorises symmetric positive definite matrices (..., n, n); NaN where one is not.

    >>> gram = factorise(2 * jnp.eye(3))
    >>> round(float(jax.grad(lambda c: logdet(gram._replace(matrix=c)))(gram.matrix)[0, 0]), 3)
    0.5
    """
    constant = jax.lax.stop_gradient(matrix)
    factor = jax.lax.linalg.cholesky(constant, symmetrize_input=False)
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    inner = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    return Gram(matrix, jnp.matrix_transpose(inner) @ inner, 2 * jnp.sum(jnp.log(diagonal), -1))


def solve(gram: Gram, right: jax.Array) -> jax.Array:
    """C^-1 R for `right` (..., n, m)."""
    return _solve(gram.matrix, gram.inverse, right)


def logdet(gram: Gram) -> jax.Array:
    """Log det C, (...)."""
    return _logdet(*gram)


@jax.custom_vjp
def _solve(matrix: jax.Array, inverse: jax.Array, right: jax.Array) -> jax.Array:
    return inverse @ right


def _solve_fwd(matrix, inverse, right):
    found = inverse @ right
    return found, (inverse, found)


def _solve_bwd(kept, cotangent):
    inverse, found = kept
    right = inverse @ cotangent
    return -right @ jnp.matrix_transpose(found), jnp.zeros_like(inverse), right


@jax.custom_vjp
def _logdet(matrix: jax.Array, inverse: jax.Array, value: jax.Array) -> jax.Array:
    return value


def _logdet_fwd(matrix, inverse, value):
    return value, inverse


def _logdet_bwd(inverse, cotangent):
    return cotangent[..., None, None] * inverse, jnp.zeros_like(inverse), jnp.zeros_like(cotangent)


_solve.defvjp(_solve_fwd, _solve_bwd)
_logdet.defvjp(_logdet_fwd, _logdet_bwd)
