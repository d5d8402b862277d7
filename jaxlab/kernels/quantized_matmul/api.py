"""The product of activations with weights that are integers and scales."""

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul.reference import xla
from jaxlab.kernels.quantized_matmul.shapes import Problem, problem_of
from jaxlab.kernels.rules import check_scales, product

KINDS = ("int8", "int4", "uint4")


def quantized_matmul(
    x: jax.Array,
    packed: Planar,
    scale: jax.Array,
    zero: jax.Array | None = None,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`y = x @ ((q - zero) * scale).T`, with q packed.

    The reference sums in float32 and rounds once; the kernel likewise; XLA rounds the dequantised
    weights to x's dtype first if x has several rows, and not to float16. What is not finite in x
    stays so, but where there are zero points an infinity may become NaN. Reverse mode gives
    gradients to x, `scale` and `zero`; under `jax.vmap` over x alone it stays one product. On
    several devices call it inside `jax.shard_map`.

    Args:
      x: floating, (..., k).
      packed: q, (n, k), of kind "int8", "int4" or "uint4", from `pack`.
      scale: floating, (groups, n): k / groups consecutive k share one.
      zero: like `scale`; None is 0.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., n), in x's dtype.

    Raises:
      TypeError: x or a scale is not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> from jaxlab.kernels.packing import pack
    >>> q = pack(jnp.ones((2, 8), jnp.int8), "int4")
    >>> quantized_matmul(jnp.ones((1, 8)), q, jnp.ones((2, 2))).tolist()
    [[8.0, 8.0]]
    """
    check("quantized_matmul", x, packed, KINDS)
    check_scales("quantized_matmul", packed.shape, scale, zero)
    return planar_matmul(
        "quantized_matmul", x, packed, scale, zero, implementation, config, interpret
    )


def check(op: str, x: jax.Array, packed: Planar, kinds: tuple[str, ...]) -> None:
    """What a product asks of its operands."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{op}: x must be floating, not {x.dtype}")
    if not isinstance(packed, Planar):
        raise TypeError(f"{op}: packed must be a Planar, from `pack`, not {type(packed).__name__}")
    if packed.kind not in kinds:
        raise ValueError(f"{op}: packed is of kind {packed.kind!r}; valid: {', '.join(kinds)}")
    packed.check(op)
    if packed.words.ndim != 2:
        raise ValueError(f"{op}: packed of shape {packed.shape} must have two axes, (n, k)")
    if x.ndim < 1 or x.shape[-1] != packed.length:
        raise ValueError(f"{op}: x of shape {x.shape} does not end in k={packed.length}")


def planar_matmul(
    op: str,
    x: jax.Array,
    packed: Planar,
    scale: jax.Array,
    zero: jax.Array | None,
    implementation: dispatch.Choice,
    config: Config | None,
    interpret: bool | None,
) -> jax.Array:
    """The product of checked operands: what the ops on planar integers share."""
    named = dispatch.asked(op, implementation, interpret, config)
    lead = x.shape[:-1]
    rows = x.reshape((-1, x.shape[-1]))
    if rows.shape[0] == 0:
        return jnp.zeros((*lead, packed.shape[0]), x.dtype)
    matmul = product(op, "quantized_matmul", _problem, xla, named, config, interpret)
    return matmul(rows, packed, (scale, zero)).reshape((*lead, packed.shape[0]))


def _problem(x: jax.Array, packed: Planar, floating: tuple[jax.Array, jax.Array | None]) -> Problem:
    return problem_of(x.shape[0], packed, floating[0].shape[0])
