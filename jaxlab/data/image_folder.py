"""Image classification on a folder of the user's own images: `path/<class>/<image>`."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.core.registry import register
from jaxlab.data.images import Images
from jaxlab.data.splits import split_by_hash

_SUFFIXES = (".png", ".jpg", ".jpeg", ".npy")
_MODES = {1: "L", 3: "RGB"}


@register("data", "image_folder")
def image_folder(
    *,
    path: str,
    image_size: int = 32,
    channels: int = 3,
    held_out: float = 0.1,
    seed: int,
    batch_size: int,
) -> Images:
    """Images of two or more classes, one folder each; all are held in memory at `image_size`.

    Classes are numbered in the order of their folders' names, which `info["classes"]` lists. Which
    images are held out follows from a hash of each file's path in the folder, so an image stays on
    its side when others are added. Hidden files and folders are left out.

    Args:
      path: the folder; `path/<class>/<image>` are .png, .jpg or .jpeg files, or .npy files of uint8
        with shape (h, w), (h, w, 1) or (h, w, 3).
      image_size: height and width that every image is resized to; its aspect ratio is not kept.
      channels: 3 for colour or 1 for grey; images are converted.
      held_out: expected fraction of the images that is held out.
      seed: of the training batches' order.
      batch_size: rows of every batch.

    Raises:
      ValueError: no folder, fewer than two classes, a class without an image, an image that cannot
        be read, no image in one of the parts, or fewer training images than `batch_size`.
      ImportError: Pillow is not installed.
    """
    if image_size < 1:
        raise ValueError(f"image_folder: image_size={image_size} must be positive; nearest: 1")
    if channels not in _MODES:
        raise ValueError(
            f"image_folder: channels={channels} must be 1 or 3; nearest: {1 if channels < 2 else 3}"
        )
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"image_folder: path={path!r} is not a folder")
    names = _image_files(root, path)
    classes = sorted(names)
    label_of = {name: i for i, c in enumerate(classes) for name in names[c]}
    train, evaluated = split_by_hash(label_of, held_out, salt="image_folder")
    if not train or not evaluated:
        raise ValueError(
            f"image_folder: held_out={held_out} of the {len(label_of)} images in path={path!r} "
            f"leaves {len(train)} to train and {len(evaluated)} to evaluate on; "
            f"{'lower' if evaluated else 'raise'} held_out or add images"
        )

    def load(part: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images = [
            read_image(root / name, image_size=image_size, channels=channels) for name in part
        ]
        return np.stack(images), np.array([label_of[name] for name in part])

    return Images(
        "image_folder",
        load(train),
        load(evaluated),
        num_classes=len(classes),
        seed=seed,
        batch_size=batch_size,
        info={"classes": classes},
    )


def read_image(file: Path, *, image_size: int, channels: int) -> np.ndarray:
    """One image, turned upright and resized: uint8 (image_size, image_size, channels).

    Raises:
      ValueError: the file cannot be read as an image of 8 bits per channel.
      ImportError: Pillow is not installed.
    """
    pil, ops = _pillow()
    try:
        if file.suffix.lower() == ".npy":
            image = pil.fromarray(_checked(np.load(file, allow_pickle=False)))
        else:
            with pil.open(file) as opened:
                # Their conversion to 8 bits would cut off bright values without a word.
                if opened.mode.startswith("I") or opened.mode == "F":
                    raise ValueError(f"its mode is {opened.mode}; save it with 8 bits per channel")
                image = ops.exif_transpose(opened)
        image = image.convert(_MODES[channels])
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise ValueError(f"image_folder: cannot read {file}: {error}") from None
    resized = image.resize((image_size, image_size), pil.Resampling.BILINEAR)
    return np.asarray(resized).reshape(image_size, image_size, channels)


def _image_files(root: Path, path: str) -> dict[str, list[str]]:
    """Names of the images by class, each relative to the folder."""
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    if len(folders) < 2:
        raise ValueError(
            f"image_folder: path={path!r} has {len(folders)} folder(s); two classes or more are "
            "needed, as path/<class>/<image>"
        )
    names = {
        folder.name: [
            f"{folder.name}/{file.name}"
            for file in folder.iterdir()
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
        ]
        for folder in folders
    }
    for name, images in sorted(names.items()):
        if not images:
            raise ValueError(
                f"image_folder: class {name!r} in path={path!r} has no image; "
                f"valid: {', '.join(_SUFFIXES)}"
            )
    return names


def _checked(array: Any) -> np.ndarray:
    shape = getattr(array, "shape", ())
    grey = len(shape) == 2 or shape[2:] == (1,)
    if getattr(array, "dtype", None) != np.uint8 or not (grey or shape[2:] == (3,)):
        raise ValueError(
            f"it holds {getattr(array, 'dtype', type(array))}{list(shape)}; "
            "needed: uint8 of shape (h, w), (h, w, 1) or (h, w, 3)"
        )
    return array.reshape(shape[:2]) if grey else array


def _pillow() -> tuple[Any, Any]:
    # Imported here: looking up any data set imports this module.
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("image_folder reads images with Pillow: install 'pillow'") from error
    return Image, ImageOps
