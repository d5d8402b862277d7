"""What M-FAC refuses, before anything is compiled: numbers are checked unless they are traced."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_damp(owner: str, damp: Any) -> None:
    """Raises a ValueError unless a known damping is a finite number above 0."""
    if isinstance(damp, Tracer):
        return
    if np.ndim(damp) or not (damp > 0 and math.isfinite(damp)):
        raise ValueError(
            f"{owner}: damp={damp} must be positive and finite, a number; nearest: 1e-05"
        )


def check_from_zero(name: str, value: Any, below: float = math.inf) -> None:
    """Raises a ValueError unless a known number is in [0, below)."""
    if isinstance(value, Tracer):
        return
    if np.ndim(value) or not 0 <= value < below:
        raise ValueError(f"mfac: {name}={value} must be a number in [0, {below}); nearest: 0")


def check_count(name: str, value: Any) -> None:
    """Raises a ValueError unless a number that shapes depend on is 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(
            f"mfac: {name}={value!r} must be an int, 1 or more; under inject_hyperparams name it "
            "in static_args"
        )


def check_row_dtype(name: str, dtype: Any) -> None:
    """Raises a ValueError for a dtype that rounds gradients to integers."""
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"mfac: {name}={dtype!r} must be floating; nearest: 'float32'")


def check_floating(tree: Any) -> None:
    """Raises a ValueError for a leaf that is not real and floating."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"mfac: {jax.tree_util.keystr(path) or 'the array'} is {x.dtype}; gradients must "
                "be floating: leave others out with optax.masked"
            )
