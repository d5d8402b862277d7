"""What MKOR refuses, before anything is compiled: numbers are checked unless they are traced."""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def check_share(name: str, value: Any, *, zero: bool = False, owner: str = "mkor") -> None:
    """Raises a ValueError unless a known number is in (0, 1), or with `zero` in [0, 1)."""
    if not _is_traced(value) and not (
        _is_number(value) and (0 < value < 1 or (zero and value == 0))
    ):
        raise ValueError(f"{owner}: {name}={value} must be in {'[' if zero else '('}0, 1)")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises a ValueError unless a known number is whole, and `least` or more."""
    if _is_traced(value):
        return
    whole = _is_number(value) and math.isfinite(value) and value == int(value)
    if not whole or value < least:
        raise ValueError(f"mkor: {name}={value} must be {least} or more, and whole")


def check_positive(name: str, value: Any, *, owner: str = "mkor") -> None:
    """Raises a ValueError unless a known number is above 0; infinity is."""
    if not _is_traced(value) and not (_is_number(value) and value > 0):
        raise ValueError(f"{owner}: {name}={value} must be positive")


def check_finite(name: str, value: Any) -> None:
    """Raises a ValueError unless a known number is finite."""
    if not _is_traced(value) and not (_is_number(value) and math.isfinite(value)):
        raise ValueError(f"mkor: {name}={value} must be a finite number")


def _is_traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float | np.number | jax.Array) and not isinstance(value, bool)
    return known and np.ndim(value) == 0
