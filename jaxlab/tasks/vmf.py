"""Classes as mixtures of von Mises-Fisher distributions, fitted to feature vectors by EM.

Sources: M. Sato, S. Ishii, "On-line EM Algorithm for the Normalized Gaussian Network", Neural
Computation 2000; O. Cappe, E. Moulines, "On-line Expectation-Maximization Algorithm for Latent Data
Models", JRSS B 2009.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core import registry
from jaxlab.special.vmf.estimation import direction, vmf_kappa_from_r
from jaxlab.special.vmf.mixture import below_one, component_log_prob, exact_product
from jaxlab.tasks.base import Batch, Metrics, Quality

# Of the mean resultant length that random starts have: it only breaks ties between components.
_START = 0.5


@registry.register("task", "vmf")
class Vmf:
    """A joint density of features (B, p) and classes: every class a mixture of vMF components.

    The parameters are the expectations of the model's sufficient statistics: "weights" (classes,
    components), the probability of each component, and "moments" (classes, components, p), the
    mean feature where it is multiplied by that probability. The loss is the mean of
    -log p(feature, class), and what it gives as its gradient is the natural gradient of EM: the
    parameters minus the same expectations over the batch. So `sgd` with rate 1 and neither
    momentum nor decay nor clipping makes one step of EM of a batch, which for one component is
    the maximum-likelihood fit; smaller rates on small batches are stochastic EM. A class that a
    batch does not have loses weight, and keeps its distribution.

    A batch is that of `jaxlab.data.features.FeatureData`. No model: the data are the features.

    Args:
      data: the config's data section; the dataset has `dim` and `num_classes`.
      seed: of the data's order.
      batch_size: examples of a training and of an evaluation batch.
      components: of every class.
      prior: points spread over the sphere that every component holds beside its own. Above 0 it
        keeps components of few points from growing without bound.

    Raises:
      ValueError: a number is out of range, or the data are no features.
    """

    quality = Quality("accuracy", "max")

    def __init__(
        self,
        *,
        data: Mapping[str, Any],
        seed: int,
        batch_size: int,
        components: int = 1,
        prior: float = 0.0,
    ):
        if components < 1:
            raise ValueError(f"vmf: components={components}; nearest: 1")
        if not prior >= 0:
            raise ValueError(f"vmf: prior={prior} must be 0 or more; nearest: 0.0")
        self._data = registry.build("data", data, seed=seed, batch_size=batch_size)
        if not hasattr(self._data, "dim"):
            raise ValueError(
                f"vmf: data {data['name']!r} has no features; nearest: random_features"
            )
        self._components = components
        self.info: dict[str, Any] = self._data.info
        self._prior = prior / self.info["train_items"]

    def init(self, key: jax.Array) -> Any:
        """Equal weights, and directions of examples of each class in the first batch."""
        batch = self._data.batch(0)
        y, label = jnp.asarray(batch["feature"]), jnp.asarray(batch["label"])
        classes, k = self._data.num_classes, self._components
        own = label[None, :] == jnp.arange(classes)[:, None]
        # An order of all examples for each class, its own first.
        rank = jax.random.uniform(key, (classes, len(label))) - own.astype(jnp.float32)
        # More components than examples: some start from the same.
        rows = jnp.argsort(rank, axis=1)[:, jnp.arange(k) % len(label)]
        share = 1 / (classes * k)
        weights = jnp.full((classes, k), share, jnp.float32)
        return {"weights": weights, "moments": share * _START * y[rows]}

    def batch(self, step: int) -> Batch:
        """The training batch of a step."""
        return self._data.batch(step)

    def calibration_weight(self, batch: Batch) -> jax.Array:
        """1 for every row: nothing is padding."""
        return jnp.ones(())

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Mean of -log p(feature, class) in nats; its gradient is the natural one."""
        y, label = jnp.asarray(batch["feature"]), jnp.asarray(batch["label"])
        held = jax.lax.stop_gradient(params)
        joint = self.log_joint(held, y)
        own = jnp.take_along_axis(joint, label[:, None, None], axis=1)[:, 0]
        share = jax.nn.softmax(own, axis=-1)
        class_of = jax.nn.one_hot(label, self._data.num_classes, dtype=y.dtype)
        count = len(label)
        owned = class_of[:, :, None] * share[:, None, :]
        moments = exact_product(owned.reshape(count, -1).T, y)
        found = {
            "weights": jnp.sum(owned, axis=0) / count,
            "moments": moments.reshape(*owned.shape[1:], -1) / count,
        }
        nats = jax.nn.logsumexp(own, axis=-1)
        pull = sum(jnp.sum((held[name] - found[name]) * params[name]) for name in found)
        # Worth 0; its gradient is the parameters minus what was found.
        loss = pull - jax.lax.stop_gradient(pull) - jnp.mean(nats)
        accuracy = jnp.mean((_classes(joint) == label).astype(y.dtype))
        return loss, {"accuracy": accuracy, "log_likelihood": _mean_density(joint)}

    def log_joint(self, params: Any, y: jax.Array) -> jax.Array:
        """Log p(feature, class, component): (B, p) to (B, classes, components), float32."""
        weights, moments = params["weights"], params["moments"]
        tiny = jnp.finfo(weights.dtype).tiny
        mu, length = direction(moments)
        length = length / jnp.maximum(weights + self._prior, tiny)
        r = jnp.minimum(length, below_one(length.dtype))
        kappa = vmf_kappa_from_r(y.shape[-1], r)
        density = component_log_prob(y, mu.reshape(-1, y.shape[-1]), kappa.reshape(-1))
        # A component of weight 0 is as unlikely as the dtype can say, and no likelihood infinite.
        log_weights = jnp.log(jnp.maximum(weights, tiny))
        return density.reshape(len(y), *weights.shape) + log_weights[None]

    def eval_batches(self) -> Iterator[Batch]:
        """The held-out batches, each with "weight" and "outside"."""
        return self._data.eval_batches()

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """Sums over rows, and over pairs of a held-out row and one from elsewhere."""
        y, label = jnp.asarray(batch["feature"]), jnp.asarray(batch["label"])
        weight = jnp.asarray(batch["weight"])
        joint = self.log_joint(params, y)
        density = jax.nn.logsumexp(joint, axis=(1, 2))
        elsewhere = self.log_joint(params, jnp.asarray(batch["outside"]))
        outside = jax.nn.logsumexp(elsewhere, axis=(1, 2))
        own = jnp.take_along_axis(joint, label[:, None, None], axis=1)[:, 0]
        # Directions of the classes' means, without concentrations and weights.
        centroids, _ = direction(jnp.sum(params["moments"], axis=1))
        nearest = jnp.argmax(exact_product(y, centroids.T), axis=-1)
        finite = jnp.isfinite(density) & jnp.isfinite(outside)
        rows = {
            "accuracy": (_classes(joint) == label).astype(weight.dtype),
            "centroid_accuracy": (nearest == label).astype(weight.dtype),
            "log_likelihood": density,
            "loss": -jax.nn.logsumexp(own, axis=-1),
            "finite": finite.astype(weight.dtype),
        }
        sums = {name: jnp.sum(values * weight) for name, values in rows.items()}
        # Of pairs, which of the two is more likely: a mean over pairs within batches.
        order = jnp.sign(density[:, None] - outside[None, :])
        sums["ordered"] = weight @ ((1 + order) / 2) @ weight
        sums["pairs"] = jnp.sum(weight) ** 2
        return {**sums, "weight": jnp.sum(weight)}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means over held-out rows, and how well the density tells data from elsewhere.

        `log_likelihood` is that of the features, `loss` the negative one of features and classes,
        `centroid_accuracy` that of the nearest class mean by cosine, `finite` the share of rows
        whose log-likelihoods are finite, and `outside_auroc` the area under the curve of the
        log-likelihood against data from elsewhere, over the pairs of each batch.
        """
        names = ("accuracy", "centroid_accuracy", "log_likelihood", "loss", "finite")
        metrics = {name: sums[name] / sums["weight"] for name in names}
        return {**metrics, "outside_auroc": sums["ordered"] / sums["pairs"]}


def _classes(joint: jax.Array) -> jax.Array:
    return jnp.argmax(jax.nn.logsumexp(joint, axis=-1), axis=-1)


def _mean_density(joint: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.logsumexp(joint, axis=(1, 2)))
