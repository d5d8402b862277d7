"""Stationary kernels of one axis, of variance 1, for regression on grids.

Sources: C. Rasmussen, C. Williams, "Gaussian Processes for Machine Learning", 2006, chapter 4;
A. Wilson, R. Adams, "Gaussian Process Kernels for Pattern Discovery and Extrapolation", ICML 2013,
for spectral mixtures. Those with Student t spectra, which have Matern envelopes, and derivatives of
all of them, are in `jaxlab.gp.spectral`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.registry import suggest
from jaxlab.gp.spectral import ENVELOPES, is_uniform, spectral_kernel, toeplitz
from jaxlab.special.matern import matern as matern_of_any_smoothness

AxisParams: TypeAlias = dict[str, jax.Array]


class AxisKernel(NamedTuple):
    """A kernel of one axis.

    Attributes:
      init: from the points of an axis (n,) and a dtype to parameters to begin with.
      value: from parameters and differences z of any shape to k(z).
    """

    init: Callable[[np.ndarray, Any], AxisParams]
    value: Callable[[AxisParams, jax.Array], jax.Array]


def squared_exponential(z: jax.Array, length: jax.typing.ArrayLike) -> jax.Array:
    """exp(-z^2 / (2 length^2)).

    >>> round(squared_exponential(jnp.ones(()), 1.0).item(), 4)
    0.6065
    """
    return jnp.exp(-jnp.square(z / jnp.asarray(length, z.dtype)) / 2)


def matern(z: jax.Array, length: jax.typing.ArrayLike, nu: float) -> jax.Array:
    """The Matern kernel of smoothness nu: closed for 1/2, 3/2 and 5/2, by Bessel's K otherwise.

    Args:
      z: differences of any shape.
      length: of the kernel, with the usual sqrt(2 nu) / length before |z|.
      nu: positive; static.

    Raises:
      ValueError: nu is not positive.

    >>> [round(matern(jnp.ones(()), 1.0, nu).item(), 4) for nu in (0.5, 1.5, 2.5)]
    [0.3679, 0.4834, 0.524]
    """
    if not nu > 0:
        raise ValueError(f"matern: nu={nu} must be positive; nearest: 0.5")
    length = jnp.asarray(length, z.dtype)
    if nu not in _CLOSED:
        return matern_of_any_smoothness(jnp.abs(z), nu, length)
    return _CLOSED[nu](jnp.abs(z) * (2 * nu) ** 0.5 / length)


_CLOSED: dict[float, Callable[[jax.Array], jax.Array]] = {
    0.5: lambda s: jnp.exp(-s),
    1.5: lambda s: (1 + s) * jnp.exp(-s),
    2.5: lambda s: (1 + s + jnp.square(s) / 3) * jnp.exp(-s),
}


def _tenth(x: np.ndarray, dtype: Any) -> AxisParams:
    """A tenth of the axis, and no less than a step."""
    span = max((x[-1] - x[0]) / 10, (x[-1] - x[0]) / (len(x) - 1))
    return {"log_length": jnp.asarray(math.log(span), dtype)}


def matern_axis(nu: float) -> AxisKernel:
    """A Matern kernel of smoothness nu as the kernel of an axis; its length is learned.

    >>> kernel = matern_axis(0.5)
    >>> kernel.value({"log_length": jnp.zeros(())}, jnp.zeros(2)).tolist()
    [1.0, 1.0]
    """
    if not nu > 0:
        raise ValueError(f"matern_axis: nu={nu} must be positive; nearest: 0.5")
    return AxisKernel(_tenth, lambda params, z: matern(z, jnp.exp(params["log_length"]), nu))


def spectral_axis(count: int = 8, envelope: str = "gaussian") -> AxisKernel:
    """A spectral mixture as the kernel of an axis: its spectrum is `count` bumps, all learned.

    Args:
      count: Q, of components; they begin with frequencies from 0 to half of the axis's Nyquist
        frequency.
      envelope: "gaussian" for Gaussian bumps; "matern12", "matern32" or "matern52" for Student t
        ones of 1, 3 or 5 degrees of freedom.

    Raises:
      ValueError: `count` is less than 1, or there is no such envelope.

    >>> params = spectral_axis(3).init(np.linspace(0.0, 1.0, 9), jnp.float32)
    >>> params["freq"].tolist()
    [0.0, 1.0, 2.0]
    """
    if count < 1:
        raise ValueError(f"spectral_axis: count={count} must be 1 or more; nearest: 1")
    if envelope not in ENVELOPES:
        raise ValueError(f"spectral_axis: envelope={envelope!r}; {suggest(envelope, ENVELOPES)}")

    def init(x: np.ndarray, dtype: Any) -> AxisParams:
        span = x[-1] - x[0]
        nyquist = (len(x) - 1) / (2 * span)
        lengths = jnp.full(count, -math.log(span / 4), dtype)
        return {
            "log_w": jnp.full(count, -math.log(count), dtype),
            "log_ls": ENVELOPES[envelope].power * lengths,
            "freq": jnp.linspace(0, nyquist / 2, count, dtype=dtype),
        }

    def value(params: AxisParams, z: jax.Array) -> jax.Array:
        # The variance belongs to the whole grid's kernel, not to an axis's.
        share = {**params, "log_w": jax.nn.log_softmax(params["log_w"])}
        return spectral_kernel(share, z, envelope=envelope)

    return AxisKernel(init, value)


KERNELS: dict[str, AxisKernel] = {
    "squared_exponential": AxisKernel(
        _tenth, lambda params, z: squared_exponential(z, jnp.exp(params["log_length"]))
    ),
    "matern12": matern_axis(0.5),
    "matern32": matern_axis(1.5),
    "matern52": matern_axis(2.5),
    "spectral_gaussian": spectral_axis(),
    "spectral_student": spectral_axis(envelope="matern52"),
    # Values at different points have nothing to do with one another.
    "white": AxisKernel(lambda x, dtype: {}, lambda params, z: (z == 0).astype(z.dtype)),
}


def axis_kernel(kernel: str | AxisKernel) -> AxisKernel:
    """The kernel of a name; a kernel is returned as it is.

    Raises:
      ValueError: there is none of that name.
    """
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r} is unknown; {suggest(kernel, KERNELS)}")
        return KERNELS[kernel]
    return kernel


def axis_covariance(
    kernel: str | AxisKernel,
    params: AxisParams,
    x: np.ndarray,
    other: np.ndarray | None = None,
    dtype: Any = None,
) -> jax.Array:
    """Covariances of the points of an axis, or of the points of two.

    Args:
      kernel: a name of `KERNELS`, or a kernel.
      params: what its `init` makes.
      x: (n,), a NumPy array; where its points have equal distances, n values are computed.
      other: (m,), or None for x itself.
      dtype: of the result; that of the parameters if None.

    Returns:
      (n, n), or (n, m).

    >>> zero = {"log_length": jnp.zeros(())}
    >>> [round(float(k), 4) for k in axis_covariance("matern12", zero, np.arange(3.0))[0]]
    [1.0, 0.3679, 0.1353]
    """
    value = axis_kernel(kernel).value
    leaves = jax.tree.leaves(params)
    dtype = dtype or (leaves[0].dtype if leaves else jnp.zeros(()).dtype)
    if other is None and is_uniform(x):
        step = (x[-1] - x[0]) / (len(x) - 1)
        return toeplitz(value(params, jnp.asarray(step * np.arange(len(x)), dtype)))
    other = x if other is None else other
    return value(params, jnp.asarray(x[:, None] - other[None, :], dtype))
