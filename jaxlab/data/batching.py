"""Which items a batch holds, as a pure function of (seed, step).

Every draw is the raw output of a counter-based generator that starts anew for each (seed, index).
So any step can be asked for in any order, and raw output, unlike the sampling functions of
`np.random.Generator`, is the same in every NumPy version.
"""

import functools
from collections.abc import Iterator

import numpy as np


def random_words(seed: int, index: int, count: int) -> np.ndarray:
    """The first random words of stream `index`: uint64 (count,).

    >>> bool((random_words(0, 5, 3) == random_words(0, 5, 4)[:3]).all())
    True
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(index,))
    return np.random.Philox(sequence).random_raw(count)


@functools.lru_cache(maxsize=2)
def permutation(seed: int, index: int, count: int) -> np.ndarray:
    """A random order of `count` items: read-only int64 (count,).

    The last two are kept: a batch across the end of an epoch needs two of them.

    >>> sorted(permutation(0, 1, 4).tolist())
    [0, 1, 2, 3]
    """
    order = np.argsort(random_words(seed, index, count), kind="stable")
    order.setflags(write=False)
    return order


def epoch_indices(seed: int, step: int, *, batch_size: int, count: int) -> np.ndarray:
    """The items of one training batch: int64 (batch_size,).

    Epochs follow one another without a gap, each a new permutation of all items; a batch may hold
    the end of one and the start of the next, so that every item is seen once per epoch.

    Raises:
      ValueError: `step` is negative.

    >>> seen = [epoch_indices(0, step, batch_size=3, count=6) for step in (0, 1)]
    >>> sorted(np.concatenate(seen).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    check_step(step)
    first = int(step) * batch_size
    epochs = range(first // count, (first + batch_size - 1) // count + 1)
    stream = np.concatenate([permutation(seed, epoch, count) for epoch in epochs])
    offset = first - epochs[0] * count
    return stream[offset : offset + batch_size]


def padded_batches(count: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Items 0 to count - 1 in order, in batches of one size.

    Padding repeats item 0 with weight 0: a real item, whatever a model does with it stays finite.

    Yields:
      indices, int64 (batch_size,), and weight, float32 (batch_size,).

    >>> [(i.tolist(), w.tolist()) for i, w in padded_batches(3, 2)]
    [([0, 1], [1.0, 1.0]), ([2, 0], [1.0, 0.0])]
    """
    for first in range(0, count, batch_size):
        indices = np.arange(first, first + batch_size)
        real = indices < count
        yield np.where(real, indices, 0), real.astype(np.float32)


def check_step(step: int) -> None:
    """Raises a ValueError for a negative step."""
    if step < 0:
        raise ValueError(f"batch: step={step} is negative; nearest: 0")


def check_context(name: str, *, seed: int, batch_size: int) -> None:
    """Raises a ValueError for a negative seed or a batch without a row."""
    if seed < 0:
        raise ValueError(f"{name}: seed={seed} is negative; nearest: 0")
    if batch_size < 1:
        raise ValueError(f"{name}: batch_size={batch_size} must be 1 or more; nearest: 1")
