"""Feature vectors of unit length with labels: what data sets of features construct."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jaxlab.data.base import Data, ImageData

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
