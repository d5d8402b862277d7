"""In-memory images: standardised, pure in (seed, step), evaluated once each."""

import json

import numpy as np
import pytest

from jaxlab.data.images import Images

_rng = np.random.default_rng(0)
PIXELS = _rng.integers(0, 256, (30, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def _images(*, seed=0, batch_size=4, pixels=PIXELS, labels=LABELS, eval_pixels=None, **kwargs):
    held_out = (pixels[:7] if eval_pixels is None else eval_pixels, labels[:7])
    return Images(
        "tiny", (pixels, labels), held_out,
        num_classes=3, seed=seed, batch_size=batch_size, **kwargs,
    )  # fmt: skip


def test_batches_have_the_promised_shapes_and_dtypes():
    batch = _images().batch(0)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("float32", (4, 4, 5, 3)),
        "label": ("int32", (4,)),
    }


def test_fresh_objects_and_any_order_give_the_same_bytes():
    first, second = _images(), _images()
    forward = [first.batch(step) for step in range(12)]
    for step in (11, 0, 7, 7, 3):
        again = second.batch(step)
        for name, value in forward[step].items():
            assert value.tobytes() == again[name].tobytes()


def test_seeds_and_steps_differ():
    batch = _images().batch(0)["image"]
    assert not np.array_equal(batch, _images(seed=1).batch(0)["image"])
    assert not np.array_equal(batch, _images().batch(1)["image"])


def test_an_epoch_is_the_standardised_training_set():
    data = _images(batch_size=10)
    epoch = [data.batch(step) for step in range(3)]
    images = np.concatenate([b["image"] for b in epoch])
    mean, std = PIXELS.mean((0, 1, 2)), PIXELS.std((0, 1, 2))
    expected = (PIXELS - mean) / std
    order = np.lexsort(images.reshape(30, -1).T)
    expected_order = np.lexsort(expected.reshape(30, -1).T)
    np.testing.assert_allclose(images[order], expected[expected_order], atol=1e-5)
    labels = np.concatenate([b["label"] for b in epoch])
    np.testing.assert_array_equal(labels[order], LABELS[expected_order])


def test_held_out_images_use_the_training_statistics():
    bright = np.full((7, 4, 5, 3), 255, np.uint8)
    batch = next(_images(eval_pixels=bright).eval_batches())
    expected = (255 - PIXELS.mean((0, 1, 2))) / PIXELS.std((0, 1, 2))
    np.testing.assert_allclose(batch["image"][0, 0, 0], expected, rtol=1e-5)


def test_evaluation_is_padded_and_weighs_each_image_once():
    batches = list(_images().eval_batches())
    assert [b["image"].shape for b in batches] == [(4, 4, 5, 3)] * 2
    assert [b["weight"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    real = np.concatenate([b["label"][b["weight"] == 1] for b in batches])
    np.testing.assert_array_equal(real, LABELS[:7])


def test_a_constant_channel_becomes_zero():
    pixels = PIXELS.copy()
    pixels[..., 1] = 9
    image = _images(pixels=pixels).batch(0)["image"]
    assert np.isfinite(image).all()
    assert (image[..., 1] == 0).all()


def test_info_is_json_and_follows_the_content():
    info = _images(info={"source": "test"}).info
    assert json.loads(json.dumps(info)) == info
    assert (info["name"], info["train_items"], info["eval_items"]) == ("tiny", 30, 7)
    assert info["source"] == "test"
    other = _images(labels=(LABELS + 1) % 3).info
    assert info["train_sha256"] != other["train_sha256"]
    assert info["train_sha256"] == _images(seed=5, batch_size=2).info["train_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 31}, "batch_size=31 is more than 30 training images; nearest: 30"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more; nearest: 1"),
        ({"seed": -1}, "seed=-1 is negative; nearest: 0"),
        ({"labels": LABELS + 1}, r"the training part has label 3, not in \[0, 3\)"),
        ({"labels": LABELS - 1}, r"the training part has label -1, not in \[0, 3\)"),
        ({"labels": LABELS[:8]}, r"has 30 images, but labels of shape \(8,\)"),
        ({"pixels": PIXELS / 255}, "must be uint8"),
        ({"eval_pixels": PIXELS[:7, :3]}, r"the held-out part has images uint8\[7, 3, 5, 3\]"),
        ({"eval_pixels": PIXELS[:0]}, "the held-out part has no image"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=f"tiny: .*{message}"):
        _images(**change)
