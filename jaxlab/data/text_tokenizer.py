"""Texts to token ids, padded to few lengths, by the `tokenizers` library."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class TextTokenizer:
    """Tokenises with a `tokenizer.json`, whatever truncation and padding that file asks for.

    The published file of all-MiniLM-L6-v2 cuts at 128 tokens and pads everything to 128. Here
    texts are cut at `max_length` and padded to the shortest bucket that holds the longest of them.

    Args:
      path: the `tokenizer.json`, or its folder.

    Raises:
      FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | os.PathLike):
        from tokenizers import Tokenizer

        file = Path(path)
        if file.is_dir():
            file = file / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"TextTokenizer: there is no file {file}")
        self._tokenizer: Any = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._pad = self._tokenizer.token_to_id("[PAD]") or 0

    @property
    def vocab_size(self) -> int:
        """Ids are in [0, vocab_size)."""
        return self._tokenizer.get_vocab_size()

    def __call__(
        self,
        texts: Sequence[str],
        max_length: int = 256,
        buckets: Sequence[int] = (16, 32, 64, 128, 256),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and their mask.

        Args:
          texts: the texts, at least one.
          max_length: tokens of a text, the two special ones among them, before it is cut.
          buckets: lengths that are padded to, so that few shapes are compiled.

        Returns:
          ids and mask, int32 (B, T); the mask is 1 for tokens and 0 for padding.

        Raises:
          ValueError: there is no text, `max_length` has no room, or no bucket holds it.
          TypeError: `texts` is one string.
        """
        if isinstance(texts, str):
            raise TypeError("TextTokenizer: texts is one string; nearest: [texts]")
        if not texts:
            raise ValueError("TextTokenizer: texts is empty; nearest: one text")
        if max_length < 3:
            raise ValueError(f"TextTokenizer: max_length={max_length} is too short; nearest: 3")
        if max(buckets, default=0) < max_length:
            raise ValueError(
                f"TextTokenizer: max_length={max_length} is more than the longest of "
                f"buckets={tuple(buckets)}; nearest: {max(buckets, default='one bucket')}"
            )
        self._tokenizer.enable_truncation(max_length=max_length)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max(map(len, rows))
        length = min(bucket for bucket in buckets if bucket >= longest)
        ids = np.full((len(rows), length), self._pad, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return ids, mask
