"""An n for each layer, m for all: where a global budget of kept weights costs least.

Source: W. Sun et al., "DominoSearch: Find Layer-Wise Fine-Grained N:M Sparse Schemes from Dense
Neural Networks", NeurIPS 2021. Differs from it: the search is greedy on the scores that pruning
takes, without training, instead of a penalty during it.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.compress import Rule
from jaxlab.core.gram import Gram
from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.methods.nm.mask import NMPattern, check_scores, group
from jaxlab.methods.nm.oneshot import check_gram, wanda_scores


def nm_layerwise(
    weights: Mapping[str, jax.Array],
    *,
    m: int,
    density: float,
    scores: str = "magnitude",
    grams: Mapping[str, Gram] | None = None,
) -> dict[str, int]:
    """Kept counts of m, layer by layer, under one budget for all.

    From n = m everywhere, the layer whose loss grows least for each weight removed gets half its n,
    until the budget is met. Its loss is the sum of the squared scores of pruned weights, and groups
    run along the input. Halvings that turn out not to be needed are taken back, dearest first.

    Args:
      weights: by path, kernels (..., d_in, d_out).
      m: group size, which divides every d_in.
      density: kept fraction of all weights; in (0, 1].
      scores: "magnitude" or "wanda".
      grams: by path, statistics of the kernels' inputs, for "wanda".

    Returns:
      By path, n: m, or m halved and rounded down some number of times, at least 1.

    Raises:
      ValueError: an argument is out of range, or no n of 1 or more meets the density.

    >>> small, large = jnp.full((4, 2), 0.1), jnp.ones((4, 2))
    >>> nm_layerwise({"small": small, "large": large}, m=4, density=0.75)
    {'small': 2, 'large': 4}
    """
    if scores not in _SCORES:
        raise ValueError(f"nm_layerwise: scores={scores!r} is unknown; {suggest(scores, _SCORES)}")
    if not weights:
        raise ValueError("nm_layerwise: weights is empty; nearest: one kernel")
    lowest = 1 / NMPattern(1, m).m
    if not lowest <= density <= 1:
        raise ValueError(
            f"nm_layerwise: density={density} must be in [{lowest:.6g}, 1]: no layer keeps less "
            f"than 1 of m={m}; nearest: {min(max(density, lowest), 1):.6g}"
        )
    losses = {
        path: _losses(path, w, m, scores, (grams or {}).get(path)) for path, w in weights.items()
    }
    size = {path: w.size for path, w in weights.items()}
    # In whole weights of a group, because kept fractions would round.
    budget = density * m * sum(size.values()) * (1 + 1e-12)
    # One step of each layer, by its n before it.
    halvings = list(itertools.accumulate(itertools.repeat(m, m.bit_length()), lambda n, _: n // 2))
    chosen = dict.fromkeys(weights, 0)

    def kept() -> int:
        return sum(size[path] * halvings[step] for path, step in chosen.items())

    def price(path: str, step: int) -> float:
        before, after = halvings[step], halvings[step + 1]
        return (losses[path][after] - losses[path][before]) / (size[path] * (before - after))

    while kept() > budget:
        open_ = [path for path, step in chosen.items() if step + 1 < len(halvings)]
        chosen[min(open_, key=lambda path: price(path, chosen[path]))] += 1
    # The last halving may have removed more than was missing.
    while back := [
        path
        for path, step in chosen.items()
        if step and kept() + size[path] * (halvings[step - 1] - halvings[step]) <= budget
    ]:
        chosen[max(back, key=lambda path: price(path, chosen[path] - 1))] -= 1
    return {path: halvings[step] for path, step in chosen.items()}


def nm_layerwise_rules(counts: Mapping[str, int], m: int, **hyper: Any) -> list[Rule]:
    """Rules for `compress` from the counts of `nm_layerwise`; `hyper` holds for all of them.

    >>> nm_layerwise_rules({"blocks/0/up": 2}, 8)
    [('blocks/0/up', 'nm', {'n': 2, 'm': 8})]
    """
    return [(re.escape(path), "nm", {"n": n, "m": m, **hyper}) for path, n in counts.items()]


def _magnitude(w: jax.Array, gram: Gram | None) -> jax.Array:
    return jnp.abs(w.astype(accumulator(w.dtype)))


def _wanda(w: jax.Array, gram: Gram | None) -> jax.Array:
    check_gram("wanda", gram, w.shape)
    return wanda_scores(w, gram=gram)


_SCORES = {"magnitude": _magnitude, "wanda": _wanda}


def _losses(path: str, w: jax.Array, m: int, scores: str, gram: Gram | None) -> np.ndarray:
    """(m + 1,): the loss for each n from 0 to m."""
    try:
        pattern = NMPattern(1, m)
        pattern.check(w.shape)
        check_scores(w)
        ranked = jnp.sort(group(_SCORES[scores](w, gram), pattern), axis=-2)
    except ValueError as error:
        raise ValueError(f"nm_layerwise: {path!r}: {error}") from error
    others = tuple(i for i in range(ranked.ndim) if i != ranked.ndim - 2)
    by_rank = np.asarray(jnp.sum(jnp.square(ranked), axis=others), np.float64)
    return np.concatenate([[0.0], np.cumsum(by_rank)])[::-1]
