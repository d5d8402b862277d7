"""IDX files, plain and compressed, and what is said about damaged ones."""

import gzip
import struct

import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.data.fashion_mnist import read_idx

_rng = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": _rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.array([0, 1, 2, 9, 4, 5], np.uint8),
    "t10k-images-idx3-ubyte": _rng.integers(0, 256, (3, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([7, 8, 9], np.uint8),
}


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def _build(path, batch_size=2):
    section = {"name": "fashion_mnist", "path": str(path)}
    return registry.build("data", section, seed=0, batch_size=batch_size)


@pytest.fixture
def folder(tmp_path):
    for name, array in ARRAYS.items():
        (tmp_path / name).write_bytes(_idx(array))
    return tmp_path


def test_content_survives_the_round_trip(folder):
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read_idx(folder / name, ndim=array.ndim), array)


def test_the_data_set_is_what_the_files_hold(folder):
    data = _build(folder)
    assert data.image_shape == (28, 28, 1)
    batches = list(data.eval_batches())
    assert [b["label"].tolist() for b in batches] == [[7, 8], [9, 7]]
    assert [b["weight"].tolist() for b in batches] == [[1, 1], [1, 0]]
    pixels = ARRAYS["train-images-idx3-ubyte"]
    expected = (ARRAYS["t10k-images-idx3-ubyte"][2] - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(batches[1]["image"][0, :, :, 0], expected, atol=1e-5)


def test_compressed_files_give_the_same_data(folder):
    plain = _build(folder)
    for name in ARRAYS:
        file = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    compressed = _build(folder)
    assert compressed.info == plain.info
    np.testing.assert_array_equal(compressed.batch(3)["image"], plain.batch(3)["image"])


def test_a_missing_folder_says_how_to_get_the_files(tmp_path):
    with pytest.raises(ValueError, match=r"not a folder.*dataset-fashion-mnist") as error:
        _build(tmp_path / "nowhere")
    assert "nowhere" in str(error.value)


def test_a_missing_file_is_named(folder):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"has no t10k-labels-idx1-ubyte.*dataset-fashion-mnist"):
        _build(folder)


def _cut(content):
    return content[:-10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, r"is truncated: 4710 bytes, where its header \[6, 28, 28\] makes 4720"),
        (lambda c: c[:9], "is truncated: 9 bytes"),
        (lambda c: c + b"x", "is too long: 4721 bytes"),
        (lambda c: b"", "is not an IDX file .* starts with nothing"),
        (lambda c: b"<html>", "is not an IDX file .* starts with 3c 68 74 6d, not 00 00 08 03"),
        (lambda c: _idx(np.zeros(6, np.uint8)), ".* with 3 axes: it starts with 00 00 08 01"),
        (lambda c: _cut(gzip.compress(c)), "is truncated or damaged"),
        (lambda c: gzip.compress(_cut(c)), "is truncated: 4710 bytes"),
        (lambda c: b"\x1f\x8bxxxxxxxxxxxxxxxx", "is truncated or damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(folder, change, message):
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte {message}"):
        _build(folder)


def test_files_that_do_not_belong_together_are_refused(folder):
    (folder / "train-labels-idx1-ubyte").write_bytes(_idx(np.zeros(5, np.uint8)))
    with pytest.raises(ValueError, match=r"training part has 6 images, but labels of shape \(5,\)"):
        _build(folder)
