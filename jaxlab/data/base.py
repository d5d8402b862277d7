"""What the training loop and the tasks ask of a data set."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class Data(Protocol):
    """Training batches by step, and held-out batches in a fixed order.

    A constructor takes `seed` and `batch_size` from the program, and the rest from the config.

    Attributes:
      info: what identifies the data in a report, as JSON: "name", "unit" (what is counted),
        "train_items", "eval_items", "train_sha256", "eval_sha256", and the data set's own entries.
    """

    info: dict[str, Any]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The global training batch of a step: the same bytes whenever and wherever it is asked."""
        ...

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out data in a fixed order, in batches of `batch_size`, the last one padded.

        Each batch carries "weight", float32 (B,): 1 for a held-out row and 0 for padding.
        """
        ...


class ImageData(Data, Protocol):
    """Batches of "image", float32 (B, H, W, C), and "label", int32 (B,).

    Attributes:
      image_shape: (H, W, C).
      num_classes: labels are in [0, num_classes).
    """

    image_shape: tuple[int, int, int]
    num_classes: int


class TextData(Data, Protocol):
    """Batches of "tokens", int32 (B, seq_len + 1): inputs and, one further, targets.

    Attributes:
      vocab_size: tokens are in [0, vocab_size).
      seq_len: number of predictions per row.
    """

    vocab_size: int
    seq_len: int

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int32 (T,)."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens."""
        ...
