"""Draws are pure functions of (seed, step), and each item is seen once per epoch."""

import numpy as np
import pytest

from jaxlab.data import batching


def _steps(seed, count, batch_size, steps):
    return [
        batching.epoch_indices(seed, step, batch_size=batch_size, count=count)
        for step in range(steps)
    ]


# Batches that divide an epoch, straddle two of them, and are a whole epoch.
@pytest.mark.parametrize("batch_size", [4, 5, 12])
def test_every_item_is_seen_once_per_epoch(batch_size):
    stream = np.concatenate(_steps(0, 12, batch_size, 12)).reshape(-1, 12)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(12), (len(stream), 1)))
    assert len({row.tobytes() for row in stream}) == len(stream)


def test_steps_in_any_order_give_the_same_items():
    forward = _steps(3, 10, 4, 20)
    for step in np.random.default_rng(0).permutation(20):
        again = batching.epoch_indices(3, int(step), batch_size=4, count=10)
        np.testing.assert_array_equal(again, forward[step])


def test_seed_and_index_both_change_the_words():
    first = batching.random_words(0, 0, 4)
    for seed, index in [(0, 1), (1, 0), (2**40, 0), (0, 2**40)]:
        assert not np.array_equal(batching.random_words(seed, index, 4), first)


def test_random_words_are_frozen():
    # A run that is resumed under another NumPy must go on with the same data.
    assert batching.random_words(1, 2, 2).tolist() == [2242947762669890935, 8650247002359217396]
    assert batching.permutation(1, 2, 6).tolist() == [2, 0, 5, 1, 4, 3]


def test_a_kept_permutation_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        batching.permutation(0, 0, 5)[0] = 1


@pytest.mark.parametrize(("count", "batch_size"), [(6, 3), (7, 3), (2, 5)])
def test_padded_batches_hold_each_item_once(count, batch_size):
    batches = list(batching.padded_batches(count, batch_size))
    assert all(i.shape == w.shape == (batch_size,) for i, w in batches)
    assert all(w.dtype == np.float32 for _, w in batches)
    real = np.concatenate([indices[weight == 1] for indices, weight in batches])
    np.testing.assert_array_equal(real, np.arange(count))
    assert sum(weight.sum() for _, weight in batches) == count
    assert max(indices.max() for indices, _ in batches) < count


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1 is negative"):
        batching.epoch_indices(0, -1, batch_size=2, count=4)
