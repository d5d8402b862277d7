"""The discrete Fourier transform as one Monarch matrix and one permutation of the input.

Source: T. Dao et al., "Monarch", ICML 2022 (proposition on the DFT): the four-step FFT of a
composite length, W. Gentleman and G. Sande, "Fast Fourier Transforms: for fun and profit", 1966.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.registry import suggest

# By the name of the norm, the exponents of 1 / n in the forward and in the inverse transform.
_SCALES = {"ortho": (0.5, 0.5), "backward": (0.0, 1.0), "forward": (1.0, 0.0)}


def dft_monarch(
    n: int,
    *,
    inverse: bool = False,
    norm: str = "ortho",
    split: tuple[int, int] | None = None,
    dtype: Any = None,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Factors with `monarch_apply(params, x[perm])` the Fourier transform of x: (..., n).

    Args:
      n: composite length.
      inverse: whether of the inverse transform.
      norm: "ortho", "backward" or "forward", as `jnp.fft.fft`.
      split: (blocks of w1, their size), of product n; None for the divisors nearest to sqrt(n),
        the larger one first.
      dtype: complex; None is the widest enabled. Angles are computed in float64 whatever it is.

    Returns:
      `(params, perm)`: {"w1": (k, p, p), "w2": (p, k, k)} and (n,) integers.

    Raises:
      ValueError: n is prime, or an argument is out of range.

    >>> from jaxlab.methods.monarch.product import monarch_apply
    >>> params, perm = dft_monarch(6)
    >>> x = jnp.arange(6.0)
    >>> bool(jnp.allclose(monarch_apply(params, x[perm]), jnp.fft.fft(x, norm="ortho"), atol=1e-5))
    True
    """
    if norm not in _SCALES:
        raise ValueError(f"dft_monarch: norm={norm!r} is unknown; {suggest(norm, _SCALES)}")
    k, p = _default_split(n) if split is None else split
    if k * p != n or min(k, p) < 1:
        raise ValueError(f"dft_monarch: split={split} has the product {k * p} and not n={n}")
    sign = 1 if inverse else -1
    # Input i k + kk and output t p + a, of angle (t p + a) (i k + kk) / n = a i / p + a kk / n +
    # t kk / k up to whole turns.
    row, column, block = np.arange(p)[:, None], np.arange(p)[None, :], np.arange(k)[:, None, None]
    w1 = _turns(sign * row * column, p) * _turns(sign * row * block, n)
    w2 = np.broadcast_to(_turns(sign * np.outer(np.arange(k), np.arange(k)), k), (p, k, k))
    exponent = _SCALES[norm][inverse]
    factors = {"w1": w1 * float(p) ** -exponent, "w2": w2 * float(k) ** -exponent}
    perm = jnp.asarray(np.arange(n).reshape(p, k).T.ravel())
    return {name: jnp.asarray(w, dtype) for name, w in factors.items()}, perm


def _turns(numerator: np.ndarray, denominator: int) -> np.ndarray:
    return np.exp(2j * np.pi * (numerator % denominator) / denominator)


def _default_split(n: int) -> tuple[int, int]:
    smaller = next((d for d in range(math.isqrt(max(n, 0)), 1, -1) if n % d == 0), None)
    if smaller is None:
        raise ValueError(f"dft_monarch: n={n} is not composite; nearest: {n + 1 if n > 2 else 4}")
    return n // smaller, smaller
