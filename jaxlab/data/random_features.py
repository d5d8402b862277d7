"""Random features of images, in as many dimensions as one likes.

Source: A. Rahimi, B. Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007:
cosines of random projections, whose products approximate a Gaussian kernel.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.core import registry
from jaxlab.data.batching import permutation, random_words
from jaxlab.data.features import Map, MappedFeatures

_PATCH = 5
_GRID = 4
# Streams of the features' seed.
_FILTERS, _PROJECTION, _PHASES, _PIXELS = range(4)


@registry.register("data", "random_features")
def random_features(
    *,
    source: Mapping[str, Any],
    dim: int = 2048,
    bandwidth: float = 0.5,
    filters: int = 0,
    feature_seed: int = 0,
    seed: int,
    batch_size: int,
) -> MappedFeatures:
    """Images lifted to `dim` dimensions, by functions that are drawn once and not trained.

    Pixels are standardised by the source. With `filters` they first go through random convolutions
    of 5 x 5 pixels, rectified and averaged over a grid of 4 x 4 places, and each image's result is
    standardised. Then come `cos(W x + b)`, W normal and b uniform, and division by the length.

    Data from elsewhere are the held-out images with their pixels in another order, the same for
    all: every pixel value is familiar, and no shape is.

    Args:
      source: a config section of a data set of images.
      dim: of the features.
      bandwidth: of the Gaussian kernel, over the root of the number of inputs.
      filters: random convolutions; 0 takes the pixels themselves.
      feature_seed: of all that is drawn here.
      seed: of the training batches' order.
      batch_size: rows of every batch.

    Raises:
      ValueError: a number is out of range, or the source has no images.

    >>> data = random_features(source={"name": "digits"}, dim=32, seed=0, batch_size=4)
    >>> data.batch(0)["feature"].shape, data.info["source"]
    ((4, 32), 'digits')
    """
    for name, value, least in (("dim", dim, 2), ("filters", filters, 0)):
        if value < least:
            raise ValueError(f"random_features: {name}={value}; nearest: {least}")
    if bandwidth <= 0:
        raise ValueError(f"random_features: bandwidth={bandwidth} must be positive; nearest: 0.5")
    images = registry.build("data", source, seed=seed, batch_size=batch_size)
    if not hasattr(images, "image_shape"):
        raise ValueError(
            f"random_features: source {source['name']!r} has no images; nearest: digits"
        )
    height, width, channels = images.image_shape
    if filters and min(height, width) < _PATCH + _GRID - 1:
        raise ValueError(
            f"random_features: filters={filters} need images of {_PATCH + _GRID - 1} pixels a "
            f"side, not {height} x {width}; nearest: filters=0"
        )
    inputs = filters * _GRID * _GRID if filters else height * width * channels
    project = _projection(feature_seed, inputs, dim, bandwidth)
    convolve = _convolutions(feature_seed, filters, channels) if filters else _flat
    order = permutation(feature_seed, _PIXELS, height * width * channels)
    return MappedFeatures(
        "random_features",
        images,
        lambda x: project(convolve(x)),
        lambda x: _flat(x)[:, order].reshape(x.shape),
        dim=dim,
        info={"bandwidth": bandwidth, "filters": filters, "feature_seed": feature_seed},
    )


def normal(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32: a pure function of its arguments in every NumPy version.

    By Box and Muller, from raw words, as `batching.random_words` has them.

    >>> normal(0, 0, (2, 3)).shape, bool(abs(normal(0, 0, (10000,)).std() - 1) < 0.05)
    ((2, 3), True)
    """
    count = int(np.prod(shape))
    half = -(-count // 2)
    first, second = uniform(seed, index, (2, half))
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[:count].reshape(shape).astype(np.float32)


def uniform(seed: int, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64; as `normal`."""
    words = random_words(seed, index, int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _projection(seed: int, inputs: int, dim: int, bandwidth: float) -> Map:
    w = normal(seed, _PROJECTION, (inputs, dim)) / np.float32(bandwidth * np.sqrt(inputs))
    b = (2 * np.pi * uniform(seed, _PHASES, (dim,))).astype(np.float32)
    return lambda x: np.cos(x @ w + b)


def _convolutions(seed: int, filters: int, channels: int) -> Map:
    inputs = _PATCH * _PATCH * channels
    kernel = normal(seed, _FILTERS, (inputs, filters)) / np.float32(np.sqrt(inputs))

    def features(x: np.ndarray) -> np.ndarray:
        patches = np.lib.stride_tricks.sliding_window_view(x, (_PATCH, _PATCH), (1, 2))
        count, rows, columns = patches.shape[:3]
        found = np.maximum(patches.reshape(count, rows, columns, inputs) @ kernel, 0)
        places = [
            cell.mean((1, 2))
            for band in np.array_split(found, _GRID, axis=1)
            for cell in np.array_split(band, _GRID, axis=2)
        ]
        flat = np.concatenate(places, axis=-1)
        flat = flat - flat.mean(-1, keepdims=True)
        return flat / np.maximum(flat.std(-1, keepdims=True), np.finfo(np.float32).tiny)

    return features


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
