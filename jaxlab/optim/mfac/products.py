"""The two products with a window of gradients: each reads the window once and copies nothing large.

Both are bound by memory. Where one device holds the window, the kernels of `jaxlab.kernels.gemv`
take those arrays for which they were measured to win. Otherwise there are two forms of each on
GPUs, exact to float32's rounding and without a reshape, so that a window split over devices stays
where it is; `ON_GPU` says which one rows of a dtype get. Sums over the last axis alone, with a
barrier behind them, are much faster than one over all axes of a matrix. Devices that split a
parameter's last axis exchange m numbers for each place of the other axes. On CPUs sums are not
vectorised, and a dot is much faster.

What was tried with rows of bfloat16 and is slower on an H200 at m = 512: sums of 2, 4 or 8 rows in
one reduction, which reads the vector less often; matrix products with the bfloat16 parts of a
float32 vector, as three columns, as eight, or for each place of the other axes; combinations of 2,
4 or 8 strands of rows (benchmarks/results/mfac_formulations-NVIDIA-H200.json).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator
from jaxlab.core.varying import on_one_device, varying
from jaxlab.kernels.gemv import gemv, wins
from jaxlab.kernels.gemv.reference import parts
from jaxlab.kernels.launches import GRAPH, behind

HIGHEST = jax.lax.Precision.HIGHEST
# An array with no more than this share of all numbers is few: to begin with it costs more than it.
_FEW = 2**-12
# Of all numbers, at most so many are copied so that those arrays are read at once.
_COPIED = 2**-6


def joined(
    pairs: Sequence[tuple[jax.Array, jax.Array]], axis: int = 1
) -> list[tuple[jax.Array, jax.Array]]:
    """Arrays whose axes from `axis` on are those of what they are multiplied with, beside it: pairs
    of few numbers become one, with the same sum of products, where one device has all.
    """
    total = sum(x.size for _, x in pairs)
    few = [pair for pair in pairs if pair[1].size <= _FEW * total]
    copied = sum(x.size for _, x in few)
    # Several devices would send each other the numbers that they share.
    if len(few) < 2 or copied > _COPIED * total or not on_one_device():
        return list(pairs)
    if len({x.dtype for _, x in few}) > 1:  # they would be rounded together, or made wider
        return list(pairs)
    rest = [pair for pair in pairs if pair[1].size > _FEW * total]
    wide = [wide.reshape((*wide.shape[:axis], -1)) for wide, _ in few]
    x = jnp.concatenate([x.reshape(-1) for _, x in few])
    return [*rest, (jnp.concatenate(wide, axis=axis), x)]


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
    n = math.prod(x.shape)
    matrix = jax.ShapeDtypeStruct((rows.shape[0], n), rows.dtype)
    if wins(matrix, jax.ShapeDtypeStruct((n,), x.dtype)):
        return gemv(rows.reshape(matrix.shape), x.reshape(-1))
    form = PRODUCTS[_forms(rows).products]
    return jax.lax.platform_dependent(rows, x, cpu=_dotted, default=form)


def row_combination(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The sum of rows, each times its weight: (m,) and (m, ...) to (...), as accumulated.

    >>> row_combination(jnp.array([2.0, 3.0]), jnp.eye(2, 3)).tolist()
    [2.0, 3.0, 0.0]
    """
    if rows.size == 0 or rows.ndim == 1:
        return _scaled_sum(weights, rows)
    m, shape = rows.shape[0], rows.shape[1:]
    matrix = jax.ShapeDtypeStruct((m, math.prod(shape)), rows.dtype)
    if wins(matrix, weights, transposed=True):
        return gemv(rows.reshape(matrix.shape), weights, transposed=True).reshape(shape)
    form = COMBINATIONS[_forms(rows).combination]
    return jax.lax.platform_dependent(weights, rows, cpu=_combined, default=form)


def row_combinations(weights: jax.Array, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """`row_combination` of each array, (m, ...).

    Of more than five arrays that one device has, a GPU begins the largest before the others.

    >>> row_combinations(jnp.array([2.0, 3.0]), [jnp.eye(2)])[0].tolist()
    [2.0, 3.0]
    """
    if len(arrays) <= GRAPH or not on_one_device():
        return [row_combination(weights, rows) for rows in arrays]
    first = max(range(len(arrays)), key=lambda i: arrays[i].size)
    y = row_combination(weights, arrays[first])
    # Weights that devices share, inside `shard_map`, must stay what they share.
    if varying(y) <= varying(weights):
        weights, y = behind(weights, y)
    return [y if i == first else row_combination(weights, rows) for i, rows in enumerate(arrays)]


def _product(rows: jax.Array, x: jax.Array, axes: Any) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return jnp.sum(rows.astype(dtype) * x.astype(dtype)[None], axis=axes)


def _summed(rows: jax.Array, x: jax.Array) -> jax.Array:
    partial = _product(rows, x, rows.ndim - 1)
    if partial.ndim == 1:
        return partial
    # Without it XLA merges both sums into the slow one.
    return jnp.sum(jax.lax.optimization_barrier(partial), axis=tuple(range(1, partial.ndim)))


def _summed_as_stored(rows: jax.Array, x: jax.Array) -> jax.Array:
    # Fused, the conversion of a float32 gradient to the rows' dtype is made in every row's sum,
    # which then reads float32, or is left out: XLA may keep excess precision.
    return _summed(rows, jax.lax.optimization_barrier(x))


def _dotted(rows: jax.Array, x: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    axes = (tuple(range(1, rows.ndim)), tuple(range(x.ndim)))
    return _dot(rows.astype(dtype), x.astype(dtype), axes)


def _scaled_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.sum(_scaled(weights, rows), axis=0)


def _scaled(weights: jax.Array, rows: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return rows.astype(dtype) * weights.astype(dtype).reshape(-1, *[1] * (rows.ndim - 1))


def _combination_of_parts(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """A matrix product: the weights are as many bfloat16 vectors as it takes to lose nothing."""
    return jnp.sum(_dot(parts(weights, rows.dtype), rows, ((1,), (0,))), axis=0)


def _combined(weights: jax.Array, rows: jax.Array) -> jax.Array:
    dtype = accumulator(rows.dtype)
    return _dot(weights.astype(dtype), rows.astype(dtype), ((0,), (0,)))


def _dot(a: jax.Array, b: jax.Array, axes: Any) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (axes, ((), ())), precision=HIGHEST, preferred_element_type=accumulator(a.dtype)
    )


PRODUCTS: Mapping[str, Callable[..., jax.Array]] = {
    "sums": _summed,
    "sums_stored": _summed_as_stored,
}
COMBINATIONS: Mapping[str, Callable[..., jax.Array]] = {
    "sums": _scaled_sum,
    "parts": _combination_of_parts,
}


class Forms(NamedTuple):
    """Names of the forms of both products."""

    products: str = "sums"
    combination: str = "sums"


# By the rows' dtype, what `benchmarks/mfac_step.py --formulations` found fastest on an H200 at
# m = 512. At 1024 "sums_stored" takes bfloat16 rows in 0.96 of the time of "sums", and at 512 in
# 1.29 of it; "parts" combine them in 0.90 and 0.93 of that of "sums". Of float32 rows "sums" and
# "sums_stored" take the same to 0.5 %, both combinations to 1.5 %; at 1024 their sums did not
# compile beside the window, but in a step.
ON_GPU: dict[str, Forms] = {"bfloat16": Forms(combination="parts"), "float32": Forms()}


def _forms(rows: jax.Array) -> Forms:
    return ON_GPU.get(str(rows.dtype), Forms())
