"""Solves with a covariance matrix and its log-determinant from one factorisation, both ways.

For n points: n^3 / 3 flop for the Cholesky factor L, n^3 for L^-1, and 2 n^3 for C^-1, which is the
gradient of the log-determinant; 4 n^2 m for a solve with m right sides, as two products with L^-1,
and 6 n^2 m for its gradient. Products with C^-1 itself would be half as many and lose the digits of
its condition number. Backpropagation through the factorisation would add triangular solves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gram(NamedTuple):
    """A matrix and the inverse of its Cholesky factor, (..., n, n); the log-determinant (...).

    Gradients go to `matrix`; the others are constants to them.
    """

    matrix: jax.Array
    inner: jax.Array
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
    return Gram(matrix, inner, 2 * jnp.sum(jnp.log(diagonal), -1))


def solve(gram: Gram, right: jax.Array) -> jax.Array:
    """C^-1 R for `right` (..., n, m)."""
    return _solve(gram.matrix, gram.inner, right)


def logdet(gram: Gram) -> jax.Array:
    """The log-determinant of C, (...)."""
    return _logdet(*gram)


@jax.custom_vjp
def _solve(matrix: jax.Array, inner: jax.Array, right: jax.Array) -> jax.Array:
    return _twice(inner, right)


def _solve_fwd(matrix, inner, right):
    # By the rule itself, so that derivatives of derivatives find their way to the matrix.
    found = _solve(matrix, inner, right)
    return found, (matrix, inner, found)


def _solve_bwd(kept, cotangent):
    matrix, inner, found = kept
    right = _solve(matrix, inner, cotangent)
    return -right @ jnp.matrix_transpose(found), jnp.zeros_like(inner), right


def _twice(inner: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matrix_transpose(inner) @ (inner @ right)


@jax.custom_vjp
def _logdet(matrix: jax.Array, inner: jax.Array, value: jax.Array) -> jax.Array:
    return value


def _logdet_fwd(matrix, inner, value):
    return value, (matrix, inner)


def _logdet_bwd(kept, cotangent):
    matrix, inner = kept
    inverse = _inverse(matrix, inner)
    return cotangent[..., None, None] * inverse, jnp.zeros_like(inner), jnp.zeros_like(cotangent)


@jax.custom_vjp
def _inverse(matrix: jax.Array, inner: jax.Array) -> jax.Array:
    return jnp.matrix_transpose(inner) @ inner


def _inverse_fwd(matrix, inner):
    found = _inverse(matrix, inner)
    return found, (inner, found)


def _inverse_bwd(kept, cotangent):
    inner, found = kept
    return -found @ cotangent @ found, jnp.zeros_like(inner)


_inverse.defvjp(_inverse_fwd, _inverse_bwd)
_solve.defvjp(_solve_fwd, _solve_bwd)
_logdet.defvjp(_logdet_fwd, _logdet_bwd)
