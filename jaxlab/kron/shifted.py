"""K + sigma^2 I with K a Kronecker product.

The derivative of an eigendecomposition divides by the gaps between eigenvalues, which stationary
kernels on uniform grids hardly have. Solve and log-determinant of K + sigma^2 I are smooth in K all
the same: functions of this file that take the factors themselves have their derivatives written
out, in the eigenbasis, without gaps. They are first derivatives; a second one is refused.

Source: Y. Saatci, "Scalable Inference for Structured Gaussian Process Models", PhD thesis,
Cambridge, 2011, chapter 5, for the products.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxlab.kron.factorise import (
    kron_eigh,
    product_spectrum,
)
from jaxlab.kron.product import (
    HIGHEST,
    adjoint,
    apply_factors,
    as_common,
    as_given,
    as_grid,
    check_square,
    columns,
    over_stack,
    same_dtype,
)

Arrays: TypeAlias = tuple[jax.Array, ...]
Eigh: TypeAlias = tuple[Sequence[jax.Array], Sequence[jax.Array]]


def eigh_add_scalar_solve(
    lams: Sequence[jax.Array],
    qs: Sequence[jax.Array],
    sigma2: jax.typing.ArrayLike,
    x: jax.Array,
) -> jax.Array:
    """(K + sigma^2 I)^-1 x for K given by `kron_eigh`; eigenvalues below 0 count as 0.

    Args:
      lams: D arrays (..., n_d).
      qs: D arrays (..., n_d, n_d).
      sigma2: (...,), 0 or more.
      x: (..., n_1, ..., n_D) or (..., N).

    Returns:
      As x.

    >>> lams, qs = kron_eigh((jnp.eye(2), 3 * jnp.eye(1)))
    >>> eigh_add_scalar_solve(lams, qs, 1.0, jnp.array([4.0, 8.0])).tolist()
    [1.0, 2.0]
    """
    qs, (x,) = as_common("eigh_add_scalar_solve", qs, x)
    grid, flat = as_grid("eigh_add_scalar_solve", x, columns(qs))
    d = len(qs)
    real = jnp.finfo(x.dtype).dtype
    arrays = ((tuple(lam.astype(real) for lam in same_dtype(lams)), qs), _scalar(sigma2, x), grid)
    y = over_stack(solve_shifted, arrays, (((1,) * d, (2,) * d), 0, d))
    return as_given(y, d, flat)


def eigh_add_scalar_logdet(lams: Sequence[jax.Array], sigma2: jax.typing.ArrayLike) -> jax.Array:
    """Log det(K + sigma^2 I), (...,), from the eigenvalues of K's factors.

    Args:
      lams: D arrays (..., n_d).
      sigma2: (...,), 0 or more.

    >>> round(eigh_add_scalar_logdet((jnp.ones(2), 3 * jnp.ones(1)), 1.0).item(), 4)  # 2 log 4
    2.7726
    """
    lams = same_dtype(lams)
    arrays = (lams, _scalar(sigma2, lams[0]))
    return over_stack(_logdet_in, arrays, ((1,) * len(lams), 0))


def kron_add_scalar_solve(
    factors: Sequence[jax.Array],
    sigma2: jax.typing.ArrayLike,
    x: jax.Array,
    *,
    eigh: Eigh | None = None,
) -> jax.Array:
    """(K + sigma^2 I)^-1 x with derivatives that repeated eigenvalues do not spoil.

    Args:
      factors: D arrays (..., n_d, n_d), Hermitian and positive semi-definite.
      sigma2: (...,), 0 or more.
      x: (..., n_1, ..., n_D) or (..., N).
      eigh: what `kron_eigh` returned for the factors, where it serves several functions.

    Returns:
      As x.

    Raises:
      ValueError: shapes do not fit.

    >>> kron_add_scalar_solve((jnp.eye(2), 3 * jnp.eye(1)), 1.0, jnp.array([4.0, 8.0])).tolist()
    [1.0, 2.0]
    """
    factors, (x,) = as_common("kron_add_scalar_solve", factors, x)
    check_square("kron_add_scalar_solve", factors)
    grid, flat = as_grid("kron_add_scalar_solve", x, columns(factors))
    d = len(factors)
    arrays = (factors, decomposed(factors, eigh), _scalar(sigma2, x), grid)
    y = over_stack(_solve, arrays, ((2,) * d, ((1,) * d, (2,) * d), 0, d))
    return as_given(y, d, flat)


def kron_add_scalar_quad(
    factors: Sequence[jax.Array],
    sigma2: jax.typing.ArrayLike,
    x: jax.Array,
    *,
    eigh: Eigh | None = None,
) -> jax.Array:
    """x^H (K + sigma^2 I)^-1 x, real, (...,); arguments as of `kron_add_scalar_solve`.

    >>> kron_add_scalar_quad((jnp.eye(2), 3 * jnp.eye(1)), 1.0, jnp.array([4.0, 8.0])).item()
    20.0
    """
    factors, (x,) = as_common("kron_add_scalar_quad", factors, x)
    grid, _ = as_grid("kron_add_scalar_quad", x, columns(factors))
    dual = kron_add_scalar_solve(factors, sigma2, grid, eigh=eigh)
    axes = tuple(range(-len(factors), 0))
    grid = jnp.broadcast_to(grid, dual.shape)
    return jnp.sum((grid.conj() * dual).real, axis=axes)


def kron_add_scalar_logdet(
    factors: Sequence[jax.Array], sigma2: jax.typing.ArrayLike, *, eigh: Eigh | None = None
) -> jax.Array:
    """Log det(K + sigma^2 I), (...,), with derivatives that repeated eigenvalues do not spoil.

    Arguments as of `kron_add_scalar_solve`.

    >>> slope = jax.grad(lambda k: kron_add_scalar_logdet((k, jnp.eye(2)), 1.0))(jnp.eye(2))
    >>> slope.tolist()  # 2 (K + I)^-1, at an eigenvalue that is there twice
    [[1.0, 0.0], [0.0, 1.0]]
    """
    factors, _ = as_common("kron_add_scalar_logdet", factors)
    check_square("kron_add_scalar_logdet", factors)
    d = len(factors)
    eig = decomposed(factors, eigh)
    arrays = (factors, eig, _scalar(sigma2, eig[0][0]))
    return over_stack(_logdet, arrays, ((2,) * d, ((1,) * d, (2,) * d), 0))


def _scalar(sigma2: jax.typing.ArrayLike, like: jax.Array) -> jax.Array:
    return jnp.asarray(sigma2, jnp.finfo(like.dtype).dtype)


def decomposed(factors: Arrays, eigh: Eigh | None) -> tuple[Arrays, Arrays]:
    # Derivatives are those of the factors: nothing passes through the decomposition.
    lams, qs = kron_eigh(jax.lax.stop_gradient(factors)) if eigh is None else eigh
    lams, qs = jax.lax.stop_gradient((tuple(lams), tuple(qs)))
    return lams, qs


def solve_shifted(eig: tuple[Arrays, Arrays], sigma2: jax.Array, x: jax.Array) -> jax.Array:
    return apply_factors(eig[1], _dual(eig, sigma2, x))


def _dual(eig: tuple[Arrays, Arrays], sigma2: jax.Array, x: jax.Array) -> jax.Array:
    """The solution in the eigenbasis."""
    lams, qs = eig
    along = apply_factors(tuple(adjoint(q) for q in qs), x)
    return along * (1 / (product_spectrum(lams) + sigma2)).astype(x.dtype)


def _logdet_in(lams: Arrays, sigma2: jax.Array) -> jax.Array:
    return jnp.sum(jnp.log(product_spectrum(lams) + sigma2))


@jax.custom_jvp
def once(of: Any, constant: Any) -> Any:
    """`constant`, in a derivative that must not be taken with respect to `of` again."""
    del of
    return constant


@once.defjvp
def _(primals, tangents):
    raise NotImplementedError(
        "kron: what is computed of (K + sigma^2 I)^-1 and its log-determinant has first derivatives"
        " with respect to factors and none beyond; nearest: differentiate the dense matrix"
    )


@jax.custom_vjp
def _solve(
    factors: Arrays, eig: tuple[Arrays, Arrays], sigma2: jax.Array, x: jax.Array
) -> jax.Array:
    del factors
    return solve_shifted(eig, sigma2, x)


def _solve_forward(factors, eig, sigma2, x):
    dual = _dual(eig, sigma2, x)
    return apply_factors(eig[1], dual), (factors, eig, sigma2, dual)


def _solve_backward(kept, g):
    factors, eig, sigma2, dual = kept
    lams, qs = once(factors, eig)
    spectrum = product_spectrum(lams)
    along = apply_factors(tuple(q.T for q in qs), g)
    w = along * (1 / (spectrum + sigma2)).astype(g.dtype)
    dx = apply_factors(tuple(q.conj() for q in qs), w)
    slopes = []
    for d, q in enumerate(qs):
        # The product of the other factors' eigenvalues stands along the other axes.
        rest = product_spectrum([jnp.ones_like(m) if e == d else m for e, m in enumerate(lams)])
        right = jnp.moveaxis(dual * rest.astype(dual.dtype), d, 0).reshape(len(q), -1)
        left = jnp.moveaxis(w, d, 0).reshape(len(q), -1)
        inner = jnp.matmul(left, right.T, precision=HIGHEST)
        slopes.append(-_in_basis(q, inner))
    return tuple(slopes), _no_slope(eig), -jnp.sum(w * dual).real, dx


_solve.defvjp(_solve_forward, _solve_backward)


@jax.custom_vjp
def _logdet(factors: Arrays, eig: tuple[Arrays, Arrays], sigma2: jax.Array) -> jax.Array:
    del factors
    return _logdet_in(eig[0], sigma2)


def _logdet_forward(factors, eig, sigma2):
    return _logdet_in(eig[0], sigma2), (factors, eig, sigma2)


def _logdet_backward(kept, g):
    factors, eig, sigma2 = kept
    lams, qs = once(factors, eig)
    inverse = 1 / (product_spectrum(lams) + sigma2)
    slopes = []
    for d, q in enumerate(qs):
        rest = [jnp.maximum(m, 0) for e, m in enumerate(lams) if e != d]
        # The axes before the remaining one are summed away, each against its eigenvalues.
        sums = jnp.moveaxis(inverse, d, -1)
        for m in rest:
            sums = jnp.tensordot(m, sums, axes=1, precision=HIGHEST)
        slopes.append(_in_basis(q, jnp.diag(g * sums).astype(q.dtype)))
    return tuple(slopes), _no_slope(eig), g * jnp.sum(inverse)


_logdet.defvjp(_logdet_forward, _logdet_backward)


@jax.custom_vjp
def explained(
    factors: Arrays, eig: tuple[Arrays, Arrays], crosses: Arrays, sigma2: jax.Array
) -> jax.Array:
    """c^H (K + sigma^2 I)^-1 c, real, for every column c of C_1 (x) ... (x) C_D, conjugated.

    Args:
      factors: D arrays (n_d, n_d), to which the derivatives belong.
      eig: their decomposition.
      crosses: D arrays (s_d, n_d), the C_d.
      sigma2: scalar.

    Returns:
      (s_1, ..., s_D).
    """
    del factors
    return _explained_in(eig, crosses, sigma2)


def _explained_in(eig: tuple[Arrays, Arrays], crosses: Arrays, sigma2: jax.Array) -> jax.Array:
    lams, qs = eig
    along = [jnp.matmul(c, q, precision=HIGHEST) for c, q in zip(crosses, qs, strict=True)]
    squares = [(a * a.conj()).real for a in along]
    return apply_factors(squares, 1 / (product_spectrum(lams) + sigma2))


def _explained_forward(factors, eig, crosses, sigma2):
    return _explained_in(eig, crosses, sigma2), (factors, eig, crosses, sigma2)


def _explained_backward(kept, g):
    factors, eig, crosses, sigma2 = kept
    lams, qs = once(factors, eig)
    _, pull = jax.vjp(lambda c, s: _explained_in((lams, qs), c, s), crosses, sigma2)
    d_crosses, d_sigma2 = pull(g)
    inverse = 1 / (product_spectrum(lams) + sigma2)
    along = [jnp.matmul(c, q, precision=HIGHEST) for c, q in zip(crosses, qs, strict=True)]
    squares = [(a * a.conj()).real for a in along]
    slopes = []
    for d, q in enumerate(qs):
        others = [s.T if e != d else jnp.eye(len(s), dtype=s.dtype) for e, s in enumerate(squares)]
        rest = product_spectrum([jnp.ones_like(m) if e == d else m for e, m in enumerate(lams)])
        # By test point of this axis: the weight of each combination of the others' eigenvectors.
        weights = jnp.moveaxis(apply_factors(others, g), d, 0).reshape(len(along[d]), -1)
        weights = weights * jnp.moveaxis(rest, d, 0)[0].reshape(1, -1)
        rows = jnp.moveaxis(inverse, d, 0).reshape(len(q), -1)

        def add(total, of_point, rows=rows):
            row, weight = of_point
            both = jnp.matmul(rows * weight[None], rows.T, precision=HIGHEST)
            return total + both.astype(row.dtype) * jnp.outer(row.conj(), row), None

        inner, _ = jax.lax.scan(add, jnp.zeros_like(q), (along[d], weights))
        slopes.append(-_in_basis(q, inner.conj()))
    return tuple(slopes), _no_slope(eig), d_crosses, d_sigma2


explained.defvjp(_explained_forward, _explained_backward)


def _in_basis(q: jax.Array, inner: jax.Array) -> jax.Array:
    """conj(Q) inner Q^T, made Hermitian, as the factors count."""
    full = jnp.matmul(jnp.matmul(q.conj(), inner, precision=HIGHEST), q.T, precision=HIGHEST)
    return (full + adjoint(full)) / 2


def _no_slope(eig: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
    return jax.tree.map(jnp.zeros_like, eig)
