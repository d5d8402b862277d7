"""The characteristic function of Student's t distribution.

Source: S. Hurst, "The characteristic function of the Student t distribution", Australian National
University, Centre for Mathematics and its Applications, Research Report SRR044-95, 1995.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.matern import log_matern
from jaxlab.special.promotion import check_above


def student_t_log_cf(t: Any, df: Any, scale: Any = 1.0) -> jax.Array:
    """The logarithm of `E exp(i t X)`, real because the distribution is symmetric.

    `log K_{df/2}(s) + (df/2) log s - log Gamma(df/2) - (df/2 - 1) log 2` with
    `s = sqrt(df) scale |t|`: a Matern covariance of smoothness df / 2 at distance |t|. A location m
    would add i t m.

    Args:
      t: real.
      df: degrees of freedom, above 0; inf is the normal distribution.
      scale: of X, above 0; all three are broadcast.

    Returns:
      0 at t = 0 and negative elsewhere; as differentiable as `matern`.

    Raises:
      ValueError: df or scale is known not to be above 0.

    >>> f"{student_t_log_cf(-2.0, 1.0):.4f}"  # Cauchy: -|t|
    '-2.0000'
    """
    owner = "student_t_log_cf"
    check_above(owner, 0, strict=True, df=df, scale=scale)
    return log_matern(jnp.abs(t), _half(df), _inverse(scale))


def _half(x: Any) -> Any:
    return x / 2 if isinstance(x, int | float) else _floating(x) / 2


def _inverse(x: Any) -> Any:
    return 1 / x if isinstance(x, int | float) else 1 / _floating(x)


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, np.floating) else x.astype(float)
