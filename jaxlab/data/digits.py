"""The 8x8 digits that ship with scikit-learn: no download, seconds per run."""

import numpy as np

from jaxlab.core.registry import register
from jaxlab.data.batching import permutation
from jaxlab.data.images import Images

_NUM_TRAIN = 1200


@register("data", "digits")
def digits(*, seed: int, batch_size: int) -> Images:
    """Handwritten digits: 1200 training and 597 held-out images of (8, 8, 1), ten classes.

    The split is a fixed shuffle and does not depend on `seed`, so runs with different seeds are
    judged on the same images.

    Args:
      seed: of the training batches' order.
      batch_size: rows of every batch.

    Raises:
      ValueError: `batch_size` is more than 1200.

    >>> data = digits(seed=0, batch_size=32)
    >>> data.image_shape, data.info["train_items"], data.info["eval_items"]
    ((8, 8, 1), 1200, 597)
    """
    # Imported here: scikit-learn takes a second, and looking up any data set imports this module.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(labels)
    order = permutation(0, 0, len(images))
    train, held_out = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    return Images(
        "digits",
        (images[train], labels[train]),
        (images[held_out], labels[held_out]),
        num_classes=10,
        seed=seed,
        batch_size=batch_size,
    )
