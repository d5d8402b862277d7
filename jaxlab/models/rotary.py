"""Rotary positions, and how Llama 3.1 stretches them over a longer context.

Source: J. Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021,
equation 34, and the code that Meta published with Llama 3.1, 2024. Pairs are entries i and i + H/2
of a head, as in checkpoints on Hugging Face; the original code pairs 2i and 2i + 1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlab.models.checks import check_positive


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Longer rotary wavelengths for a longer context, as Llama 3.1 has them ("llama3").

    A pair that turns `high_freq_factor` times or more in the context it was trained on keeps its
    frequency, one that turns `low_freq_factor` times or less has it divided by `factor`, and
    between the two the frequency changes linearly with the number of turns.

    Attributes:
      factor: how many times longer the slow wavelengths become.
      low_freq_factor: turns up to which a pair is slow.
      high_freq_factor: turns from which on a pair is fast.
      original_max_position_embeddings: length of the context before.

    Raises:
      ValueError: a number is not positive, or the two limits are not in order.

    >>> scaling = RopeScaling(factor=8.0, original_max_position_embeddings=100)
    >>> scaling(2 * jnp.pi * jnp.array([0.08, 0.025, 0.008])) / (2 * jnp.pi)
    Array([0.08      , 0.01406..., 0.001     ], dtype=float32)
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192

    def __post_init__(self):
        check_positive("decoder: rope_scaling", **dataclasses.asdict(self))
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"decoder: rope_scaling: low_freq_factor={self.low_freq_factor} must be less than "
                f"high_freq_factor={self.high_freq_factor}"
            )

    def __call__(self, frequencies: jax.Array) -> jax.Array:
        """Radians per position to the same, scaled."""
        turns = frequencies * (self.original_max_position_embeddings / (2 * math.pi))
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clip(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


def rotary(
    x: jax.Array,
    positions: jax.Array,
    *,
    theta: float = 10000.0,
    scaling: RopeScaling | None = None,
) -> jax.Array:
    """Turns each pair (x_i, x_{i + H/2}) by the angle `position * theta ** (-2i / H)`.

    Products of two turned vectors depend on the difference of their positions only.

    Args:
      x: (B, T, N, H), H even.
      positions: (T,) numbers.
      theta: wavelengths run from 2 pi to 2 pi theta.
      scaling: what makes them longer, or None.

    Returns:
      (B, T, N, H), of x's dtype; angles and products are float32.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotary(x, jnp.array([jnp.pi / 2])).round(3).ravel().tolist()
    [-0.0, 1.0]
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    frequencies = frequencies if scaling is None else scaling(frequencies)
    angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
