"""The digits come with scikit-learn: a fixed split of known content."""

import numpy as np
import pytest

from jaxlab.core import registry


def _digits(seed=0, batch_size=128):
    return registry.build("data", {"name": "digits"}, seed=seed, batch_size=batch_size)


def test_the_split_is_fixed_whatever_the_seed():
    first, second = _digits(), _digits(seed=7)
    assert first.info == second.info
    assert (first.info["train_items"], first.info["eval_items"]) == (1200, 597)
    # Results of different days and versions are comparable only on the same split.
    assert first.info["train_sha256"].startswith("a05d09a6")
    assert first.info["eval_sha256"].startswith("a64f0c9b")


def test_no_image_is_on_both_sides():
    data = _digits(batch_size=100)
    train = np.concatenate([data.batch(step)["image"] for step in range(12)])
    held_out = [b["image"][b["weight"] == 1] for b in data.eval_batches()]
    seen = {image.tobytes() for image in train}
    evaluated = {image.tobytes() for image in np.concatenate(held_out)}
    assert len(seen) == 1200
    assert len(evaluated) == 597
    assert not seen & evaluated


def test_training_pixels_are_standardised_and_all_classes_occur():
    data = _digits(batch_size=1200)
    batch = data.batch(0)
    assert data.image_shape == (8, 8, 1)
    assert abs(batch["image"].mean()) < 1e-4
    assert batch["image"].std() == pytest.approx(1, abs=1e-4)
    assert set(batch["label"].tolist()) == set(range(data.num_classes))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"digits: batch_size=1201 .* nearest: 1200"):
        _digits(batch_size=1201)
