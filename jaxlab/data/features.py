"""Feature vectors of unit length with labels: what data sets of features construct."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jaxlab.data.base import Data, ImageData
from jaxlab.data.batching import check_context, epoch_indices, padded_batches

Map = Callable[[np.ndarray], np.ndarray]


class FeatureData(Data, Protocol):
    """Batches of "feature", float32 (B, dim), rows of length 1, and "label", int32 (B,).

    A held-out batch has "weight" too, and "outside", float32 (B, dim): features of as many items
    that do not come from where the data come from.

    Attributes:
      dim: of a feature vector.
      num_classes: labels are in [0, num_classes).
    """

    dim: int
    num_classes: int


class MappedFeatures:
    """Features of a data set of images, computed batch by batch and kept nowhere.

    Args:
      name: the data set, for reports.
      images: where the images come from.
      features: (B, H, W, C) to (B, dim).
      outside: images (B, H, W, C) to images from elsewhere, of the same shape.
      dim: of a feature vector.
      info: further entries of `info`.
    """

    def __init__(
        self,
        name: str,
        images: ImageData,
        features: Map,
        outside: Map,
        *,
        dim: int,
        info: dict[str, Any],
    ):
        self._images, self._features, self._outside = images, features, outside
        self.dim = dim
        self.num_classes = images.num_classes
        self.info: dict[str, Any] = {
            **images.info,
            "name": name,
            "source": images.info["name"],
            "dim": dim,
            **info,
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The features and labels of the images of a training step."""
        batch = self._images.batch(step)
        return {"feature": unit_rows(self._features(batch["image"])), "label": batch["label"]}

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out images' features in order, with "weight" and "outside"."""
        for batch in self._images.eval_batches():
            images = batch["image"]
            yield {
                "feature": unit_rows(self._features(images)),
                "outside": unit_rows(self._features(self._outside(images))),
                "label": batch["label"],
                "weight": batch["weight"],
            }


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows divided by their length: float32.

    >>> unit_rows(np.array([[3.0, 4.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return (x / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)


class StoredFeatures:
    """Features that are held in memory, as `FeatureData`.

    Args:
      name: the data set, for messages and reports.
      train: features, float32 (N, dim) of length 1, and labels (N,).
      held_out: features (M, dim), labels (M,), and features from elsewhere (M, dim).
      num_classes: number of classes.
      seed: of the training batches' order.
      batch_size: rows of every batch.
      info: further entries of `info`.

    Raises:
      ValueError: fewer training rows than `batch_size`.

    >>> y = np.eye(3, dtype=np.float32)
    >>> data = StoredFeatures("doctest", (y, np.arange(3)), (y, np.arange(3), y), num_classes=3,
    ...                       seed=0, batch_size=2)
    >>> data.batch(0)["feature"].shape, [b["weight"].sum() for b in data.eval_batches()]
    ((2, 3), [np.float32(2.0), np.float32(1.0)])
    """

    def __init__(
        self,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray, np.ndarray],
        *,
        num_classes: int,
        seed: int,
        batch_size: int,
        info: dict[str, Any] | None = None,
    ):
        check_context(name, seed=seed, batch_size=batch_size)
        if len(train[0]) < batch_size:
            raise ValueError(
                f"{name}: batch_size={batch_size} is more than {len(train[0])} training rows; "
                f"nearest: {len(train[0])}"
            )
        self._train = {"feature": train[0], "label": train[1].astype(np.int32)}
        self._held_out = {
            "feature": held_out[0],
            "label": held_out[1].astype(np.int32),
            "outside": held_out[2],
        }
        self._seed, self._batch_size = seed, batch_size
        self.dim, self.num_classes = train[0].shape[1], num_classes
        self.info: dict[str, Any] = {
            "name": name,
            "unit": "rows",
            "train_items": len(train[0]),
            "eval_items": len(held_out[0]),
            "dim": self.dim,
            "num_classes": num_classes,
            **(info or {}),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of a training step, every row once per epoch."""
        count = len(self._train["label"])
        rows = epoch_indices(self._seed, step, batch_size=self._batch_size, count=count)
        return {name: x[rows] for name, x in self._train.items()}

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out rows in order, with "weight" and "outside"."""
        for rows, weight in padded_batches(len(self._held_out["label"]), self._batch_size):
            yield {**{name: x[rows] for name, x in self._held_out.items()}, "weight": weight}
