"""Next-token prediction over bytes: cross-entropy, bits per byte."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import registry
from jaxlab.data.base import TextData
from jaxlab.tasks.base import Batch, Metrics, NetworkTask, Quality


@registry.register("task", "language_model")
class LanguageModel(NetworkTask):
    """A model of tokens (B, T) to logits (B, T, vocabulary).

    A batch is {"tokens": (B, T + 1) int32}, held out with "weight": (B,) or (B, T) float32. The
    dataset has `vocab_size` and `seq_len`.
    """

    quality = Quality("bits_per_byte", "min")
    context = ("vocab_size", "seq_len")

    @property
    def text(self) -> TextData:
        """The data, which turn texts into tokens and back."""
        return self._data

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean cross-entropy in nats, and the same in bits per byte."""
        loss = jnp.mean(self._losses(params, batch))
        return loss, {"bits_per_byte": loss / math.log(2)}

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """Sums of loss and weight over the tokens that count."""
        losses = self._losses(params, batch)
        weight = jnp.asarray(batch["weight"])
        weight = jnp.broadcast_to(weight.reshape((weight.shape[0], -1)), losses.shape)
        return {"loss": jnp.sum(losses * weight), "weight": jnp.sum(weight)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Mean loss in nats, and in bits per byte."""
        loss = sums["loss"] / sums["weight"]
        return {"loss": loss, "bits_per_byte": loss / math.log(2)}

    def _losses(self, params: Any, batch: Batch) -> jax.Array:
        tokens = jnp.asarray(batch["tokens"])
        logits = self.network.apply(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
