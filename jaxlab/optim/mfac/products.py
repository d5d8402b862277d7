"""The two products with a window of gradients: each reads the window once and copies nothing.

Both are bound by memory. On GPUs there are several forms of each, all exact to float32's rounding
and none with a reshape, so that a window split over devices stays where it is; `ON_GPU` says which
one rows of a dtype get. Sums over the last axis alone, with a barrier behind them, reach 0.86 to
0.94 of the bandwidth of a copy on an H100; one over all axes of a matrix 0.55. In plain sums every
row reads the vector again, which is as many bytes as float32 rows have, and twice those of bfloat16
rows; several rows at a time, or a matrix product, read it less often. Devices that split a
parameter's last axis exchange m numbers for a product of all axes ("parts"), and for sums m for
each place of the other axes. On CPUs sums are not vectorised, and a dot is 15 to 150 times faster.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator

HIGHEST = jax.lax.Precision.HIGHEST
# bfloat16 numbers that add up to a float32 one: 3 x 8 bits of 24.
_PARTS = 3


def row_products(rows: jax.Array, x: jax.Array) -> jax.Array:
    """The inner products of every row with x.

    Args:
      rows: (m, ...) array; sums are float32, or float64 for float64 rows.
      x: (...) array.

    Returns:
      (m,) array.

    >>> row_products(jnp.eye(2, 3), jnp.array([5.0, 6.0, 7.0])).tolist()
    [5.0, 6.0]
    """
    if rows.size == 0 or x.ndim == 0:
        return _product(rows, x, tuple(range(1, rows.ndim)))
    form = PRODUCTS[_forms(rows).products]
    return jax.lax.platform_dependent(rows, x, cpu=_dotted, default=form)


def row_combination(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The sum of rows, each times its weight: (m,) and (m, ...) to (...), as accumulated.

    >>> row_combination(jnp.array([2.0, 3.0]), jnp.eye(2, 3)).tolist()
    [2.0, 3.0, 0.0]
    """
    if rows.size == 0 or rows.ndim == 1:
        return _scaled_sum(weights, rows)
    form = COMBINATIONS[_forms(rows).combination]
    return jax.lax.platform_dependent(weights, rows, cpu=_combined, default=form)


def _product(rows: jax.Array, x: jax.Array, axes: Any) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return jnp.sum(rows.astype(dtype) * x.astype(dtype)[None], axis=axes)


def _summed(rows: jax.Array, x: jax.Array) -> jax.Array:
    return _over_the_rest(_product(rows, x, rows.ndim - 1))


def _over_the_rest(partial: jax.Array) -> jax.Array:
    if partial.ndim == 1:
        return partial
    # Without it XLA merges both sums into the slow one.
    return jnp.sum(jax.lax.optimization_barrier(partial), axis=tuple(range(1, partial.ndim)))


def _stored_first(form: Callable[..., Any], rows: jax.Array, x: jax.Array) -> jax.Array:
    # Fused, the conversion of a float32 gradient to the rows' dtype is made in every row's sum,
    # which then reads float32, or is left out: XLA may keep excess precision.
    return form(rows, jax.lax.optimization_barrier(x))


def _summed_together(rows: jax.Array, x: jax.Array, *, together: int) -> jax.Array:
    """Sums of several rows in one reduction, which reads x once for all of them."""
    dtype, m = accumulator(rows.dtype), len(rows)
    count = math.gcd(m, together)
    x = x.astype(dtype)[None]
    parts = [part.astype(dtype) * x for part in jnp.split(rows, count)]
    zeros = [jnp.zeros((), dtype)] * count
    sums = jax.lax.reduce(parts, zeros, _added, (rows.ndim - 1,))
    return _over_the_rest(jnp.concatenate(sums))


def _added(xs: Any, ys: Any) -> list[jax.Array]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


def _product_of_parts(rows: jax.Array, x: jax.Array, *, columns: int = 1) -> jax.Array:
    """A matrix product: x is as many bfloat16 vectors as it takes to lose nothing.

    Zeros fill them up to `columns`, which a tensor core multiplies at once.
    """
    parts = _parts(x, rows.dtype)
    parts = jnp.pad(parts, [(0, max(columns - len(parts), 0)), *[(0, 0)] * x.ndim])
    axes = (tuple(range(1, rows.ndim)), tuple(range(1, x.ndim + 1)))
    return jnp.sum(_dot(rows, parts, axes), axis=1)


def _products_of_parts(rows: jax.Array, x: jax.Array) -> jax.Array:
    """A matrix product for each place of all axes but the last: parallel without splitting sums."""
    parts, places = _parts(x, rows.dtype), tuple(range(1, rows.ndim - 1))
    axes = ((rows.ndim - 1,), (rows.ndim - 1,))
    each = jax.lax.dot_general(
        rows,
        parts,
        (axes, (places, places)),
        precision=HIGHEST,
        preferred_element_type=accumulator(rows.dtype),
    )
    return jnp.sum(each, axis=(*range(len(places)), each.ndim - 1))


def _dotted(rows: jax.Array, x: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    axes = (tuple(range(1, rows.ndim)), tuple(range(x.ndim)))
    return _dot(rows.astype(dtype), x.astype(dtype), axes)


def _scaled_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.sum(_scaled(weights, rows), axis=0)


def _scaled(weights: jax.Array, rows: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return rows.astype(dtype) * weights.astype(dtype).reshape(-1, *[1] * (rows.ndim - 1))


def _sum_in_strands(weights: jax.Array, rows: jax.Array, *, strands: int) -> jax.Array:
    """Adds far rows before the sum over the near ones: as many reads are under way at once."""
    count = math.gcd(len(rows), strands)
    parts = zip(jnp.split(weights, count), jnp.split(rows, count), strict=True)
    return jnp.sum(functools.reduce(jnp.add, [_scaled(*part) for part in parts]), axis=0)


def _combination_of_parts(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """A matrix product, as that of `_product_of_parts`."""
    return jnp.sum(_dot(_parts(weights, rows.dtype), rows, ((1,), (0,))), axis=0)


def _combined(weights: jax.Array, rows: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return _dot(weights.astype(dtype), rows.astype(dtype), ((0,), (0,)))


def _dot(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (axes, ((), ())), precision=HIGHEST, preferred_element_type=accumulator(a.dtype)
    )


def _parts(x: jax.Array, dtype: Any) -> jax.Array:
    """(k, ...) numbers of the dtype that add up to x: one where x has no more digits than it."""
    if dtype != jnp.bfloat16 or x.dtype == dtype:
        return x.astype(dtype)[None]
    x, found = x.astype(jnp.float32), []
    for _ in range(_PARTS):
        # XLA may take a conversion there and back for none at all, and this it may not.
        found.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x = x - found[-1]
    return jnp.stack(found).astype(dtype)


def _stored(form: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(_stored_first, form)


PRODUCTS: Mapping[str, Callable[..., jax.Array]] = {
    "sums": _summed,
    "sums_stored": _stored(_summed),
    "together_2": _stored(functools.partial(_summed_together, together=2)),
    "together_4": _stored(functools.partial(_summed_together, together=4)),
    "together_8": _stored(functools.partial(_summed_together, together=8)),
    "parts": _stored(_product_of_parts),
    "parts_8": _stored(functools.partial(_product_of_parts, columns=8)),
    "parts_each": _stored(_products_of_parts),
}
COMBINATIONS: Mapping[str, Callable[..., jax.Array]] = {
    "sums": _scaled_sum,
    "strands_2": functools.partial(_sum_in_strands, strands=2),
    "strands_4": functools.partial(_sum_in_strands, strands=4),
    "strands_8": functools.partial(_sum_in_strands, strands=8),
    "parts": _combination_of_parts,
}


class Forms(NamedTuple):
    """Names of the forms of both products."""

    products: str = "sums"
    combination: str = "sums"


# By the rows' dtype, what `benchmarks/mfac_step.py --formulations` found fastest.
ON_GPU: dict[str, Forms] = {"bfloat16": Forms(combination="parts"), "float32": Forms()}


def _forms(rows: jax.Array) -> Forms:
    return ON_GPU.get(str(rows.dtype), Forms())
