"""Fashion-MNIST from its four IDX files.

Han Xiao, Kashif Rasul, Roland Vollgraf: "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from jaxlab.core.registry import register
from jaxlab.data.images import Images

_HOW_TO_GET = (
    "The Debian package dataset-fashion-mnist installs the four files to "
    "/usr/share/datasets/fashion-mnist; the original release has the same four"
)


@register("data", "fashion_mnist")
def fashion_mnist(*, path: str, seed: int, batch_size: int) -> Images:
    """Photographs of clothing: 60000 training and 10000 held-out images of (28, 28, 1).

    Args:
      path: folder of the four IDX files, plain or with `.gz`.
      seed: of the training batches' order.
      batch_size: rows of every batch.

    Raises:
      ValueError: a file is missing, truncated, or not what its name says.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"fashion_mnist: path={path!r} is not a folder. {_HOW_TO_GET}.")
    return Images(
        "fashion_mnist",
        _read_part(folder, "train"),
        _read_part(folder, "t10k"),
        num_classes=10,
        seed=seed,
        batch_size=batch_size,
    )


def read_idx(file: Path, *, ndim: int) -> np.ndarray:
    """One IDX file of unsigned bytes, compressed or not.

    Its format: two zero bytes, the type (8 for unsigned bytes), the number of axes, each axis's
    length as a big-endian uint32, the values.

    Args:
      file: the file; whether it is compressed is read from its content.
      ndim: the number of axes that it must have.

    Returns:
      uint8 array with `ndim` axes.

    Raises:
      ValueError: the file is truncated, too long, or not an IDX file of `ndim` axes.
    """
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"fashion_mnist: {file} is truncated or damaged: {error}") from None
    expected = bytes([0, 0, 8, ndim])
    if content[:4] != expected:
        raise ValueError(
            f"fashion_mnist: {file} is not an IDX file of unsigned bytes with {ndim} axes: "
            f"it starts with {content[:4].hex(' ') or 'nothing'}, not {expected.hex(' ')}"
        )
    header = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:header].ljust(4 * ndim, b"\0"))
    size = header + int(np.prod(shape, dtype=object))
    if len(content) != size:
        verdict = "truncated" if len(content) < size else "too long"
        raise ValueError(
            f"fashion_mnist: {file} is {verdict}: {len(content)} bytes, where its header "
            f"{list(shape)} makes {size}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_part(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"), ndim=3)
    labels = read_idx(_find(folder, f"{prefix}-labels-idx1-ubyte"), ndim=1)
    return images[..., None], labels


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise ValueError(
        f"fashion_mnist: path={str(folder)!r} has no {name} or {name}.gz. {_HOW_TO_GET}."
    )
