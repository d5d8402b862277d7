"""What the training loop needs of a task, and what tasks over a flax NNX model share."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
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

    A task may have more, which `Run` looks for: `shown`, names of metrics that progress shows
    after the loss; `choice`, a `Quality` by which checkpoints and a step are chosen where the
    quality itself is nothing that a user would have; `figures(params)`, by name functions that
    draw into a matplotlib figure, for the run folder; `prepare()`, called before the parameters
    are in memory, for what batches need of another model.

    Attributes:
      quality: the metric that checkpoints and reports are judged by.
      info: what identifies the data, as JSON; its "name" is that in reports.
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

    def calibration_weight(self, batch: Batch) -> jax.Array:
        """What rows or tokens of a batch count in statistics of inputs: 0 for padding; pure."""
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

    @property
    def graph(self) -> nnx.GraphDef:
        """The model without its parameters, as `nnx.merge` takes it."""
        return self._graph

    def init(self, key: jax.Array) -> Any:
        """Parameters as nested dicts of arrays."""
        return nnx.to_pure_dict(nnx.state(self._make(key)))

    def apply(self, params: Any, *inputs: jax.Array) -> jax.Array:
        """The model's output for the inputs that it takes, most often one."""
        return nnx.merge(self._graph, params)(*inputs)


class NetworkTask:
    """What tasks with a dataset and a flax NNX model share: how both are built and batched.

    Args:
      data: the config's data section.
      model: the config's model section.
      seed: of the data's order.
      batch_size: examples of a training and of an evaluation batch.

    Raises:
      ValueError: the dataset does not have what the task tells the model.
    """

    # What of the dataset the model is told, by the names of both.
    context: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, *, data: Mapping[str, Any], model: Mapping[str, Any], seed: int, batch_size: int
    ):
        self._data = registry.build("data", data, seed=seed, batch_size=batch_size)
        missing = [name for name in self.context if not hasattr(self._data, name)]
        if missing:
            task = type(self).__name__
            raise ValueError(f"data {data['name']!r} has no {missing[0]!r}, which {task} needs")
        self.info: dict[str, Any] = self._data.info
        context = {name: getattr(self._data, name) for name in self.context}
        self.network = Network(model, **context)

    def init(self, key: jax.Array) -> Any:
        """Parameters at the start."""
        return self.network.init(key)

    def batch(self, step: int) -> Batch:
        """The training batch of a step."""
        return self._data.batch(step)

    def calibration_weight(self, batch: Batch) -> jax.Array:
        """1 for every row: nothing is padding."""
        return jnp.ones(())

    def eval_batches(self) -> Iterator[Batch]:
        """The held-out batches, each with "weight"."""
        return self._data.eval_batches()
