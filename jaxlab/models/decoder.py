"""A decoder-only language model with Llama's layout.

Source: H. Touvron et al., "LLaMA: open and efficient foundation language models", 2023. RMSNorm
before each branch, rotary positions (J. Su et al., "RoFormer", 2021, equation 34), grouped queries
(J. Ainslie et al., "GQA", 2023), SwiGLU (N. Shazeer, "GLU variants improve transformer", 2020), no
biases.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core.registry import check_arguments, register
from jaxlab.models.checks import check_divides, check_positive, compute_dtype
from jaxlab.models.generation import Cache
from jaxlab.models.layers import Embed, Initializer, Linear, attention, normalize, residual_init
from jaxlab.models.rotary import RopeScaling, rotary


class Attention(nnx.Module):
    """Causal attention; kernels `q`, `out` of `heads` heads, `k`, `v` of `kv_heads` heads."""

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        kv_heads: int,
        rope_theta: float,
        rope_scaling: RopeScaling | None,
        implementation: Literal["xla", "cudnn"],
        out_init: Initializer,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        """`out_init` draws the kernel of `out`, which ends the residual branch."""
        self.d_head = d_model // heads
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.implementation: Literal["xla", "cudnn"] = implementation
        d_kv = kv_heads * self.d_head
        self.q, self.k, self.v = (
            _linear(d_model, d, dtype=dtype, rngs=rngs) for d in (d_model, d_kv, d_kv)
        )
        self.out = _linear(d_model, d_model, dtype=dtype, kernel_init=out_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, d_model) to the same."""
        q, k, v = self._heads(x, jnp.arange(x.shape[1]))
        y = attention(q, k, v, causal=True, implementation=self.implementation)
        return self.out(y.reshape(x.shape))

    def extend(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The same of tokens that follow `length` others, and keys and values with theirs.

        By XLA in float32, whatever the implementation: logits take (T, S) numbers for each head.
        """
        positions = length + jnp.arange(x.shape[1], dtype=length.dtype)
        q, k, v = self._heads(x, positions)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, k.astype(keys.dtype), length, 1)
        values = jax.lax.dynamic_update_slice_in_dim(values, v.astype(values.dtype), length, 1)
        places = jnp.arange(keys.shape[1], dtype=length.dtype)
        seen = places[None, None, :] <= positions[None, :, None]
        y = attention(q, keys, values, causal=False, mask=seen)
        return self.out(y.reshape(x.shape)), keys, values

    def _heads(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = (
            layer(x).reshape(*x.shape[:-1], -1, self.d_head) for layer in (self.q, self.k, self.v)
        )
        q, k = (
            rotary(y, positions, theta=self.rope_theta, scaling=self.rope_scaling) for y in (q, k)
        )
        return q, k, v


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(
        self, d_model: int, d_mlp: int, *, out_init: Initializer, dtype: Any, rngs: nnx.Rngs
    ):
        """`out_init` draws the kernel of `down`, which ends the residual branch."""
        self.gate, self.up = (_linear(d_model, d_mlp, dtype=dtype, rngs=rngs) for _ in range(2))
        self.down = _linear(d_mlp, d_model, dtype=dtype, kernel_init=out_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d_model) to the same."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Layer(nnx.Module):
    """`x + attn(attn_norm(x))`, then `x + mlp(mlp_norm(x))`."""

    def __init__(self, attn: Attention, mlp: SwiGLU, *, d_model: int, eps: float, rngs: nnx.Rngs):
        """The two branches, each with a norm in front."""
        self.attn_norm = nnx.RMSNorm(d_model, epsilon=eps, rngs=rngs)
        self.attn = attn
        self.mlp_norm = nnx.RMSNorm(d_model, epsilon=eps, rngs=rngs)
        self.mlp = mlp

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, d_model) to the same."""
        x = x + self.attn(normalize(self.attn_norm, x))
        return x + self.mlp(normalize(self.mlp_norm, x))

    def extend(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, length: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The same behind `length` other tokens, whose keys and values are there."""
        y, keys, values = self.attn.extend(normalize(self.attn_norm, x), keys, values, length)
        x = x + y
        return x + self.mlp(normalize(self.mlp_norm, x)), keys, values


class Decoder(nnx.Module):
    """Parameters `embed/embedding`, `layers/<i>`, `final_norm/scale`, and `head/kernel` if untied.

    With `scan_layers`, `layers` is one layer whose parameters have a first axis over the depth.
    A layer has `attn_norm/scale`, `attn/{q,k,v,out}/kernel`, `mlp_norm/scale` and
    `mlp/{gate,up,down}/kernel`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        d_model: int,
        depth: int,
        heads: int,
        kv_heads: int,
        d_mlp: int,
        rope_theta: float,
        rope_scaling: RopeScaling | None,
        norm_eps: float,
        tie_embeddings: bool,
        remat: bool,
        scan_layers: bool,
        attention: Literal["xla", "cudnn"],
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """The arguments of `decoder`, none left to choose and all checked."""
        self.seq_len = seq_len
        self.remat = remat
        self.scan_layers = scan_layers
        make: dict[str, Any] = {"out_init": residual_init(depth), "dtype": dtype, "rngs": rngs}
        attn: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "rope_theta": rope_theta}
        attn |= {"rope_scaling": rope_scaling, "implementation": attention}
        self.embed = Embed(vocab_size, d_model, dtype=dtype, rngs=rngs)
        layers = [
            Layer(
                Attention(d_model, **attn, **make),
                SwiGLU(d_model, d_mlp, **make),
                d_model=d_model,
                eps=norm_eps,
                rngs=rngs,
            )
            for _ in range(depth)
        ]
        self.layers = _stacked(layers) if scan_layers else nnx.List(layers)
        self.final_norm = nnx.RMSNorm(d_model, epsilon=norm_eps, rngs=rngs)
        self.head = None if tie_embeddings else _linear(d_model, vocab_size, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, T) integers to float32 logits (B, T, vocab_size) of each next token.

        Raises:
          ValueError: T is more than the model's `seq_len`.
        """
        if tokens.shape[1] > self.seq_len:
            raise ValueError(
                f"decoder: {tokens.shape[1]} tokens are more than seq_len={self.seq_len}; "
                f"nearest: {self.seq_len}"
            )
        return self._logits(self._through_layers(self.embed(tokens)))

    def empty_cache(self, batch: int, room: int) -> Cache:
        """A cache of no tokens for `batch` texts, with room for so many of each."""
        layers = [self.layers] if isinstance(self.layers, Layer) else self.layers
        attn = layers[0].attn
        # Of shapes alone: a kernel may be a matrix, and a stack of them.
        d_kv = attn.k.kernel.get_value().shape[-1]
        shape = (batch, room, d_kv // attn.d_head, attn.d_head)
        dtype = self.embed.dtype
        if isinstance(self.layers, Layer):
            depth = self.layers.attn.k.kernel.get_value().shape[0]
            keys, values = (jnp.zeros((depth, *shape), dtype) for _ in range(2))
        else:
            keys, values = ([jnp.zeros(shape, dtype) for _ in layers] for _ in range(2))
        return Cache(keys, values, jnp.zeros((), jnp.int32))

    def extend(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads tokens (B, T) behind those of the cache, which must have room for them.

        Returns:
          Float32 logits (B, vocab_size) of the token behind the last, and the cache with theirs.
        """
        x, length = self.embed(tokens), cache.length
        if isinstance(self.layers, Layer):
            graph, stack = nnx.split(self.layers)

            def step(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
                layer, keys, values = each
                x, keys, values = nnx.merge(graph, layer).extend(x, keys, values, length)
                return x, (keys, values)

            x, (keys, values) = jax.lax.scan(step, x, (stack, cache.keys, cache.values))
        else:
            keys, values = [], []
            for layer, k, v in zip(self.layers, cache.keys, cache.values, strict=True):
                x, k, v = layer.extend(x, k, v, length)
                keys.append(k)
                values.append(v)
        return self._logits(x[:, -1]), Cache(keys, values, length + tokens.shape[1])

    def _logits(self, x: jax.Array) -> jax.Array:
        x = normalize(self.final_norm, x)
        logits = self.embed.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)

    def _through_layers(self, x: jax.Array) -> jax.Array:
        apply = nnx.remat(_apply) if self.remat else _apply
        if not isinstance(self.layers, Layer):
            for layer in self.layers:
                x = apply(layer, x)
            return x
        graph, stack = nnx.split(self.layers)
        x, _ = jax.lax.scan(lambda x, layer: (apply(nnx.merge(graph, layer), x), None), x, stack)
        return x


@register("model", "decoder")
def decoder(
    *,
    vocab_size: int,
    seq_len: int,
    rngs: nnx.Rngs,
    d_model: int = 256,
    depth: int = 4,
    heads: int = 4,
    kv_heads: int | None = None,
    d_mlp: int | None = None,
    rope_theta: float = 10000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    norm_eps: float = 1e-5,
    tie_embeddings: bool = False,
    remat: bool = False,
    scan_layers: bool = False,
    attention: Literal["xla", "cudnn"] = "xla",
    dtype: str = "float32",
) -> Decoder:
    """A decoder-only language model with Llama's layout.

    Args:
      vocab_size: tokens are in [0, vocab_size).
      seq_len: longest sequence that the model accepts.
      rngs: for the initial parameters.
      d_model: width of the residual stream.
      depth: number of layers.
      heads: query heads; d_model / heads is whole and even.
      kv_heads: key and value heads, which divide `heads`; None is as many.
      d_mlp: hidden width of the feed-forward layers; None is 8/3 of d_model, rounded up to a
        multiple of 64: as many parameters as two kernels of four times the width.
      rope_theta: base of the rotary wavelengths.
      rope_scaling: the attributes of a `RopeScaling`, or None.
      norm_eps: what RMSNorm adds to the mean square.
      tie_embeddings: whether the embedding serves as head.
      remat: whether gradients recompute each layer instead of keeping its activations.
      scan_layers: whether the layers are one stack that is scanned: `layers/attn/q/kernel` of shape
        (depth, d_model, d_model), and so on. One layer is compiled, whatever the depth.
      attention: "xla", or "cudnn" for the fused kernel of recent NVIDIA GPUs, in bfloat16.
      dtype: of the activations, "float32" or "bfloat16".

    Raises:
      ValueError: the heads do not divide, a number is not positive, or `dtype` is unknown.

    >>> def logits(tokens):
    ...     return decoder(vocab_size=256, seq_len=16, rngs=nnx.Rngs(0))(tokens)
    >>> jax.eval_shape(logits, jnp.zeros((2, 16), jnp.int32)).shape
    (2, 16, 256)
    """
    kv_heads = heads if kv_heads is None else kv_heads
    d_mlp = -(-8 * d_model // (3 * 64)) * 64 if d_mlp is None else d_mlp
    check_positive("decoder", vocab_size=vocab_size, seq_len=seq_len, d_model=d_model, depth=depth)
    check_positive("decoder", d_mlp=d_mlp, rope_theta=rope_theta, norm_eps=norm_eps)
    if d_model % 2:
        raise ValueError(f"decoder: d_model={d_model} must be even; nearest: {d_model + 1}")
    activations = compute_dtype("decoder", dtype)
    if attention != "xla" and activations != jnp.bfloat16:
        raise ValueError(f"decoder: attention={attention!r} needs dtype='bfloat16', not {dtype!r}")
    if attention != "xla" and jax.default_backend() != "gpu":
        raise ValueError(
            f"decoder: attention={attention!r} needs an NVIDIA GPU, and this is a "
            f"{jax.default_backend()}; nearest: 'xla'"
        )
    check_divides("decoder", "heads", heads, d_model // 2, f"half of d_model={d_model}")
    check_divides("decoder", "kv_heads", kv_heads, heads, f"heads={heads}")
    if rope_scaling is not None:
        check_arguments("decoder: rope_scaling", RopeScaling, rope_scaling)
    return Decoder(
        vocab_size=vocab_size,
        seq_len=seq_len,
        d_model=d_model,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        d_mlp=d_mlp,
        rope_theta=rope_theta,
        rope_scaling=None if rope_scaling is None else RopeScaling(**rope_scaling),
        norm_eps=norm_eps,
        tie_embeddings=tie_embeddings,
        remat=remat,
        scan_layers=scan_layers,
        attention=attention,
        dtype=activations,
        rngs=rngs,
    )


def _linear(d_in: int, d_out: int, **kwargs: Any) -> Linear:
    return Linear(d_in, d_out, use_bias=False, **kwargs)


def _stacked(layers: list[Layer]) -> Layer:
    """One layer whose parameters are those of all layers, along a new first axis."""
    states = [nnx.state(layer) for layer in layers]
    graph, _ = nnx.split(layers[0])
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def _apply(layer: Layer, x: jax.Array) -> jax.Array:
    return layer(x)
