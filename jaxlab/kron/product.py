"""Products with A_1 (x) ... (x) A_D that never form it, and its diagonal, trace and dense form.

Vectors are ordered as C orders arrays: `kron_dense((a, b)) @ x.reshape(-1)` is `a @ x @ b.T`, so
that the first factor acts on the slowest axis. Products are taken with all digits of their dtype,
because on accelerators float32 otherwise loses half of them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST
# What decompositions are there for.
_DTYPES = ("float32", "float64", "complex64", "complex128")


def kron_matvec(
    factors: Sequence[jax.Array], x: jax.Array, *, precision: Any = HIGHEST
) -> jax.Array:
    """(A_1 (x) ... (x) A_D) x, one factor after the other, in 2 N sum m_d operations.

    Args:
      factors: D arrays (..., m_d, n_d); leading axes broadcast against one another and x's.
      x: (..., n_1, ..., n_D), or (..., N) with N the product of the n_d. Where both would fit it is
        taken as the former.
      precision: of the products.

    Returns:
      (..., m_1, ..., m_D), or (..., M) for the second form of x, in the common dtype.

    Raises:
      ValueError: x does not fit the factors, or there are none.

    >>> kron_matvec((jnp.diag(jnp.array([1.0, 10.0])), jnp.ones((1, 2))), jnp.arange(4.0)).tolist()
    [1.0, 50.0]
    """
    factors, (x,) = as_common("kron_matvec", factors, x)
    grid, flat = as_grid("kron_matvec", x, columns(factors))
    core = functools.partial(apply_factors, precision=precision)
    y = over_stack(core, (factors, grid), ((2,) * len(factors), len(factors)))
    return as_given(y, len(factors), flat)


def kron_matmat(
    factors: Sequence[jax.Array], x: jax.Array, *, precision: Any = HIGHEST
) -> jax.Array:
    """(A_1 (x) ... (x) A_D) X for R columns at once; X may be sharded over them for free.

    Args:
      factors: D arrays (..., m_d, n_d).
      x: (..., N, R).
      precision: of the products.

    Returns:
      (..., M, R).

    Raises:
      ValueError: x does not fit the factors.

    >>> kron_matmat((jnp.ones((1, 2)), jnp.eye(2)), jnp.arange(8.0).reshape(4, 2)).tolist()
    [[4.0, 6.0], [8.0, 10.0]]
    """
    factors, (x,) = as_common("kron_matmat", factors, x)
    n = columns(factors)
    if x.ndim < 2 or x.shape[-2] != math.prod(n):
        raise ValueError(
            f"kron_matmat: x of {x.shape} does not fit factors of {n} columns; nearest: "
            f"(..., {math.prod(n)}, R)"
        )

    def core(factors: tuple[jax.Array, ...], x: jax.Array) -> jax.Array:
        x = x.reshape(*n, x.shape[-1])
        # The axis of the columns stays last: each product takes axis D - 1 and puts its own first.
        for factor in reversed(factors):
            x = jnp.tensordot(factor, x, axes=(1, len(factors) - 1), precision=precision)
        return x.reshape(-1, x.shape[-1])

    return over_stack(core, (factors, x), ((2,) * len(factors), 2))


def kron_dense(factors: Sequence[jax.Array]) -> jax.Array:
    """The matrix itself, (..., M, N): for tests, and for small ones.

    >>> kron_dense((jnp.eye(2), jnp.ones((1, 2)))).tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    factors, _ = as_common("kron_dense", factors)

    def core(factors: tuple[jax.Array, ...]) -> jax.Array:
        return functools.reduce(jnp.kron, factors)

    return over_stack(core, (factors,), ((2,) * len(factors),))


def kron_diag(factors: Sequence[jax.Array]) -> jax.Array:
    """The diagonal, (..., N), of square factors (..., n_d, n_d).

    >>> kron_diag((jnp.diag(jnp.array([1.0, 2.0])), 3 * jnp.eye(2))).tolist()
    [3.0, 3.0, 6.0, 6.0]
    """
    factors, _ = as_common("kron_diag", factors)
    check_square("kron_diag", factors)
    diagonals = tuple(jnp.diagonal(f, axis1=-2, axis2=-1) for f in factors)
    return as_given(kron_outer(diagonals), len(factors), True)


def kron_trace(factors: Sequence[jax.Array]) -> jax.Array:
    """The trace, (...,), of square factors: the product of theirs.

    >>> kron_trace((jnp.eye(2), 3 * jnp.eye(2))).item()
    12.0
    """
    factors, _ = as_common("kron_trace", factors)
    check_square("kron_trace", factors)
    traces = tuple(jnp.trace(f, axis1=-2, axis2=-1) for f in factors)
    return over_stack(math.prod, (traces,), ((0,) * len(factors),))


def kron_outer(vectors: Sequence[jax.Array]) -> jax.Array:
    """The grid (..., n_1, ..., n_D) of products of the entries of D vectors (..., n_d).

    >>> kron_outer((jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))).tolist()
    [[3.0, 4.0], [6.0, 8.0]]
    """

    def core(vectors: tuple[jax.Array, ...]) -> jax.Array:
        return functools.reduce(lambda a, b: jnp.tensordot(a, b, axes=0), vectors)

    vectors = same_dtype(vectors)
    return over_stack(core, (vectors,), ((1,) * len(vectors),))


def apply_factors(
    factors: Sequence[jax.Array], x: jax.Array, precision: Any = HIGHEST
) -> jax.Array:
    """`kron_matvec` on a grid (n_1, ..., n_D) without stacks."""
    # Each product takes the first axis and puts its own last: plain matrix products, whose
    # transposes are folded into them, and after D of them the order of the axes is restored.
    for factor in factors:
        x = jnp.tensordot(x, factor, axes=(0, 1), precision=precision)
    return x


def over_stack(fn: Callable[..., Any], arrays: Any, core: Any) -> Any:
    """`fn` of arrays whose leading axes broadcast against one another.

    Args:
      fn: a function of arrays without leading axes.
      arrays: its arguments, a tuple of arrays or of tuples of them.
      core: of the same structure, how many trailing axes belong to each.

    Returns:
      What `fn` returns, with the common leading axes.
    """
    leaves, tree = jax.tree.flatten(arrays)
    ndims = jax.tree.leaves(core)
    stacks = [x.shape[: x.ndim - k] for x, k in zip(leaves, ndims, strict=True)]
    stack = np.broadcast_shapes(*stacks)
    if not stack:
        return fn(*arrays)
    # An array that lacks the axis, or has it with length 1, is not copied along it.
    full = [len(s) == len(stack) for s in stacks]
    mapped = [here and s[0] == stack[0] for here, s in zip(full, stacks, strict=True)]
    leaves = [
        x[0] if here and not along else x
        for x, here, along in zip(leaves, full, mapped, strict=True)
    ]
    inner = functools.partial(over_stack, fn, core=core)
    axes = jax.tree.unflatten(tree, [0 if along else None for along in mapped])
    arrays = jax.tree.unflatten(tree, leaves)
    return jax.vmap(lambda *a: inner(a), in_axes=axes)(*arrays)


def as_common(
    name: str, factors: Sequence[jax.Array], *more: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Factors, and further arrays, in their common dtype.

    Raises:
      TypeError: it is not floating of 32 bits or more.
      ValueError: there are no factors, or one is no matrix or empty.
    """
    factors = tuple(jnp.asarray(f) for f in factors)
    if not factors:
        raise ValueError(f"{name}: factors=() must be one array or more")
    for i, f in enumerate(factors):
        if f.ndim < 2:
            raise ValueError(f"{name}: factors[{i}] of {f.shape} must be (..., m, n)")
    others = tuple(jnp.asarray(x) for x in more)
    # NumPy's rules, since JAX's may be set to refuse a real factor of a complex vector.
    dtype = np.result_type(*(a.dtype for a in (*factors, *others)))
    if dtype.name not in _DTYPES:
        raise TypeError(f"{name}: {dtype} is not one of {', '.join(_DTYPES)}; nearest: float32")
    for i, f in enumerate(factors):
        if not f.shape[-1] * f.shape[-2]:
            raise ValueError(f"{name}: factors[{i}] of {f.shape} is empty; nearest: (..., 1, 1)")
    return tuple(f.astype(dtype) for f in factors), tuple(x.astype(dtype) for x in others)


def same_dtype(arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Arrays in their common dtype, by NumPy's rules."""
    arrays = tuple(jnp.asarray(a) for a in arrays)
    dtype = np.result_type(*(a.dtype for a in arrays))
    return tuple(a.astype(dtype) for a in arrays)


def as_grid(name: str, x: jax.Array, n: tuple[int, ...]) -> tuple[jax.Array, bool]:
    """X as (..., n_1, ..., n_D), and whether it was (..., N)."""
    if x.shape[x.ndim - len(n) :] == n and x.ndim >= len(n):
        return x, False
    if x.ndim and x.shape[-1] == math.prod(n):
        return x.reshape(*x.shape[:-1], *n), True
    shape = ", ".join(map(str, n))
    raise ValueError(
        f"{name}: x of {x.shape} does not fit factors of {n} columns; nearest: (..., {shape}) or "
        f"(..., {math.prod(n)})"
    )


def as_given(y: jax.Array, count: int, flat: bool) -> jax.Array:
    """A grid of `count` axes as its counterpart was given."""
    lead = y.shape[: y.ndim - count]
    return y.reshape(*lead, math.prod(y.shape[len(lead) :])) if flat else y


def columns(factors: Sequence[jax.Array]) -> tuple[int, ...]:
    """(n_1, ..., n_D)."""
    return tuple(f.shape[-1] for f in factors)


def check_square(name: str, factors: Sequence[jax.Array]) -> None:
    """Raises a ValueError unless every factor is square."""
    for i, f in enumerate(factors):
        if f.shape[-1] != f.shape[-2]:
            raise ValueError(f"{name}: factors[{i}] of {f.shape} must be square")


def adjoint(matrix: jax.Array) -> jax.Array:
    """The conjugate transpose of (..., m, n)."""
    return matrix.mT.conj()
