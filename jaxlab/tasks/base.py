"""What the training loop needs of a task, and what tasks over a flax NNX model share."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx

from jaxlab.core import registry

Batch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]


class Quality(NamedTuple):
    """The one metric that runs are compared by, and whether more ("max") or less is better."""

    name: str
    mode: str


class Task(Protocol):
    """A task as the loop sees it; `params` is a tree of arrays and matrices.

    Attributes:
      quality: the metric that checkpoints and reports are judged by.
      info: what identifies the data, as JSON.
    """

    quality: Quality
    info: dict[str, Any]

    def init(self, key: jax.Array) -> Any:
        """Parameters at the start; can be traced."""
        ...

    def batch(self, step: int) -> Batch:
        """The training batch of a step: a pure function of (seed, step)."""
        ...

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean loss of a batch and further scalars; pure."""
        ...

    def eval_batches(self) -> Iterator[Batch]:
        """The held-out batches, in a fixed order."""
        ...

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """Sums over a held-out batch, "weight" among them; pure."""
        ...

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics from the sums over all held-out batches."""
        ...


class Network:
    """A flax NNX model as two pure functions of a plain tree of parameters.

    Args:
      section: the config's `model` section.
      **context: what the task tells the model, e.g. its number of classes.

    >>> net = Network({"name": "mlp", "hidden": (8,)}, image_shape=(2, 2, 1), num_classes=3)
    >>> params = net.init(jax.random.key(0))
    >>> net.apply(params, np.ones((5, 2, 2, 1), np.float32)).shape
    (5, 3)
    """

    def __init__(self, section: Mapping[str, Any], **context: Any):
        def make(key: jax.Array) -> Any:
            return registry.build("model", section, rngs=nnx.Rngs(key), **context)

        self._make = make
        # The key is made inside: outside, making it would compile.
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))

    def init(self, key: jax.Array) -> Any:
        """Parameters as nested dicts of arrays."""
        return nnx.to_pure_dict(nnx.state(self._make(key)))

    def apply(self, params: Any, x: jax.Array) -> jax.Array:
        """The model's output for a batch."""
        return nnx.merge(self._graph, params)(x)
