"""Calibration: the statistics of the inputs that a model's kernels see, and compression by them.

The one mechanism for every method that wants more than the weights. Kernels are replaced by
matrices that observe what they are multiplied with (`jaxlab.core.observe`), so that any function of
parameters and a batch can be calibrated.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.compress import Offered, Rule, compress, declares
from jaxlab.core.gram import (
    Gram,
    Sums,
    gram_allreduce,
    gram_init,
    gram_merge,
    gram_of_sums,
    gram_update,
)
from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import first_match, leaf_paths, path_str
from jaxlab.core.matrix import Array, accumulator, is_matrix, to_dense
from jaxlab.core.observe import Observed, Uses
from jaxlab.core.registry import suggest

__all__ = [
    "Gram",
    "collect_grams",
    "compress_calibrated",
    "gram_allreduce",
    "gram_init",
    "gram_merge",
    "gram_update",
]

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]
# What the model computes from parameters and a batch: its loss, or any floating outputs.
LossFn: TypeAlias = Callable[[Any, Any], Any]
# The weights of a batch's rows or tokens.
WeightFn: TypeAlias = Callable[[Any], jax.Array]


def collect_grams(
    loss_fn: LossFn,
    params: Any,
    batches: Batches,
    paths: Sequence[str] | None = None,
    *,
    weight: WeightFn | None = None,
) -> dict[str, Gram]:
    """The statistics of the inputs of a model's kernels, in one pass over the batches.

    Every batch runs through one compiled step; memory holds the statistics and one batch. A batch
    of another shape compiles anew. Products with a kernel's transpose are not inputs of the kernel.

    Args:
      loss_fn: (params, batch) -> floating outputs, the loss for instance. They must depend on the
        kernels in a differentiable way; a `while_loop` is the one construct that JAX refuses.
      params: tree of arrays and matrices.
      batches: trees of arrays, or a function that returns them. Sharded ones give the same numbers.
      paths: the kernels, or factors of matrices (`.../kernel/u`); None is every matrix, and every
        array that is named `kernel`, as far as the model multiplies them.
      weight: batch -> weights, not negative, of the rows or tokens, e.g. (B,) or (B, T): a prefix
        of the axes before a kernel's input. 0 is for padding. Not for models that map over their
        batch with `jax.vmap`, whose kernels do not see its axis.

    Returns:
      By path, the statistics; of a stack of kernels, a stack of them.

    Raises:
      ValueError: a path is no kernel or is never multiplied, a weight does not fit an input, or
        there is no batch.

    >>> params, x = {"kernel": jnp.ones((2, 3))}, jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> grams = collect_grams(lambda params, x: x @ params["kernel"], params, [x])
    >>> grams["kernel"].second_moment.tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    observer = _Observer(loss_fn, params, paths, weight)
    return observer.collect(params, _opened(batches), strict=paths is not None)


def compress_calibrated(
    loss_fn: LossFn,
    params: Any,
    rules: Sequence[Rule],
    batches: Batches,
    *,
    sequential: bool = False,
    weight: WeightFn | None = None,
    key: jax.Array | None = None,
    offered: Offered | None = None,
) -> Any:
    """`compress`, with the statistics of a kernel's inputs for methods that take them as `gram`.

    They reach the arrays of `params`. A rule for a factor of what another rule makes has none:
    compress in two calls.

    Args:
      loss_fn: as for `collect_grams`.
      params: tree of arrays and matrices.
      rules: as for `compress`.
      batches: as for `collect_grams`; read once for each kernel if `sequential`.
      sequential: whether a kernel's inputs are those behind the kernels compressed before it, in
        the order in which the model first uses them, and not those of the uncompressed model.
      weight: as for `collect_grams`.
      key: as for `compress`.
      offered: as for `compress`.

    Returns:
      The tree with matrices in place of arrays.

    Raises:
      ValueError: `compress` or `collect_grams` refuses, or `sequential` with batches that can be
        read only once. Rules are checked before the first batch is read.

    >>> params = {"up": {"kernel": jnp.eye(4)}}
    >>> def loss_fn(params, x):
    ...     return jnp.sum(x @ params["up"]["kernel"])
    >>> rules = [(".*/kernel", "low_rank", {"rank": 2})]
    >>> compress_calibrated(loss_fn, params, rules, [jnp.ones((2, 4))])["up"]["kernel"]
    LowRank(u=float32[4, 2], v=float32[2, 4])
    """
    if sequential and not callable(batches) and iter(batches) is batches:
        raise ValueError(
            f"compress_calibrated: sequential=True reads batches={type(batches).__name__} once for "
            "each kernel; nearest: a list, or a function that returns them anew"
        )

    def compressed(params: Any, grams: dict[str, Gram], strict: bool = True) -> Any:
        def told(path: str) -> dict[str, Any]:
            others = offered(path) if offered else {}
            return {**others, "gram": grams[path]} if path in grams else others

        return compress(params, rules, key=key, offered=told, strict=strict)

    chosen = [(pattern, method) for pattern, method, _ in rules]
    methods = first_match(chosen, _weights(params), owner="compress", strict=False)
    wanting = [path for path, method in methods.items() if declares(method, "gram")]
    # What is wrong with the rules must not wait for the data.
    jax.eval_shape(lambda params: compressed(params, _no_grams(params, wanting)), params)
    if not wanting:
        return compressed(params, {})
    if not sequential:
        observer = _Observer(loss_fn, params, wanting, weight)
        return compressed(params, observer.collect(params, _opened(batches)))
    observer = _Observer(loss_fn, params, list(methods), weight)
    used = observer.order(params, next(iter(_opened(batches)), None))
    weights, made, acting = _weights(params), {}, params
    # What the model never multiplies has no inputs to wait for.
    for path in [*(p for p in methods if p not in used), *used]:
        asked = path in used and path in wanting
        grams = observer.collect(acting, _opened(batches), only=path) if asked else {}
        made[path] = compressed({path: weights[path]}, grams, strict=False)[path]
        acting = _put(acting, {path: to_dense(made[path]).astype(weights[path].dtype)})
    return _put(params, made)


class _Observer:
    """The compiled step that all passes over batches share."""

    def __init__(
        self,
        loss_fn: LossFn,
        params: Any,
        paths: Sequence[str] | None,
        weight: WeightFn | None,
    ):
        weights = _weights(params)
        for path in paths or ():
            if path not in weights:
                raise ValueError(
                    f"collect_grams: {path!r} is no floating array of two axes or more; "
                    f"{suggest(path, weights)}"
                )
        self.loss_fn = loss_fn
        self.weight = weight
        # By name, because a stack of scales has the shape of a kernel, too.
        named = [p for p, w in weights.items() if is_matrix(w) or p.split("/")[-1] == "kernel"]
        self.paths = named if paths is None else list(paths)
        self.uses = Uses()
        self.step = jax.jit(self._step, donate_argnums=0)

    def order(self, params: Any, batch: Any) -> list[str]:
        """The paths that the model multiplies, in the order of their first use; none other stay."""

        def traced(params: Any, batch: Any) -> dict[str, Gram]:
            return self._step(_no_grams(params, self.paths), jnp.bool(True), None, params, batch)

        if batch is None:
            raise ValueError("calibration: there are no batches; nearest: one")
        self.uses.paths.clear()
        jax.eval_shape(traced, params, batch)
        self.paths = list(self.uses.paths)
        return self.paths

    def collect(
        self, params: Any, batches: Iterable[Any], *, strict: bool = False, only: str | None = None
    ) -> dict[str, Gram]:
        """The statistics of all paths, or of one that `order` has found, over all batches."""
        active = None if only is None else {path: jnp.bool(path == only) for path in self.paths}
        grams: dict[str, Gram] | None = None
        for batch in batches:
            if grams is None:
                asked = self.paths
                if only is None:
                    self._check_used(asked if strict else (), self.order(params, batch))
                # Thrice: a mean to centre on, that mean without the rounding of large sums, and
                # the statistics about it.
                grams = _no_grams(params, self.paths)
                for _ in range(3):
                    grams = self.step(grams, jnp.bool(True), active, params, batch)
            else:
                grams = self.step(grams, jnp.bool(False), active, params, batch)
        if grams is None:
            raise ValueError("calibration: there are no batches; nearest: one")
        found = grams if only is None else {only: grams[only]}
        for path, gram in found.items():
            if not isinstance(gram.count, Tracer) and not bool(jnp.all(gram.count > 0)):
                raise ValueError(
                    f"collect_grams: nothing reached {path!r}: all weights are 0, or what the "
                    "model returns does not depend on its product in a differentiable way"
                )
        return found

    def _step(
        self,
        grams: dict[str, Gram],
        fresh: jax.Array,
        active: dict[str, jax.Array] | None,
        params: Any,
        batch: Any,
    ) -> dict[str, Gram]:
        """`grams` with a batch; if `fresh`, the batch alone, centred on the means of `grams`."""
        weight = jnp.ones(()) if self.weight is None else jnp.asarray(self.weight(batch))

        def observed(path: str, w: Array, tap: Sums) -> Observed:
            shift, stack = grams[path].mean, w.shape[:-2]
            each = jnp.broadcast_to(weight.astype(shift.dtype), (*stack, *weight.shape))
            on = None if active is None else jnp.broadcast_to(active[path], stack)
            return Observed(w, tap, shift, each, on, path, self.uses)

        def outputs(taps: dict[str, Sums]) -> jax.Array:
            put = {p: lambda w, p=p: observed(p, w, taps[p]) for p in self.paths}
            leaves = jax.tree.leaves(self.loss_fn(_replaced(params, put), batch))
            floating = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum((jnp.sum(x.astype(jnp.float32)) for x in floating), jnp.float32(0))

        taps = {p: Sums(g.count, g.mean, g.m2) for p, g in grams.items()}
        sums = jax.grad(outputs)(taps)
        seen = {p: gram_of_sums(grams[p].mean, sums[p]) for p in self.paths}
        before = {p: g._replace(count=jnp.where(fresh, 0, g.count)) for p, g in grams.items()}
        return {p: gram_merge(before[p], seen[p]) for p in self.paths}

    def _check_used(self, asked: Sequence[str], used: Sequence[str]) -> None:
        for path in asked:
            if path not in used:
                raise ValueError(
                    f"collect_grams: the model never multiplies {path!r}; {suggest(path, used)}"
                )


def _opened(batches: Batches) -> Iterable[Any]:
    return batches() if callable(batches) else batches


def _no_grams(params: Any, paths: Sequence[str]) -> dict[str, Gram]:
    weights = {path: w for path, w in _weights(params).items() if path in paths}
    return {
        path: gram_init(w.shape[-2], stack=w.shape[:-2], dtype=accumulator(w.dtype))
        for path, w in weights.items()
    }


def _weights(params: Any) -> dict[str, Any]:
    """By path: what may stand for a kernel, arrays and matrices and the matrices' factors."""
    found = leaf_paths(params, is_leaf=is_matrix)
    for path, w in matrices(params).items():
        found |= {f"{path}/{name}" if path else name: getattr(w, name) for name in w.factors}
    return {path: w for path, w in found.items() if is_matrix(w) or _is_kernel(w)}


def _is_kernel(w: Any) -> bool:
    return hasattr(w, "dtype") and w.ndim >= 2 and bool(jnp.issubdtype(w.dtype, jnp.floating))


def _put(params: Any, values: dict[str, Any]) -> Any:
    """The tree with `values` at their paths."""
    return _replaced(params, {path: lambda _, w=w: w for path, w in values.items()})


def _replaced(params: Any, put: dict[str, Callable[[Any], Any]]) -> Any:
    """The tree with functions applied to what stands at some paths, factors before their matrix."""

    def visit(path: str, w: Any) -> Any:
        if is_matrix(w):
            factors = {n: visit(f"{path}/{n}" if path else n, getattr(w, n)) for n in w.factors}
            w = dataclasses.replace(w, **factors) if factors else w
        return put[path](w) if path in put else w

    leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_matrix)
    return treedef.unflatten([visit(path_str(path), leaf) for path, leaf in leaves])
