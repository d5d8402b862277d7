"""The rules of derivative and batching that products with packed weights share."""

from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from jaxlab.kernels.dispatch import Implementation


def with_rules(
    op: str, forward: Implementation, xla: Implementation, named: tuple[str, ...]
) -> Implementation:
    """A function of (x, packed, floating) that has derivatives and batches well.

    Reverse mode differentiates the product as XLA computes it, in `x` and the floating arguments;
    integers get no cotangent. Under `jax.vmap` over x alone the batch is folded into the rows of x,
    so that one product stays one product; a batch of weights goes to XLA.

    Args:
      op: its name, for messages.
      forward: (x, packed, floating) to the result, x of (rows, k); `packed` and `floating` are
        trees of arrays.
      xla: the same in jax.numpy.
      named: implementations that were asked for, if any. Without "xla" among them a batch of
        weights raises NotImplementedError.
    """

    @custom_vmap
    def folded(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        return forward(x, packed, floating)

    @folded.def_vmap
    def _(size: int, batched: Any, x: jax.Array, packed: Any, floating: Any) -> Any:
        if not any(jax.tree.leaves(batched[1:])):
            y = folded(x.reshape((-1, x.shape[-1])), packed, floating)
            return y.reshape((size, -1, y.shape[-1])), True
        if named and "xla" not in named:
            raise NotImplementedError(
                f"{op}: implementation={named[0]!r} under vmap over the weights; nearest: 'xla'"
            )
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        return jax.vmap(xla, in_axes=axes)(x, packed, floating), True

    @jax.custom_vjp
    def product(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        return folded(x, packed, floating)

    def ahead(x: jax.Array, packed: Any, floating: Any) -> tuple[jax.Array, Any]:
        return folded(x, packed, floating), (x, packed, floating)

    def back(residuals: Any, g: jax.Array) -> tuple[Any, Any, Any]:
        x, packed, floating = residuals
        _, pull = jax.vjp(lambda x, f: xla(x, packed, f), x, floating)
        d_x, d_floating = pull(g)
        none = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), packed)
        return d_x, none, d_floating

    product.defvjp(ahead, back)
    return product
