"""The update of inverse Kronecker factors by one vector each."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxlab.core.matrix import accumulator
from jaxlab.kernels import dispatch
from jaxlab.kernels.sherman_morrison.reference import xla
from jaxlab.kernels.sherman_morrison.shapes import Config, Problem

_OP = "sherman_morrison"


def sherman_morrison_update(
    j: jax.Array,
    v: jax.Array,
    *,
    gamma: jax.typing.ArrayLike,
    eps: jax.typing.ArrayLike = math.inf,
    zeta: jax.typing.ArrayLike = 1.0,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """The inverse of `(gamma J + (1 - gamma) I)^-1 + v v^T`, of J as the stabiliser leaves it.

    `jaxlab.optim.mkor.stabilise` and `sherman_morrison` (mode "interp") in one, computed in float32
    or better. Reverse mode gives gradients; a batch of factors and vectors joins the stack.

    Args:
      j: floating, (..., n, n), symmetric.
      v: floating, (..., n).
      gamma: in (0, 1).
      eps: a factor with a larger entry becomes zeta J + (1 - zeta) I first.
      zeta: see `eps`.
      implementation: None takes the kernel where it was measured to win and XLA elsewhere; "xla"
        or "mosaic_gpu" takes that one or raises; of a sequence, the first that can.
      config: of "mosaic_gpu"; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU; without a name, "mosaic_gpu".

    Returns:
      (..., n, n), in j's dtype.

    Raises:
      TypeError: j or v is not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> j = sherman_morrison_update(jnp.full((1, 1), 2.0), jnp.ones(1), gamma=0.9)
    >>> round(j.item(), 4)
    0.6552
    """
    for name, array in (("j", j), ("v", v)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{_OP}: {name} must be floating, not {array.dtype}")
    if j.ndim < 2 or j.shape[-1] != j.shape[-2]:
        raise ValueError(f"{_OP}: j of shape {j.shape} must be (..., n, n)")
    if v.shape != j.shape[:-1]:
        raise ValueError(f"{_OP}: v of shape {v.shape} does not fit; nearest: {j.shape[:-1]}")
    named = dispatch.asked(_OP, implementation, interpret)
    if not j.size:
        return j
    dtype, n = accumulator(j.dtype), j.shape[-1]
    scalars = jnp.stack([jnp.asarray(s, dtype) for s in (gamma, eps, zeta)])
    stacked = j.reshape((-1, n, n)), v.reshape((-1, n)).astype(dtype)
    return _update(named, config, interpret)(*stacked, scalars).reshape(j.shape)


def wins(j: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether the kernel was measured to win at a stack of factors, on this kind of device."""
    platform, kind = dispatch.device()
    entry = dispatch.stored(_OP, kind, _problem(math.prod(j.shape[:-2]), j))
    return platform != "cpu" and (entry or {}).get("implementation", "xla") != "xla"


# Once for each setting: jax knows functions with rules of their own by identity.
@functools.cache
def _update(
    named: tuple[str, ...], config: Config | None, interpret: bool | None
) -> dispatch.Implementation:
    @custom_vmap
    def folded(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
        chosen = dispatch.choice(_OP, _problem(j.shape[0], j), config)
        kernel = dispatch.on_demand(_OP, "mosaic_gpu")
        kernels = {
            "mosaic_gpu": functools.partial(kernel, config=chosen.config, interpret=interpret),
            "xla": xla,
        }
        return dispatch.run(_OP, kernels, j, v, scalars, named=named, chosen=chosen)

    @folded.def_vmap
    def _(size: int, batched: Any, j: jax.Array, v: jax.Array, scalars: jax.Array) -> Any:
        if batched[2]:
            if named and "xla" not in named:
                raise NotImplementedError(
                    f"{_OP}: implementation={named[0]!r} under vmap over gamma, eps or zeta; "
                    "nearest: 'xla'"
                )
            axes = tuple(0 if b else None for b in batched)
            return jax.vmap(xla, in_axes=axes)(j, v, scalars), True
        j, v = (
            x if b else jnp.broadcast_to(x, (size, *x.shape))
            for x, b in zip((j, v), batched[:2], strict=True)
        )
        new = folded(j.reshape((-1, *j.shape[2:])), v.reshape((-1, v.shape[-1])), scalars)
        return new.reshape(j.shape), True

    @jax.custom_vjp
    def update(j: jax.Array, v: jax.Array, scalars: jax.Array) -> jax.Array:
        return folded(j, v, scalars)

    def ahead(j: jax.Array, v: jax.Array, scalars: jax.Array) -> Any:
        return folded(j, v, scalars), (j, v, scalars)

    def back(residuals: Any, g: jax.Array) -> Any:
        return jax.vjp(xla, *residuals)[1](g)

    update.defvjp(ahead, back)
    return jax.jit(update)


def _problem(rows: int, j: jax.Array | jax.ShapeDtypeStruct) -> Problem:
    return Problem(rows, j.shape[-1], str(j.dtype))
