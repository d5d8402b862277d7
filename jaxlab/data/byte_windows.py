"""Byte-level language modelling over two byte strings: what the text data sets construct."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlab.data.batching import check_context, check_step, padded_batches, random_words


class ByteWindows:
    """Windows of bytes as `base.TextData`.

    A training window starts anywhere, drawn anew for each row of each step. Evaluation windows are
    consecutive and share one byte, the last target of one and the first input of the next, so each
    held-out byte is a target once; the first byte has no context, and fewer than `seq_len` at the
    end fill no window.

    Args:
      name: the data set, for messages and reports.
      train: bytes to train on.
      held_out: bytes to evaluate on.
      seq_len: predictions per row; a row has one token more.
      seed: of the training windows.
      batch_size: rows of every batch.
      max_bytes: train on the first so many bytes; None for all.
      eval_bytes: evaluate on the first so many bytes; None for all.
      info: further entries of `info`.

    Raises:
      ValueError: `seq_len` or a cap is not positive, fewer different training windows than
        `batch_size`, or not one whole evaluation window.

    >>> data = ByteWindows("doctest", b"abcdefgh", b"stuvwxyz", seq_len=3, seed=0, batch_size=2)
    >>> [bytes(row.tolist()) for batch in data.eval_batches() for row in batch["tokens"]]
    [b'stuv', b'vwxy']
    """

    vocab_size = 256

    def __init__(
        self,
        name: str,
        train: bytes,
        held_out: bytes,
        *,
        seq_len: int,
        seed: int,
        batch_size: int,
        max_bytes: int | None = None,
        eval_bytes: int | None = None,
        info: dict[str, Any] | None = None,
    ):
        check_context(name, seed=seed, batch_size=batch_size)
        for argument, value in (
            ("seq_len", seq_len), ("max_bytes", max_bytes), ("eval_bytes", eval_bytes)
        ):  # fmt: skip
            if value is not None and value < 1:
                raise ValueError(f"{name}: {argument}={value} must be positive; nearest: 1")
        train, held_out = train[:max_bytes], held_out[:eval_bytes]
        if len(train) < seq_len + batch_size:
            raise ValueError(
                f"{name}: the training part has {len(train)} bytes; batch_size={batch_size} "
                f"different windows of seq_len={seq_len} take {seq_len + batch_size}; "
                f"{_nearest(len(train) - batch_size)}"
            )
        if len(held_out) < seq_len + 1:
            raise ValueError(
                f"{name}: the held-out part has {len(held_out)} bytes; one window of "
                f"seq_len={seq_len} takes {seq_len + 1}; {_nearest(len(held_out) - 1)}"
            )
        self.seq_len = seq_len
        self._train = np.frombuffer(train, np.uint8)
        self._held_out = np.frombuffer(held_out, np.uint8)
        self._num_windows = (len(held_out) - 1) // seq_len
        self._seed = seed
        self._batch_size = batch_size
        self.info: dict[str, Any] = {
            "name": name,
            "unit": "bytes",
            "train_items": len(train),
            "eval_items": len(held_out),
            "train_sha256": hashlib.sha256(train).hexdigest(),
            "eval_sha256": hashlib.sha256(held_out).hexdigest(),
            "eval_targets": self._num_windows * seq_len,
            "seq_len": seq_len,
            **(info or {}),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The windows of a training step: "tokens", int32 (B, seq_len + 1)."""
        check_step(step)
        # The remainder favours small offsets by 1 in 2**64 / bytes: nothing that could be seen.
        words = random_words(self._seed, int(step), self._batch_size)
        starts = words % np.uint64(len(self._train) - self.seq_len)
        return {"tokens": self._windows(self._train, starts.astype(np.int64))}

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out windows in order: "tokens" and "weight", float32 (B,)."""
        for rows, weight in padded_batches(self._num_windows, self._batch_size):
            tokens = self._windows(self._held_out, rows * self.seq_len)
            yield {"tokens": tokens, "weight": weight}

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: its bytes in UTF-8, int32 (T,)."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens; bytes that are no UTF-8 are shown as such."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="backslashreplace")

    def _windows(self, content: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return content[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int32)


def _nearest(seq_len: int) -> str:
    return f"nearest: seq_len={seq_len}" if seq_len > 0 else "give it more text"
