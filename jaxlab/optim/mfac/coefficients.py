"""The numbers of M-FAC's own recursion, from the factors that are used here instead."""

import jax
import jax.numpy as jnp

from jaxlab.optim.mfac.window import FisherWindow, as_damping


def mfac_coefficients(
    win: FisherWindow, damp: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """D, B and q of the dynamic algorithm, for comparison: no product needs them.

    With F_0 = damp I and F_i that of the first i rows g_1, ..., g_i, divided by m:

        v_i = F_{i-1}^-1 g_i = sum_j B_ij g_j,   D_ij = g_i^T F_{i-1}^-1 g_j,   q_i = m + D_ii.

    Source: Frantar et al. 2021, section 3.2 and appendix. I + K / (damp m) up to the factor m has
    the LU factors L and D + m I, and by its symmetry B = L^-1 / damp.

    Args:
      win: the window; rows in the order that they are stored in.
      damp: the damping, above 0.

    Returns:
      D: (m, m) upper triangular; B: (m, m) lower triangular; q: (m,).

    >>> from jaxlab.optim.mfac.window import window_init, window_push
    >>> win = window_push(window_init(2, 2), jnp.array([1.0, 0.0]))
    >>> d, b, q = mfac_coefficients(window_push(win, jnp.array([1.0, 1.0])), 1.0)
    >>> print(q.round(4))  # 2 + 1, 2 + 2 - 1 / 3
    [3.     3.6667]
    """
    m = win.gram.shape[0]
    damping = as_damping(damp, win)
    eye = jnp.eye(m, dtype=win.gram.dtype)
    factor = jnp.linalg.cholesky(m * eye + win.gram / damping)
    roots = jnp.diag(factor)
    upper = roots[:, None] * factor.T
    unit = factor / roots[None, :]
    inverse = jax.scipy.linalg.solve_triangular(unit, eye, lower=True, unit_diagonal=True)
    return jnp.triu(upper - m * eye), inverse / damping, jnp.diag(upper)
