"""Random factors of a Monarch matrix.

Sources: the authors' layer (T. Dao et al., "Monarch", ICML 2022), which draws each factor like a
dense layer of its own and so makes outputs sqrt(3) times smaller than a dense layer's; S. Qiu et
al., "Compute Better Spent", ICML 2024 (spectral scaling of each factor).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.registry import suggest
from jaxlab.methods.monarch.shape import MonarchShape


def _preserving(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * jnp.asarray(1 / math.sqrt(shape[-1]), dtype)


def _official(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    bound = 1 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _mup(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    fan_out, fan_in = shape[-2:]
    gain = min(1.0, math.sqrt(fan_out / fan_in))
    return _preserving(key, shape, dtype) * jnp.asarray(gain, dtype)


RANDOM_INITS: dict[str, Callable[[jax.Array, tuple[int, ...], Any], jax.Array]] = {
    "variance_preserving": _preserving,
    "official": _official,
    "mup": _mup,
}


def init_monarch(
    key: jax.Array,
    shape: MonarchShape,
    *,
    init: str = "variance_preserving",
    gain: float = 1.0,
    dtype: Any = jnp.float32,
    stack: tuple[int, ...] = (),
) -> dict[str, jax.Array]:
    """Random factors.

    Args:
      key: a PRNG key.
      shape: of the factors.
      init: "variance_preserving" draws normal entries of variance 1 / fan_in, so that each of the
        two products keeps the mean square; "official" is uniform in +-1 / sqrt(fan_in), as the
        authors' code has it (the output's root mean square is a third of the input's); "mup" has
        the standard deviation sqrt(1 / fan_in) min(1, sqrt(fan_out / fan_in)).
      gain: multiplies w2, e.g. 1 / sqrt(2 depth) on residual branches.
      dtype: of the factors, floating.
      stack: leading axes.

    Returns:
      {"w1": (*stack, k, q, p), "w2": (*stack, l, s, r)}.

    Raises:
      ValueError: `init` is unknown.

    >>> from jaxlab.methods.monarch.shape import monarch_shapes
    >>> params = init_monarch(jax.random.key(0), monarch_shapes(16, 24))
    >>> params["w1"].shape, params["w2"].shape
    ((4, 4, 4), (4, 6, 4))
    """
    if init not in RANDOM_INITS:
        raise ValueError(f"monarch: init={init!r} is unknown; {suggest(init, RANDOM_INITS)}")
    key1, key2 = jax.random.split(key)
    draw = RANDOM_INITS[init]
    w1 = draw(key1, (*stack, shape.k, shape.q, shape.p), dtype)
    w2 = draw(key2, (*stack, shape.l, shape.s, shape.r), dtype)
    return {"w1": w1, "w2": w2 * jnp.asarray(gain, dtype)}
