"""Layers whose kernel is a 2-D array or, just as well, a `Matrix`.

Parameters are float32; a layer casts its input and its parameters to its `dtype`. Kernels are read
with `get_value()`, which hands back whatever `nnx.merge` put there.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core.convolution import Convolution, Padding
from jaxlab.core.matrix import Array, Matrix, matmul

Initializer = Callable[..., jax.Array]

# Truncated normal of variance 1 / fan_in; a 2-D kernel's fan-in is its first axis.
fan_in_init: Initializer = nnx.initializers.lecun_normal()


def residual_init(depth: int) -> Initializer:
    """Initialiser of the kernels that end a residual branch, in a stack of `depth` blocks.

    Each block adds two branches; a factor of 1 / sqrt(2 * depth) keeps the variance of their sum
    independent of the depth.
    """
    return nnx.initializers.variance_scaling(0.5 / depth, "fan_in", "truncated_normal")


class Linear(nnx.Module):
    """`x @ kernel + bias`, with kernel (d_in, d_out) and bias (d_out,).

    >>> Linear(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 4))).shape
    (2, 5, 3)
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        use_bias: bool = True,
        dtype: Any = jnp.float32,
        kernel_init: Initializer = fan_in_init,
        rngs: nnx.Rngs,
    ):
        """Draws a kernel from `kernel_init(key, shape, dtype)`; the bias starts at zero."""
        self.dtype = jnp.dtype(dtype)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (d_in, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d_in) to (..., d_out), of the layer's dtype."""
        y = matmul(x.astype(self.dtype), _kernel(self.kernel))
        return y if self.bias is None else _add_bias(y, self.bias)


class Conv(nnx.Module):
    """A 2-D convolution, with kernel (height * width * d_in, d_out) and bias (d_out,).

    The kernel's rows run over (height, width, d_in), the last fastest, so that an array kernel is
    an HWIO kernel reshaped. A `Matrix` kernel multiplies patches of the same order, unless its
    product is the one with its dense array anyway: convolving with that is faster.

    >>> conv = Conv(3, 8, kernel_size=(3, 3), strides=(2, 2), rngs=nnx.Rngs(0))
    >>> conv(jnp.ones((1, 6, 6, 3))).shape
    (1, 3, 3, 8)
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        kernel_size: tuple[int, int],
        strides: tuple[int, int] = (1, 1),
        padding: Padding = "SAME",
        use_bias: bool = True,
        dtype: Any = jnp.float32,
        kernel_init: Initializer = fan_in_init,
        rngs: nnx.Rngs,
    ):
        """Draws a kernel; `padding` is "SAME", "VALID" or ((top, bottom), (left, right))."""
        self.d_in = d_in
        self.kernel_size = tuple(kernel_size)
        self.strides = tuple(strides)
        self.padding = padding if isinstance(padding, str) else tuple((a, b) for a, b in padding)
        self.dtype = jnp.dtype(dtype)
        shape = (math.prod(self.kernel_size) * d_in, d_out)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, d_in) to (B, H', W', d_out), of the layer's dtype."""
        x = x.astype(self.dtype)
        w = _kernel(self.kernel)
        how = Convolution(self.kernel_size, self.strides, self.padding)
        y = w.convolve(x, how) if isinstance(w, Matrix) else how.dense(x, w)
        return y if self.bias is None else _add_bias(y, self.bias)


class Embed(nnx.Module):
    """Rows of `embedding` (num_embeddings, features) by index, and products with its transpose.

    >>> embed = Embed(16, 4, rngs=nnx.Rngs(0))
    >>> x = embed(jnp.zeros((2, 3), jnp.int32))
    >>> x.shape, embed.attend(x).shape
    ((2, 3, 4), (2, 3, 16))
    """

    def __init__(
        self, num_embeddings: int, features: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ):
        """Draws the table from a normal distribution of standard deviation 0.02."""
        self.dtype = jnp.dtype(dtype)
        init = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(init(rngs.params(), (num_embeddings, features), jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """(...,) integers to (..., features), of the layer's dtype."""
        w = _kernel(self.embedding)
        rows = w.take(ids) if isinstance(w, Matrix) else jnp.take(w, ids, axis=0)
        return rows.astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """`x @ embedding.T`: (..., features) to (..., num_embeddings), of the layer's dtype."""
        return matmul(x.astype(self.dtype), _kernel(self.embedding).T)


def normalize(norm: nnx.LayerNorm | nnx.RMSNorm | nnx.GroupNorm, x: jax.Array) -> jax.Array:
    """`norm(x)` computed in float32, of x's dtype: how models call `nnx.LayerNorm` and its kin.

    Their own `dtype` argument promotes implicitly, which strict promotion refuses, as it does
    parameters of a checkpoint in bfloat16.

    >>> x = jnp.ones((2, 4), jnp.bfloat16)
    >>> normalize(nnx.RMSNorm(4, rngs=nnx.Rngs(0)), x).dtype
    dtype(bfloat16)
    """
    graph, state = nnx.split(norm)
    wide = nnx.merge(graph, jax.tree.map(lambda p: p.astype(jnp.float32), state))
    return wide(x.astype(jnp.float32)).astype(x.dtype)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    mask: jax.Array | None = None,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> jax.Array:
    """Softmax attention, with queries in groups that share a key and a value head.

    Args:
      q: (B, T, N, H); query head n reads key and value head n // (N / K).
      k: (B, S, K, H), where K divides N.
      v: (B, S, K, H).
      causal: whether position t sees positions up to t only.
      mask: booleans, which keys may be seen: (B, S) by all queries, or (B, T, S), where B may be 1.
        None is all of them. A query that sees no key gets a mean of all values, finite and of no
        meaning.
      implementation: "xla" computes in float32, anywhere; "cudnn" is the fused kernel of recent
        NVIDIA GPUs, for bfloat16 and float16 only.

    Returns:
      (B, T, N, H), of q's dtype.

    >>> q, kv = jnp.ones((1, 5, 4, 8)), jnp.ones((1, 5, 2, 8))
    >>> attention(q, kv, kv, causal=True).shape
    (1, 5, 4, 8)
    """
    # Every head sees the same keys.
    where = None if mask is None else mask[:, None] if mask.ndim == 3 else mask[:, None, None]
    if implementation != "xla":
        return jax.nn.dot_product_attention(
            q, k, v, mask=where, is_causal=causal, implementation=implementation
        )
    # bfloat16 operands with float32 logits have no gradient under strict promotion: the transpose
    # of such a product mixes the two. Casting first is exact and stays differentiable.
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    return jax.nn.dot_product_attention(*wide, mask=where, is_causal=causal).astype(q.dtype)


def _kernel(param: nnx.Param) -> Array:
    return param.get_value()


def _add_bias(y: jax.Array, bias: nnx.Param) -> jax.Array:
    return y + jnp.broadcast_to(bias.get_value().astype(y.dtype), y.shape)
