"""What products with weights share: the choice of a kernel, derivatives, batches, checks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jaxlab.kernels import dispatch
from jaxlab.kernels.dispatch import Implementation


# Once for each setting: jax knows functions with rules of their own by identity.
@functools.cache
def product(
    op: str,
    package: str,
    problem_of: Callable[..., dispatch.Problem],
    xla: Implementation,
    named: tuple[str, ...],
    config: Any,
    interpret: bool | None,
    **settings: Any,
) -> Implementation:
    """A function of (x, packed, floating) that takes the kernel or XLA, and has `with_rules`.

    Args:
      op: its name.
      package: whose kernel it takes.
      problem_of: what the choice looks at; of the same arguments and `settings`, as xla is.
      xla: the product in jax.numpy.
      named: implementations that were asked for, if any.
      config: of the kernel; None takes the stored one, or a rule of thumb.
      interpret: runs the kernel on a CPU.
      **settings: hashable; of the product.
    """
    by_xla = functools.partial(xla, **settings)

    def forward(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        # Here and not before, so that a batch that was folded into the rows is counted.
        problem = problem_of(x, packed, floating, **settings)
        chosen = dispatch.choice(op, problem, config, named)
        kernel = functools.partial(
            dispatch.on_demand(package, "mosaic_gpu"),
            config=chosen.config,
            interpret=interpret,
            **settings,
        )
        kernels = {"mosaic_gpu": kernel, "xla": by_xla}
        return dispatch.run(op, kernels, x, packed, floating, named=named, chosen=chosen)

    return jax.jit(with_rules(op, forward, by_xla, named))


def with_rules(
    op: str, forward: Implementation, xla: Implementation, named: tuple[str, ...]
) -> Implementation:
    """A function of (x, packed, floating) that has derivatives and batches well.

    Reverse mode differentiates the product as XLA computes it, in `x` and the floating arguments;
    integers get no cotangent. Batches are those of `folding`, which has the same arguments.
    """
    folded = folding(op, forward, xla, named)

    @jax.custom_vjp
    def differentiable(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        return folded(x, packed, floating)

    def ahead(x: jax.Array, packed: Any, floating: Any) -> tuple[jax.Array, Any]:
        # By the function that has a derivative, so that derivatives have one.
        return differentiable(x, packed, floating), (x, packed, floating)

    def back(residuals: Any, g: jax.Array) -> tuple[Any, Any, Any]:
        x, packed, floating = residuals
        _, pull = jax.vjp(lambda x, f: xla(x, packed, f), x, floating)
        d_x, d_floating = pull(g)
        none = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), packed)
        return d_x, none, d_floating

    differentiable.defvjp(ahead, back)
    return differentiable


def folding(
    op: str, forward: Implementation, xla: Implementation, named: tuple[str, ...]
) -> Implementation:
    """A function of x and two trees of weights that batches well.

    Under `jax.vmap` over x alone the batch is folded into the rows of x, so that one product stays
    one product; a batch of weights goes to XLA.

    Args:
      op: its name, for messages.
      forward: x and the weights to the result, x of (rows, k).
      xla: the same in jax.numpy.
      named: implementations that were asked for, if any. Without "xla" among them a batch of
        weights raises NotImplementedError.
    """

    @custom_vmap
    def folded(x: jax.Array, first: Any, second: Any) -> jax.Array:
        return forward(x, first, second)

    @folded.def_vmap
    def _(size: int, batched: Any, x: jax.Array, first: Any, second: Any) -> Any:
        if not any(jax.tree.leaves(batched[1:])):
            y = folded(x.reshape((size * x.shape[1], x.shape[2])), first, second)
            return y.reshape((size, x.shape[1], y.shape[-1])), True
        if named and "xla" not in named:
            raise NotImplementedError(
                f"{op}: implementation={named[0]!r} under vmap over the weights; nearest: 'xla'"
            )
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        return jax.vmap(xla, in_axes=axes)(x, first, second), True

    return folded


def check_scales(
    op: str, shape: tuple[int, ...], scale: jax.Array, zero: jax.Array | None = None
) -> None:
    """What a product with (n, k) integers asks of their scales and zero points.

    Raises:
      TypeError: scales that are not floating.
      ValueError: they are not (groups, n), k is no multiple of the groups, or zeros of other shape.
    """
    n, k = shape
    if not jnp.issubdtype(scale.dtype, jnp.floating):
        raise TypeError(f"{op}: scale must be floating, not {scale.dtype}")
    if scale.ndim != 2 or scale.shape[1] != n:
        raise ValueError(f"{op}: scale of shape {scale.shape} must be (groups, {n})")
    groups = scale.shape[0]
    if groups < 1 or k % groups:
        nearest = min((d for d in range(1, k + 1) if k % d == 0), key=lambda d: abs(d - groups))
        raise ValueError(
            f"{op}: scale has {groups} groups, which k={k} is no multiple of; nearest: {nearest}"
        )
    if zero is not None and (
        zero.shape != scale.shape or not jnp.issubdtype(zero.dtype, jnp.floating)
    ):
        raise ValueError(f"{op}: zero must be floating{scale.shape}, not {zero.dtype}{zero.shape}")
