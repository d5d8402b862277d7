"""Text from a language model, token by token, with the keys and values of earlier tokens kept."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer


class Cache(NamedTuple):
    """The keys and values of the tokens that were read, with room for more.

    Attributes:
      keys: by layer, (B, S, K, H), turned by their positions; with `scan_layers` one array with a
        first axis over the depth.
      values: likewise.
      length: int32 scalar, tokens read so far.
    """

    keys: Any
    values: Any
    length: jax.Array


def generate(
    graph: nnx.GraphDef,
    params: Any,
    prompt: jax.Array,
    *,
    length: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues texts; one program, compiled for each shape of the prompt and each `length`.

    Args:
      graph: of a model with `empty_cache`, `extend`, `seq_len` and `embed`, as `decoder` makes it.
      params: its parameters, arrays or finalized matrices.
      prompt: integers (B, T), T >= 1: texts of equal length, of ids below the vocabulary's size,
        which nobody checks in a traced prompt.
      length: tokens to add.
      temperature: 0 takes the likeliest token; otherwise tokens are drawn from the softmax of the
        logits over this.
      key: for drawing; not needed at temperature 0.

    Returns:
      int32 (B, length).

    Raises:
      ValueError: the prompt is empty or has an id outside the vocabulary, T + length is more than
        the model's `seq_len`, a number is out of range, or there is no key to draw with.

    >>> from jaxlab.models.decoder import decoder
    >>> graph, state = nnx.split(decoder(vocab_size=8, seq_len=6, depth=1, rngs=nnx.Rngs(0)))
    >>> generate(graph, nnx.to_pure_dict(state), jnp.array([[1, 2]]), length=3).shape
    (1, 3)
    """
    if prompt.ndim != 2 or 0 in prompt.shape or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(
            f"generate: prompt must be integers (B, T) of one token or more, not "
            f"{prompt.dtype}{list(prompt.shape)}"
        )
    if length < 1:
        raise ValueError(f"generate: length={length} must be positive; nearest: 1")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature={temperature} must be 0 or more; nearest: 0")
    if temperature and key is None:
        raise ValueError(f"generate: temperature={temperature} draws tokens, and there is no key")
    model = nnx.merge(graph, params)
    # Lookups give NaN or wrap for what is outside, and what is read behind it has no meaning.
    if not isinstance(prompt, Tracer):
        vocab_size = model.embed.embedding[...].shape[-2]
        for found, nearest in ((int(prompt.min()), 0), (int(prompt.max()), vocab_size - 1)):
            if not 0 <= found < vocab_size:
                raise ValueError(
                    f"generate: prompt has id {found}; vocab_size={vocab_size}; nearest: {nearest}"
                )
    seq_len = model.seq_len
    if prompt.shape[1] + length > seq_len:
        raise ValueError(
            f"generate: {prompt.shape[1]} tokens of the prompt and length={length} are more than "
            f"the model's seq_len={seq_len}; nearest: length={max(seq_len - prompt.shape[1], 0)}"
        )
    key = jax.random.key(0) if key is None else key
    return _generate(graph, params, prompt, jnp.float32(temperature), key, length, temperature > 0)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _generate(
    graph: nnx.GraphDef,
    params: Any,
    prompt: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    length: int,
    draws: bool,
) -> jax.Array:
    def pick(logits: jax.Array, step: jax.Array) -> jax.Array:
        if not draws:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logits / temperature)
        return drawn.astype(jnp.int32)

    def step(carry: Any, at: jax.Array) -> tuple[Any, jax.Array]:
        token, cache = carry
        logits, cache = nnx.merge(graph, params).extend(token[:, None], cache)
        return (pick(logits, at), cache), token

    model = nnx.merge(graph, params)
    # The last token is not read again, and needs no room.
    cache = model.empty_cache(prompt.shape[0], prompt.shape[1] + length - 1)
    logits, cache = model.extend(prompt, cache)
    first = pick(logits, jnp.int32(0))
    steps = jnp.arange(1, length, dtype=jnp.int32)
    (last, _), tokens = jax.lax.scan(step, (first, cache), steps)
    return jnp.concatenate([tokens.T, last[:, None]], axis=1)
