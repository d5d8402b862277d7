"""A sentence encoder of BERT's layout, mean-pooled: all-MiniLM-L6-v2 with its published weights.

Source: J. Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019 (the layers,
normalised after each branch); N. Reimers and I. Gurevych, "Sentence-BERT", 2019 (the pooling).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from jaxlab.core.registry import register
from jaxlab.interop.bert import EncoderConfig, export_minilm, load_minilm, minilm_folder
from jaxlab.interop.pretrained import is_numbered, stack_layers, unstack_layers
from jaxlab.models import layers
from jaxlab.models.checks import check_divides, check_positive, compute_dtype
from jaxlab.models.layers import Embed, Linear, attention

__all__ = [
    "EncoderConfig",
    "SentenceEncoder",
    "check_tokens",
    "embed",
    "encode_tokens",
    "export_minilm",
    "load_minilm",
    "minilm_folder",
    "normalize",
    "pool",
    "sentence_encoder",
    "stack_layers",
    "unstack_layers",
]

Params = dict[str, Any]


class Embeddings(nnx.Module):
    """The sum of three tables' rows, normalised: `word`, `position`, `token_type`, `norm`."""

    def __init__(self, cfg: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        """Tables of `cfg.vocab`, `cfg.positions` and `cfg.types` rows."""
        self.word, self.position, self.token_type = (
            Embed(rows, cfg.hidden, dtype=dtype, rngs=rngs)
            for rows in (cfg.vocab, cfg.positions, cfg.types)
        )
        self.norm = _layer_norm(cfg, rngs)

    def __call__(self, ids: jax.Array, type_ids: jax.Array) -> jax.Array:
        """(B, T) integers to (B, T, hidden)."""
        x = self.word(ids) + self.token_type(type_ids)
        return layers.normalize(self.norm, x + self.position(jnp.arange(ids.shape[1]))[None])


class Attention(nnx.Module):
    """Every token attends to the tokens that are no padding; `q`, `k`, `v`, `out`, with biases."""

    def __init__(self, cfg: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        """Kernels of (hidden, hidden); head j is columns j * hidden / heads and on."""
        self.heads = cfg.heads
        self.q, self.k, self.v, self.out = (
            Linear(cfg.hidden, cfg.hidden, dtype=dtype, rngs=rngs) for _ in range(4)
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, hidden) and (B, T) booleans to (B, T, hidden)."""
        q, k, v = (
            layer(x).reshape(*x.shape[:-1], self.heads, -1) for layer in (self.q, self.k, self.v)
        )
        return self.out(attention(q, k, v, causal=False, mask=mask).reshape(x.shape))


class FeedForward(nnx.Module):
    """`down(gelu(up(x)))`, with the exact GELU and not its tanh approximation."""

    def __init__(self, cfg: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        """Kernels of (hidden, intermediate) and back."""
        self.up = Linear(cfg.hidden, cfg.intermediate, dtype=dtype, rngs=rngs)
        self.down = Linear(cfg.intermediate, cfg.hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., hidden) to the same."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Layer(nnx.Module):
    """`attn_norm(x + attn(x))`, then `mlp_norm(x + mlp(x))`."""

    def __init__(self, cfg: EncoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        """The two branches, each with a norm behind its sum."""
        self.attn = Attention(cfg, dtype=dtype, rngs=rngs)
        self.attn_norm = _layer_norm(cfg, rngs)
        self.mlp = FeedForward(cfg, dtype=dtype, rngs=rngs)
        self.mlp_norm = _layer_norm(cfg, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, hidden) and (B, T) booleans to (B, T, hidden)."""
        x = layers.normalize(self.attn_norm, x + self.attn(x, mask))
        return layers.normalize(self.mlp_norm, x + self.mlp(x))


class SentenceEncoder(nnx.Module):
    """Parameters `embeddings/{word,position,token_type,norm}` and `layers/<i>`.

    A layer has `attn/{q,k,v,out}`, `attn_norm`, `mlp/{up,down}` and `mlp_norm`, each a `kernel` or
    `scale`, and a `bias`. With `scan_layers`, `layers` is one layer whose parameters have a first
    axis over the depth.
    """

    def __init__(
        self, cfg: EncoderConfig, *, scan_layers: bool = False, dtype: Any, rngs: nnx.Rngs
    ):
        """An encoder of the sizes in `cfg`, computing in `dtype`."""
        self.cfg = cfg
        self.embeddings = Embeddings(cfg, dtype=dtype, rngs=rngs)
        depth = [Layer(cfg, dtype=dtype, rngs=rngs) for _ in range(cfg.layers)]
        self.layers = _stacked(depth) if scan_layers else nnx.List(depth)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T) token ids and their mask to float32 embeddings (B, hidden) of length 1."""
        return normalize(pool(self.hidden(ids, mask), mask))

    def hidden(
        self, ids: jax.Array, mask: jax.Array, *, type_ids: jax.Array | None = None
    ) -> jax.Array:
        """(B, T) token ids and their mask to the last hidden states (B, T, hidden)."""
        check_tokens(ids, mask, cfg=self.cfg)
        x = self.embeddings(ids, jnp.zeros_like(ids) if type_ids is None else type_ids)
        seen = jnp.asarray(mask) != 0
        if not isinstance(self.layers, Layer):
            for layer in self.layers:
                x = layer(x, seen)
            return x
        graph, stack = nnx.split(self.layers)
        return jax.lax.scan(lambda x, w: (nnx.merge(graph, w)(x, seen), None), x, stack)[0]


def encode_tokens(
    params: Params,
    ids: jax.Array,
    mask: jax.Array,
    *,
    cfg: EncoderConfig,
    type_ids: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The last hidden states of an encoder, a pure function.

    Args:
      params: of `load_minilm`, or with stacked layers; any kernel may be a matrix.
      ids: (B, T) integers, T at most `cfg.positions`.
      mask: (B, T), 0 where `ids` is padding.
      cfg: the sizes.
      type_ids: (B, T) integers, which of two texts a token belongs to; None is the first.
      dtype: that the layers compute in; norms and attention weights are float32 in any case.

    Returns:
      (B, T, hidden) of `dtype`. Where `mask` is 0 the states have no meaning.

    Raises:
      ValueError: the shapes differ or T is too long; or, outside of jit, an id has no row.
    """
    graph = _graph(cfg, jnp.dtype(dtype), not is_numbered(params["layers"]))
    return nnx.merge(graph, params).hidden(ids, mask, type_ids=type_ids)


def pool(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens that `mask` counts, in float32: (B, T, D), (B, T) to (B, D).

    >>> pool(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[1, 1, 0]])).tolist()
    [[3.0]]
    """
    weight = jnp.asarray(mask).astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=-2)
    return total / jnp.maximum(jnp.sum(weight, axis=-2), 1e-9)


def normalize(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """`x / max(|x|, eps)` along the last axis; the gradient at 0 is finite.

    >>> normalize(jnp.array([3.0, 4.0])).tolist(), normalize(jnp.zeros(2)).tolist()
    ([0.6000000238418579, 0.800000011920929], [0.0, 0.0])
    """
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The root has no derivative at 0, and `where` alone would multiply it by 0: NaN.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return x / jnp.maximum(norm, eps)


def embed(
    params: Params,
    ids: jax.Array,
    mask: jax.Array,
    *,
    cfg: EncoderConfig,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Sentence embeddings of length 1: (B, T) ids and mask to float32 (B, hidden).

    The arguments and errors are those of `encode_tokens`. The dot product of two embeddings is
    the cosine between them.
    """
    return normalize(pool(encode_tokens(params, ids, mask, cfg=cfg, dtype=dtype), mask))


def check_tokens(ids: Any, mask: Any, *, cfg: EncoderConfig) -> None:
    """Checks a batch before any device work.

    Raises:
      ValueError: `ids` or `mask` is not (B, T), T is too long, or an id has no row in the table:
        a look-up on a device would take another row in silence. Traced ids are not looked at.
    """
    if len(np.shape(ids)) != 2 or np.shape(mask) != np.shape(ids):
        raise ValueError(
            f"sentence_encoder: ids {np.shape(ids)} and mask {np.shape(mask)} must both be (B, T)"
        )
    if np.shape(ids)[1] > cfg.positions:
        raise ValueError(
            f"sentence_encoder: {np.shape(ids)[1]} tokens are more than the encoder's "
            f"{cfg.positions} positions; nearest: {cfg.positions}"
        )
    if isinstance(ids, Tracer) or not np.size(ids):
        return
    low, high = int(np.min(ids)), int(np.max(ids))
    if low < 0 or high >= cfg.vocab:
        wrong = low if low < 0 else high
        raise ValueError(
            f"sentence_encoder: ids has {wrong}, which is not in 0..{cfg.vocab - 1}; "
            f"nearest: {0 if low < 0 else cfg.vocab - 1}"
        )


@register("model", "sentence_encoder")
def sentence_encoder(
    *,
    rngs: nnx.Rngs,
    vocab_size: int = EncoderConfig.vocab,
    d_model: int = EncoderConfig.hidden,
    depth: int = EncoderConfig.layers,
    heads: int = EncoderConfig.heads,
    d_mlp: int = EncoderConfig.intermediate,
    positions: int = EncoderConfig.positions,
    types: int = EncoderConfig.types,
    norm_eps: float = EncoderConfig.ln_eps,
    scan_layers: bool = False,
    dtype: str = "float32",
) -> SentenceEncoder:
    """A sentence encoder; the defaults are the sizes of all-MiniLM-L6-v2.

    Args:
      rngs: for the initial parameters.
      vocab_size: tokens are in [0, vocab_size).
      d_model: width of the hidden states.
      depth: number of layers.
      heads: of the attention; divides `d_model`.
      d_mlp: hidden width of the feed-forward layers.
      positions: longest text in tokens.
      types: how many texts a token can say it belongs to.
      norm_eps: what the norms add to the variance.
      scan_layers: whether the layers are one stack that is scanned: `layers/mlp/up/kernel` of shape
        (depth, d_model, d_mlp), and so on. One layer is compiled, whatever the depth.
      dtype: of the activations, "float32" or "bfloat16".

    Raises:
      ValueError: `heads` does not divide, a number is not positive, or `dtype` is unknown.

    >>> def embeddings(ids):
    ...     return sentence_encoder(rngs=nnx.Rngs(0))(ids, jnp.ones_like(ids))
    >>> jax.eval_shape(embeddings, jnp.zeros((2, 16), jnp.int32)).shape
    (2, 384)
    """
    owner = "sentence_encoder"
    check_positive(owner, vocab_size=vocab_size, d_model=d_model, depth=depth, d_mlp=d_mlp)
    check_positive(owner, positions=positions, types=types, norm_eps=norm_eps)
    check_divides(owner, "heads", heads, d_model, f"d_model={d_model}")
    cfg = EncoderConfig(vocab_size, d_model, depth, heads, d_mlp, positions, types, float(norm_eps))
    activations = compute_dtype(owner, dtype)
    return SentenceEncoder(cfg, scan_layers=scan_layers, dtype=activations, rngs=rngs)


@functools.cache
def _graph(cfg: EncoderConfig, dtype: Any, scan_layers: bool) -> Any:
    def make():
        return SentenceEncoder(cfg, scan_layers=scan_layers, dtype=dtype, rngs=nnx.Rngs(0))

    return nnx.split(nnx.eval_shape(make))[0]


def _layer_norm(cfg: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses the digits that such an epsilon is about.
    return nnx.LayerNorm(cfg.hidden, epsilon=cfg.ln_eps, use_fast_variance=False, rngs=rngs)


def _stacked(depth: list[Layer]) -> Layer:
    graph, _ = nnx.split(depth[0])
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(layer) for layer in depth))
    return nnx.merge(graph, stack)
