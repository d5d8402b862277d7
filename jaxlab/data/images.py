"""Image classification data held in memory: what the image data sets construct."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlab.data.batching import check_context, epoch_indices, padded_batches


class Images:
    """Images and labels as `base.ImageData`.

    Pixels are stored as uint8 and standardised when a batch is made, with the mean and standard
    deviation of each channel over the training images.

    Args:
      name: the data set, for messages and reports.
      train: images, uint8 (N, H, W, C), and labels (N,), integers in [0, num_classes).
      held_out: the same for evaluation, (M, H, W, C) and (M,).
      num_classes: number of classes.
      seed: of the training batches' order.
      batch_size: rows of every batch.
      info: further entries of `info`.

    Raises:
      ValueError: fewer training images than `batch_size`, no held-out image, shapes that do not
        belong together, or a label that is out of range.

    >>> pixels, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 2
    >>> data = Images("doctest", (pixels, labels), (pixels, labels), num_classes=2, seed=0,
    ...               batch_size=4)
    >>> data.batch(0)["image"].shape, [b["weight"].sum() for b in data.eval_batches()]
    ((4, 8, 8, 1), [np.float32(4.0), np.float32(2.0)])
    """

    def __init__(
        self,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        held_out: tuple[np.ndarray, np.ndarray],
        *,
        num_classes: int,
        seed: int,
        batch_size: int,
        info: dict[str, Any] | None = None,
    ):
        check_context(name, seed=seed, batch_size=batch_size)
        for part, (images, labels) in (("training", train), ("held-out", held_out)):
            _check_part(f"{name}: the {part} part", images, labels, train[0], num_classes)
        if len(train[0]) < batch_size:
            raise ValueError(
                f"{name}: batch_size={batch_size} is more than {len(train[0])} training images; "
                f"nearest: {len(train[0])}"
            )
        self._train = train[0], train[1].astype(np.int32)
        self._held_out = held_out[0], held_out[1].astype(np.int32)
        self._mean, self._std = _channel_statistics(train[0])
        self._seed = seed
        self._batch_size = batch_size
        height, width, channels = train[0].shape[1:]
        self.image_shape = (height, width, channels)
        self.num_classes = num_classes
        self.info: dict[str, Any] = {
            "name": name,
            "unit": "images",
            "train_items": len(train[0]),
            "eval_items": len(held_out[0]),
            "train_sha256": _sha256(*self._train),
            "eval_sha256": _sha256(*self._held_out),
            "image_shape": list(self.image_shape),
            "num_classes": num_classes,
            **(info or {}),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of a training step: "image", float32 (B, H, W, C), and "label", int32 (B,)."""
        rows = epoch_indices(
            self._seed, step, batch_size=self._batch_size, count=len(self._train[0])
        )
        return self._rows(self._train, rows)

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out images in order: "image", "label" and "weight", float32 (B,)."""
        for rows, weight in padded_batches(len(self._held_out[0]), self._batch_size):
            yield {**self._rows(self._held_out, rows), "weight": weight}

    def _rows(self, part: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        images, labels = part
        return {
            "image": (images[rows].astype(np.float32) - self._mean) / self._std,
            "label": labels[rows],
        }


def _check_part(
    owner: str, images: np.ndarray, labels: np.ndarray, train_images: np.ndarray, num_classes: int
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != train_images.shape[1:]:
        raise ValueError(
            f"{owner} has images {images.dtype}{list(images.shape)}; "
            f"they must be uint8[N, H, W, C], of one size in both parts"
        )
    if len(images) == 0:
        raise ValueError(f"{owner} has no image")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{owner} has {len(images)} images, but labels of shape {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{owner} has label {low if low < 0 else high}, not in [0, {num_classes})")


def _channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by channel, float32 (C,) each; exact sums of integers."""
    axes = (0, 1, 2)
    count = images[..., 0].size
    mean = images.sum(axes, dtype=np.uint64) / count
    square = np.square(images, dtype=np.uint16).sum(axes, dtype=np.uint64) / count
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # A channel that never varies is left at zero instead of being divided by zero.
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _sha256(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()
