"""A folder of images by class: formats, sizes, split, and errors that name the file."""

import sys

import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.data.image_folder import read_image

Image = pytest.importorskip("PIL.Image")


def _build(path, batch_size=4, **section):
    section = {"name": "image_folder", "path": str(path), "image_size": 8, **section}
    return registry.build("data", section, seed=0, batch_size=batch_size)


@pytest.fixture
def folder(tmp_path):
    """Grey, red and dark-red squares, 20 of each, in two formats and several sizes."""
    root = tmp_path / "images"
    root.mkdir()
    for label, (name, colour) in enumerate({"b": 200, "a": (250, 0, 0), "c": (50, 0, 0)}.items()):
        (root / name).mkdir()
        for i in range(20):
            pixels = np.zeros((8 + label, 10 + i % 3, 3), np.uint8) + np.array(colour, np.uint8)
            pixels[0, 0] = i
            file = root / name / str(i)
            if i % 2:
                Image.fromarray(pixels).save(file.with_suffix(".PNG"), format="png")
            else:
                np.save(file.with_suffix(".npy"), pixels)
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    return root


def test_classes_are_the_sorted_folders_and_every_image_is_on_one_side(folder):
    data = _build(folder, held_out=0.3)
    assert data.info["classes"] == ["a", "b", "c"]
    assert data.num_classes == 3
    assert data.image_shape == (8, 8, 3)
    train, held_out = data.info["train_items"], data.info["eval_items"]
    assert train + held_out == 60
    assert 8 < held_out < 30
    labels = np.concatenate([b["label"][b["weight"] == 1] for b in data.eval_batches()])
    assert len(labels) == held_out


def test_an_image_keeps_the_label_of_its_folder(folder):
    data = _build(folder, batch_size=2)
    for batch in [data.batch(step) for step in range(20)] + list(data.eval_batches()):
        centre = batch["image"][:, 5, 5] * data._std + data._mean
        np.testing.assert_allclose(
            centre, np.array([[250, 0, 0], [200] * 3, [50, 0, 0]])[batch["label"]], atol=1
        )


def test_the_split_does_not_depend_on_where_the_folder_lies(folder):
    before = _build(folder).info
    assert _build(folder.rename(folder.with_name("elsewhere"))).info == before


def test_an_image_stays_on_its_side_when_others_come(folder):
    before = _build(folder, held_out=0.3)
    for i in range(20, 60):
        np.save(folder / "a" / f"{i}.npy", np.full((8, 8), i, np.uint8))
    after = _build(folder, held_out=0.3)
    for part in ("_train", "_held_out"):
        images = {image.tobytes() for image in getattr(before, part)[0]}
        assert images < {image.tobytes() for image in getattr(after, part)[0]}


def test_formats_of_the_same_pixels_agree(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    read = {s: read_image(tmp_path / f"x.{s}", image_size=6, channels=3) for s in ("npy", "png")}
    np.testing.assert_array_equal(read["npy"], pixels)
    np.testing.assert_array_equal(read["png"], pixels)
    jpeg = read_image(tmp_path / "x.jpg", image_size=6, channels=3)
    assert jpeg.shape == (6, 6, 3)


@pytest.mark.parametrize("shape", [(5, 9), (5, 9, 1), (5, 9, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_and_resized(tmp_path, shape, channels):
    np.save(tmp_path / "x.npy", np.full(shape, 70, np.uint8))
    image = read_image(tmp_path / "x.npy", image_size=7, channels=channels)
    np.testing.assert_array_equal(image, np.full((7, 7, channels), 70, np.uint8))


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 3  # stored upside down
    image.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png", image_size=4, channels=1)
    assert upright[3].min() == 255
    assert upright[0].max() == 0


def test_an_unreadable_image_is_named(folder):
    (folder / "b" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.jpg"):
        _build(folder)


def test_a_truncated_image_is_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.png"):
        read_image(tmp_path / "cut.png", image_size=8, channels=3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.float32), r"it holds float32\[4, 4\]; needed: uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"it holds uint8\[4, 4, 2\]; needed: uint8"),
        (np.array([{}]), "allow_pickle"),
    ],
)
def test_an_array_that_is_no_image_is_named(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"cannot read .*x\.npy: .*{message}"):
        read_image(tmp_path / "x.npy", image_size=4, channels=3)


def test_sixteen_bits_are_refused_and_not_cut_off(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="8 bits per channel"):
        read_image(tmp_path / "x.png", image_size=4, channels=1)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has 0 folder\(s\); two classes or more"):
        _build(tmp_path)
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match=r"has 1 folder\(s\); two classes or more"):
        _build(tmp_path)


def test_a_class_without_an_image_is_named(folder):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class 'empty' .* has no image; valid: \.png"):
        _build(folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"path": "no_such_folder"}, "path='no_such_folder' is not a folder"),
        ({"image_size": 0}, "image_size=0 must be positive; nearest: 1"),
        ({"channels": 4}, "channels=4 must be 1 or 3; nearest: 3"),
        ({"held_out": 0.0}, "held_out=0.0 is not between 0 and 1"),
        ({"held_out": 1e-9}, "leaves 60 to train and 0 to evaluate on; raise held_out"),
        ({"batch_size": 100}, "batch_size=100 is more than .* training images; nearest"),
    ],
)
def test_bad_arguments_are_named(folder, section, message):
    with pytest.raises(ValueError, match=f"image_folder: .*{message}"):
        _build(**{"path": folder, **section})


def test_a_missing_pillow_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="install 'pillow'"):
        _build(folder)
