"""Compression by the inputs that a model's kernels see: the one mechanism for every method.

`jaxlab.core.collect` gathers the statistics, `jaxlab.core.sequential` does kernel by kernel.
"""

from collections.abc import Sequence
from typing import Any

import jax

from jaxlab.core.collect import (
    Batches,
    LossFn,
    Observer,
    Progress,
    WeightFn,
    collect_gradient_grams,
    collect_grams,
    opened,
    put,
)
from jaxlab.core.compress import Offered, Rule
from jaxlab.core.gram import (
    Cross,
    Gram,
    gram_allreduce,
    gram_init,
    gram_merge,
    gram_split,
    gram_update,
)
from jaxlab.core.plan import Plan, corrected_bias
from jaxlab.core.sequential import Pairs, compress_one_by_one

__all__ = [
    "Cross",
    "Gram",
    "collect_gradient_grams",
    "collect_grams",
    "compress_calibrated",
    "corrected_bias",
    "gram_allreduce",
    "gram_init",
    "gram_merge",
    "gram_split",
    "gram_update",
]


def compress_calibrated(
    loss_fn: LossFn,
    params: Any,
    rules: Sequence[Rule],
    batches: Batches,
    *,
    sequential: bool = False,
    correct_bias: bool = True,
    weight: WeightFn | None = None,
    key: jax.Array | None = None,
    offered: Offered | None = None,
    progress: Progress | None = None,
) -> Any:
    """`compress`, with the statistics of a kernel's inputs for methods that take them as `gram`.

    They reach the arrays of `params`. A rule for a factor of what another rule makes has none:
    compress in two calls. Methods are also told `center`, whether the layer's bias will make up for
    the mean; `gradient_gram`, the statistics of the loss's gradients at the kernel's output, if the
    rule needs them; and if `sequential`, `cross`, the moments of the inputs before and behind the
    compression of the kernels before.

    Args:
      loss_fn: as for `collect_grams`; a scalar if a rule needs gradients.
      params: tree of arrays and matrices.
      rules: as for `compress`.
      batches: as for `collect_grams`; read once for each kernel if `sequential`.
      sequential: whether a kernel's inputs are those behind the kernels compressed before it, in
        the order in which the model first uses them, and not those of the uncompressed model. A
        method that takes `cross` then makes up for what those have changed. For the time of the
        call, memory holds a dense copy of the kernels that are done.
      correct_bias: whether the bias beside a `kernel` whose inputs are known takes over what the
        replacement changes in the mean of the output.
      weight: as for `collect_grams`.
      key: as for `compress`.
      offered: as for `compress`.
      progress: as for `collect_grams`.

    Returns:
      The tree with matrices in place of arrays.

    Raises:
      ValueError: `compress` or `collect_grams` refuses, or `sequential` with batches that can be
        read only once. Rules are checked before the first batch is read.

    >>> import jax.numpy as jnp
    >>> params = {"up": {"kernel": jnp.eye(4)}}
    >>> def loss_fn(params, x):
    ...     return jnp.sum(x @ params["up"]["kernel"])
    >>> rules = [(".*/kernel", "low_rank", {"rank": 1})]
    >>> compress_calibrated(loss_fn, params, rules, [jnp.ones((2, 4))])["up"]["kernel"]
    LowRank(u=float32[4, 1], v=float32[1, 4])
    """
    if sequential and not callable(batches) and iter(batches) is batches:
        raise ValueError(
            f"compress_calibrated: sequential=True reads batches={type(batches).__name__} once for "
            "each kernel; nearest: a list, or a function that returns them anew"
        )
    plan = Plan(
        params,
        rules,
        sequential=sequential,
        correct_bias=correct_bias,
        key=key,
        offered=offered,
    )
    # What is wrong with the rules must not wait for the data.
    plan.shapes(params)
    wanting = plan.asking("gram")
    if not wanting:
        return plan.compress(params, {})
    slopes: dict[str, Gram] = {}
    if sloped := plan.asking("gradient_gram"):
        slopes = collect_gradient_grams(
            loss_fn, params, batches, sloped, weight=weight, progress=progress
        )
    if sequential:
        observer = Observer(loss_fn, params, plan.paths, weight, progress=progress)
        pairs = Pairs(loss_fn, weight, progress)
        return compress_one_by_one(plan, observer, pairs, params, batches, slopes)
    observer = Observer(loss_fn, params, wanting, weight, progress=progress)
    grams = observer.collect(params, opened(batches))
    at = {path: gram.mean + gram.tail for path, gram in grams.items()}
    means = {path: (mean, mean) for path, mean in at.items()}
    told = {path: plan.told(path, grams.pop(path), slopes) for path in [*grams]}
    made = plan.compress(params, told)
    return put(made, plan.corrected(params, made, means))
