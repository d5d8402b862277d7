"""Checks of model arguments, made before anything is built or compiled."""

from typing import Any

import jax.numpy as jnp

from jaxlab.core.registry import suggest

# Not float16: its range needs loss scaling, which the training step does not do.
_DTYPES = ("bfloat16", "float32")


def compute_dtype(owner: str, dtype: str) -> Any:
    """The dtype that a config names.

    Raises:
      ValueError: `dtype` is not "float32" or "bfloat16".

    >>> compute_dtype("mlp", "bfloat16")
    dtype(bfloat16)
    """
    if dtype not in _DTYPES:
        raise ValueError(f"{owner}: dtype={dtype!r} is unknown; {suggest(dtype, _DTYPES)}")
    return jnp.dtype(dtype)


def check_positive(owner: str, **values: float) -> None:
    """Checks that every value is above zero.

    Raises:
      ValueError: one is not.
    """
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{owner}: {name}={value} must be positive; nearest: 1")


def check_divides(owner: str, name: str, value: int, length: int, what: str) -> None:
    """Checks that `value` divides `length`, which messages call `what`.

    Raises:
      ValueError: it does not; the message names the nearest divisors.

    >>> check_divides("vit", "heads", 5, 64, "d_model=64")
    Traceback (most recent call last):
    ...
    ValueError: vit: heads=5 must divide d_model=64; nearest: 4, 8
    """
    if value < 1 or length % value:
        divisors = [d for d in range(1, length + 1) if length % d == 0]
        below = [d for d in divisors if d < value][-1:]
        above = [d for d in divisors if d > value][:1]
        nearest = ", ".join(map(str, below + above))
        raise ValueError(f"{owner}: {name}={value} must divide {what}; nearest: {nearest}")
