"""Image classification: cross-entropy, accuracy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import registry
from jaxlab.tasks.base import Batch, Metrics, NetworkTask, Quality


@registry.register("task", "classify")
class Classify(NetworkTask):
    """A model of images (B, H, W, C) to logits (B, classes).

    A batch is {"image": (B, H, W, C) float32, "label": (B,) int32}, held out with
    "weight": (B,) float32.

    Args:
      data: the config's data section; the dataset has `image_shape` and `num_classes`.
      model: the config's model section.
      seed: of the data's order.
      batch_size: examples of a training and of an evaluation batch.
      label_smoothing: probability spread evenly over the classes during training.
    """

    quality = Quality("accuracy", "max")
    context = ("image_shape", "num_classes")

    def __init__(
        self,
        *,
        data: Mapping[str, Any],
        model: Mapping[str, Any],
        seed: int,
        batch_size: int,
        label_smoothing: float = 0.0,
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"classify: label_smoothing={label_smoothing} must be in [0, 1)")
        super().__init__(data=data, model=model, seed=seed, batch_size=batch_size)
        self._smoothing = label_smoothing

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean cross-entropy in nats, and accuracy."""
        logits = self.network.apply(params, jnp.asarray(batch["image"]))
        label = jnp.asarray(batch["label"])
        targets = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), self._smoothing)
        loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
        return loss, {"accuracy": jnp.mean(jnp.argmax(logits, -1) == label)}

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """Sums of correct answers, loss and weight."""
        logits = self.network.apply(params, jnp.asarray(batch["image"]))
        label, weight = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        correct = (jnp.argmax(logits, -1) == label).astype(weight.dtype)
        return {
            "accuracy": jnp.sum(correct * weight),
            "loss": jnp.sum(losses * weight),
            "weight": jnp.sum(weight),
        }

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy in [0, 1] and mean loss in nats."""
        return {k: sums[k] / sums["weight"] for k in ("accuracy", "loss")}
