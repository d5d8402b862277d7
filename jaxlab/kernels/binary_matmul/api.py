"""The product of activations with weights of one or two bits."""

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul.api import check, planar_matmul

KINDS = ("binary", "ternary")


def binary_matmul(
    x: jax.Array,
    packed: Planar,
    scale: jax.Array,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`y = (x @ q.T) * scale`, with q of -1 and +1, or of -1, 0 and +1, packed.

    It is `quantized_matmul` with one scale for each row of W, which multiplies the result.

    Args:
      x: floating, (..., k).
      packed: q, (n, k), of kind "binary" or "ternary", from `pack`.
      scale: floating, (n,).
      implementation: as `quantized_matmul` has it.
      config: likewise.
      interpret: likewise.

    Returns:
      (..., n), in x's dtype.

    Raises:
      TypeError: x or the scale is not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> from jaxlab.kernels.packing import pack
    >>> q = pack(jnp.array([[1, -1, 1], [-1, -1, -1]]), "binary")
    >>> binary_matmul(jnp.array([1.0, 2.0, 3.0]), q, jnp.array([1.0, 0.5])).tolist()
    [2.0, -3.0]
    """
    check("binary_matmul", x, packed, KINDS)
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(f"binary_matmul: scale must be floating, not {scale.dtype}")
    if scale.shape != packed.shape[:1]:
        raise ValueError(
            f"binary_matmul: scale of shape {scale.shape} must be ({packed.shape[0]},)"
        )
    return planar_matmul(
        "binary_matmul", x, packed, scale[None], None, implementation, config, interpret
    )
