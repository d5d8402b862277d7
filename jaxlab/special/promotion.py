"""One floating dtype for several arguments, and checks of what is known of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def promoted(owner: str, **given: Any) -> tuple[list[jax.Array], Any]:
    """Arguments in the dtype that they are computed in, and the dtype of the result.

    Python's numbers and integers take the dtype of the others. float16 and bfloat16 are computed in
    float32.

    Args:
      owner: who asks, for messages.
      **given: the arguments by name.

    Raises:
      TypeError: an argument is complex, or no number.

    >>> (x, y), dtype = promoted("doctest", x=1, y=jnp.ones(2, jnp.bfloat16))
    >>> x.dtype.name, y.shape, dtype.name
    ('float32', (2,), 'bfloat16')
    """
    for name, value in given.items():
        given[name] = value = (
            value if isinstance(value, int | float) else _array(owner, name, value)
        )
        dtype = jnp.result_type(value)
        if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
            raise TypeError(f"{owner}: {name} is {dtype}; it must be real")
    floats = [
        value
        for value in given.values()
        if not isinstance(value, int | float) and jnp.issubdtype(value.dtype, jnp.floating)
    ]
    dtype = jnp.dtype(jnp.result_type(*floats) if floats else jnp.result_type(float))
    return [jnp.asarray(value, computed_in(dtype)) for value in given.values()], dtype


def _array(owner: str, name: str, value: Any) -> jax.Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{owner}: {name}={value!r} is no array of numbers") from error


def computed_in(dtype: Any) -> Any:
    """The dtype itself, or float32 for narrower ones."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def check_above(owner: str, least: float, *, strict: bool = False, **given: Any) -> None:
    """Raises a ValueError for a number below `least`, where the numbers are known.

    Args:
      owner: who asks.
      least: the bound.
      strict: whether the bound itself is too small.
      **given: the arguments by name; what is traced passes.
    """
    for name, value in given.items():
        if isinstance(value, Tracer) or not np.size(value):
            continue
        smallest = _now(_smallest, value)
        if smallest is None:
            continue
        if smallest <= least if strict else smallest < least:
            bound = f"above {least:g}" if strict else f"{least:g} or more"
            raise ValueError(f"{owner}: {name}={smallest:g} must be {bound}")


def check_unit(owner: str, **given: Any) -> None:
    """Raises a ValueError for rows whose length is not 1, where the numbers are known.

    The tolerance is for rows that a narrower dtype has rounded.
    """
    for name, value in given.items():
        if isinstance(value, Tracer) or not np.size(value):
            continue
        off = _now(_off_unit, value)
        dtype = jnp.result_type(value)
        eps = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
        if off is not None and not off <= max(1e-3, 8 * eps):
            raise ValueError(
                f"{owner}: {name} has a row whose length differs from 1 by {off:.3g}; nearest: "
                f"{name} / norm({name})"
            )


def _now(measure: Callable[[Any, Any], Any], value: Any) -> float | None:
    """A number that is measured of known values, even inside of a jit; None where it is traced.

    Arrays of JAX's are measured by JAX, so that large ones stay where they are, all else by NumPy:
    inside of an eager shard_map every array that JAX makes of them is traced.
    """
    if not isinstance(value, jax.Array):
        return float(measure(np, np.asarray(value)))
    with jax.ensure_compile_time_eval():
        found = measure(jnp, value)
    return None if isinstance(found, Tracer) else float(found)


def _smallest(lib: Any, value: Any) -> Any:
    # NumPy's nanmin would warn of what is NaN everywhere.
    return lib.nanmin(value) if lib is jnp else np.fmin.reduce(value.ravel())


def _off_unit(lib: Any, value: Any) -> Any:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    value = value.astype(computed_in(value.dtype) if floating else float)
    return lib.max(lib.abs(lib.linalg.norm(value, axis=-1) - 1))
