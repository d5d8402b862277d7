"""From a budget to rules for `compress`: which layers get which rank."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.collect import (
    Batches,
    LossFn,
    Progress,
    WeightFn,
    collect_gradient_grams,
    collect_grams,
    kernels,
    opened,
    put,
    summed,
)
from jaxlab.core.compress import Rule
from jaxlab.core.gram import Gram
from jaxlab.core.match import check_listed, leaf_paths
from jaxlab.core.matrix import is_matrix, to_dense
from jaxlab.core.plan import biases_beside, corrected_bias
from jaxlab.methods.low_rank.allocate import Quality, Ranks, allocate_ranks
from jaxlab.methods.low_rank.lord import lord_spectrum
from jaxlab.methods.low_rank.matrix import LowRank


def low_rank_rules(
    loss_fn: LossFn,
    params: Any,
    batches: Batches,
    paths: Sequence[str],
    *,
    ratio: float | None = None,
    budget: int | None = None,
    allocation: str = "greedy",
    align: int = 8,
    weights: Mapping[str, float] | Literal["gradients"] | None = None,
    skip: Iterable[str] = (),
    correct_bias: bool = True,
    weight: WeightFn | None = None,
    progress: Progress | None = None,
    **hyper: Any,
) -> list[Rule]:
    """Rules that share a budget out between kernels by the spectra of their outputs.

    Args:
      loss_fn: as for `collect_grams`; a scalar loss for `weights="gradients"`, and for
        `allocation="sensitivity"`, where its mean over the batches is what is measured.
      params: tree of arrays.
      batches: calibration batches, read several times unless only spectra are asked for.
      paths: of the kernels, as `collect_grams` names them.
      ratio: kept fraction of the kernels' parameters, of those not skipped; in (0, 1]. Or else
      budget: their number.
      allocation: method of `allocate_ranks`.
      align: ranks are multiples of it.
      weights: for "greedy": by path; None is the relative error of each layer's outputs;
        "gradients" is E||dL/dy||^2, from one backward pass over the batches.
      skip: patterns of whole paths that stay dense and outside the budget.
      correct_bias: as for the `compress_calibrated` that will follow: whether a layer that has a
        bias need not spend rank on the mean.
      weight: as for `collect_grams`.
      progress: as for `collect_grams`.
      **hyper: further settings of each rule, such as `split`.

    Returns:
      For each path (its pattern, "low_rank", settings), or (its pattern, "dense", {}).

    Raises:
      ValueError: an argument is out of range, a path is no kernel, or `paths` is one string.

    >>> params = {"kernel": jnp.eye(16)}
    >>> x = [jnp.eye(16) * jnp.arange(16.0)[:, None]]
    >>> loss_fn = lambda params, x: x @ params["kernel"]
    >>> low_rank_rules(loss_fn, params, x, ["kernel"], ratio=0.5, align=2)
    [('kernel', 'low_rank', {'rank': 4})]
    """
    check_listed("low_rank_rules", "paths", paths)
    check_listed("low_rank_rules", "skip", skip)
    if (ratio is None) == (budget is None):
        raise ValueError(f"low_rank_rules: give one of ratio={ratio} and budget={budget}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"low_rank_rules: ratio={ratio} must be in (0, 1]; nearest: 1.0")
    skipped = {path for path in paths if any(re.fullmatch(pattern, path) for pattern in skip)}
    open_ = [path for path in paths if path not in skipped]
    how: dict[str, Any] = {"weight": weight, "progress": progress}
    grams = collect_grams(loss_fn, params, batches, open_, **how)
    found = {path: jnp.swapaxes(to_dense(kernels(params)[path]), -1, -2) for path in open_}
    beside = biases_beside(params, open_) if correct_bias else {}
    spectra = {
        path: np.asarray(lord_spectrum(w, grams[path], center=path in beside)[0])
        for path, w in found.items()
    }
    shapes = {path: w.shape for path, w in found.items()}
    if budget is None:
        assert ratio is not None
        budget = int(ratio * sum(math.prod(shape) for shape in shapes.values()))
    if weights == "gradients":
        slopes = collect_gradient_grams(loss_fn, params, batches, open_, **how)
        weights = {path: _mean_square(gram) for path, gram in slopes.items()}
    quality = _quality(loss_fn, params, batches, grams, beside)
    ranks = allocate_ranks(
        spectra,
        shapes,
        budget,
        method=allocation,
        align=align,
        weights=weights,
        quality=quality,
    )
    return _rules({path: None if path in skipped else ranks[path] for path in paths}, hyper)


def _rules(ranks: Ranks, hyper: dict[str, Any]) -> list[Rule]:
    return [
        (re.escape(path), "dense", {})
        if rank is None
        else (re.escape(path), LowRank.name, {"rank": rank, **hyper})
        for path, rank in ranks.items()
    ]


def _mean_square(gram: Gram) -> float:
    trace = jnp.trace(gram.moment(center=False), axis1=-2, axis2=-1)
    return float(jnp.mean(trace))


def _quality(
    loss_fn: LossFn,
    params: Any,
    batches: Batches,
    grams: dict[str, Gram],
    beside: Mapping[str, str],
) -> Quality:
    """The mean loss with one kernel replaced, compiled once: a matrix enters as its dense array."""
    step: Callable[..., jax.Array] = jax.jit(lambda p, batch: summed(loss_fn(p, batch)))

    def measure(path: str, ratio: float) -> float:
        w = kernels(params)[path]
        small = LowRank.from_dense(w, ratio=ratio, gram=grams[path], center=path in beside)
        changed = {path: small.to_dense()}
        if path in beside:
            mean, bias = grams[path].mean, leaf_paths(params, is_leaf=is_matrix)[beside[path]]
            changed[beside[path]] = corrected_bias(bias, w, small, mean, mean)
        acting = put(params, changed)
        return float(np.mean([float(step(acting, batch)) for batch in opened(batches)]))

    return measure
