"""The factors of a matrix that is a product of a Monarch matrix and a transposed one.

Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
Training", ICML 2022, section 3.4 (theorem 2 and algorithm 2).
"""

import math
from typing import Any

import jax
import numpy as np


def factor_mmstar(
    m: Any, *, b: int | None = None, key: jax.Array, tol: float = 1e-6
) -> dict[str, np.ndarray]:
    """Factors of M in MM*, by diagonalising blocks together.

    With g = n / b and x = u g + i the index of entry u of block i, for i < g and u < b,

        M[u g + i, v g + j] = sum over c of l1[i, u, c] r[c, i, j] l2[j, c, v].

    They are not unique: c may be permuted, and scaled. Runs on the host, in float64 or complex128,
    and not under jit: eigenvalues of matrices that are not symmetric exist in JAX on CPUs only.

    Args:
      m: (n, n), real or complex, all of whose blocks (u, v) -> M[u g + i, v g + j] are invertible.
      b: size of the blocks; sqrt(n) by default.
      key: of the random combination whose eigenvectors are taken.
      tol: how large entries that have to vanish may be, relative to the largest of r.

    Returns:
      {"l1": (g, b, b), "r": (b, g, g), "l2": (g, b, b)}, NumPy arrays; real if m and its
      eigenvalues are.

    Raises:
      ValueError: m is not square, `b` does not divide n, a block is singular, or m is not in MM*.

    >>> rng = np.random.default_rng(0)
    >>> l1, r, l2 = rng.standard_normal((3, 2, 2, 2))
    >>> m = np.einsum("iuc,cij,jcv->uivj", l1, r, l2).reshape(4, 4)
    >>> f = factor_mmstar(m, key=jax.random.key(0))
    >>> again = np.einsum("iuc,cij,jcv->uivj", f["l1"], f["r"], f["l2"]).reshape(4, 4)
    >>> bool(np.allclose(again, m))
    True
    """
    m = np.asarray(m)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise ValueError(f"factor_mmstar: m of shape {m.shape} is not square")
    n = len(m)
    b = math.isqrt(n) if b is None else b
    if b < 1 or n % b or n // b < 2:
        nearest = min((d for d in range(1, n) if n % d == 0), key=lambda d: abs(d - b), default=1)
        raise ValueError(
            f"factor_mmstar: b={b} must divide n={n} into two blocks or more; nearest: {nearest}"
        )
    g = n // b
    wide = np.complex128 if np.iscomplexobj(m) else np.float64
    blocks = m.astype(wide).reshape(b, g, b, g).transpose(1, 3, 0, 2)
    if not np.isfinite(blocks).all():
        raise ValueError(f"factor_mmstar: m of shape {m.shape} has entries that are not finite")
    try:
        l1, r, l2 = _factor(blocks, key)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"factor_mmstar: a block of {b} x {b} of m is singular") from error
    diagonal = np.einsum("ijcc->cij", r)
    off = np.abs(r * (1 - np.eye(b))).max() / max(np.abs(diagonal).max(), 1e-300)
    if not off <= tol:
        raise ValueError(
            f"factor_mmstar: m is not in MM* with blocks of b={b}: entries that have to vanish "
            f"reach {off:.1e} of the largest, and tol={tol}"
        )
    return {"l1": l1, "r": diagonal, "l2": l2}


def _factor(blocks: np.ndarray, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """l1, l2, and D as full blocks (g, g, b, b), from blocks A_i D_ij C_j: (g, g, b, b)."""
    g = len(blocks)
    inverse_column = np.linalg.inv(blocks[1:, 0])
    inverse_row = np.linalg.inv(blocks[0, 1:])
    # Each M_i1^-1 M_ij M_1j^-1 M_11 is C_1^-1 (a diagonal) C_1. One of them may have equal
    # eigenvalues, but a random combination has not.
    weights = np.asarray(jax.random.normal(key, (g - 1, g - 1)), np.float64)
    mixed = np.einsum("ij,iab,ijbc,jcd->ad", weights, inverse_column, blocks[1:, 1:], inverse_row)
    values, vectors = np.linalg.eig(mixed @ blocks[0, 0])
    # Real eigenvalues come as complex numbers from some versions of NumPy.
    if np.isrealobj(blocks) and not np.any(np.imag(values)):
        vectors = np.real(vectors)
    l1 = blocks[:, 0] @ vectors
    l2 = np.linalg.inv(l1[0]) @ blocks[0]
    r = np.linalg.inv(l1)[:, None] @ blocks @ np.linalg.inv(l2)[None]
    return l1, r, l2
