"""The statistics of the inputs that a model's kernels see, and of the gradients at their outputs.

Kernels are replaced by matrices that observe what they are multiplied with
(`jaxlab.core.observe`), so that any function of parameters and a batch can be calibrated.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram, Sums, gram_init, gram_merge, gram_of_sums
from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import check_listed, leaf_paths, path_str
from jaxlab.core.matrix import Array, accumulator, is_matrix
from jaxlab.core.observe import Observed, Uses
from jaxlab.core.registry import suggest

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]
# What the model computes from parameters and a batch: its loss, or any floating outputs.
LossFn: TypeAlias = Callable[[Any, Any], Any]
# The weights of a batch's rows or tokens.
WeightFn: TypeAlias = Callable[[Any], jax.Array]
# Passes an iterable on and shows how far it is, under a label: `lambda it, label: tqdm(it, label)`.
Progress: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
Side: TypeAlias = Literal["inputs", "gradients"]


def collect_grams(
    loss_fn: LossFn,
    params: Any,
    batches: Batches,
    paths: Sequence[str] | None = None,
    *,
    weight: WeightFn | None = None,
    progress: Progress | None = None,
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
      progress: shows how far the pass is: (batches, label) -> the same batches.

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
    observer = Observer(loss_fn, params, paths, weight, progress=progress)
    return observer.collect(params, opened(batches), strict=paths is not None)


def collect_gradient_grams(
    loss_fn: LossFn,
    params: Any,
    batches: Batches,
    paths: Sequence[str] | None = None,
    *,
    weight: WeightFn | None = None,
    progress: Progress | None = None,
) -> dict[str, Gram]:
    """The statistics of the loss's gradients at the outputs of a model's kernels.

    With the loss's mean over a batch instead of its sum they are smaller by the square of the
    batch's size: the scale is the loss's. `second_moment / count` is E[g g^T], and its trace the
    mean squared gradient.

    Args:
      loss_fn: (params, batch) -> the loss, a scalar.
      params: as for `collect_grams`, as are the other arguments.
      batches: trees of arrays, or a function that returns them.
      paths: the kernels.
      weight: of rows or tokens; where it is 0, the gradient does not count.
      progress: shows how far the pass is.

    Returns:
      By path, the statistics of vectors of length d_out; of a stack of kernels, a stack of them.

    Raises:
      ValueError: as `collect_grams`, or the loss is no floating scalar.

    >>> params, x = {"kernel": jnp.ones((2, 1))}, jnp.array([[1.0, 2.0], [3.0, 4.0]])
    >>> loss = lambda params, x: jnp.sum((x @ params["kernel"]) ** 2)
    >>> collect_gradient_grams(loss, params, [x])["kernel"].mean.tolist()
    [10.0]
    """
    observer = Observer(loss_fn, params, paths, weight, side="gradients", progress=progress)
    return observer.collect(params, opened(batches), strict=paths is not None)


class Observer:
    """The compiled step that all passes over batches share."""

    def __init__(
        self,
        loss_fn: LossFn,
        params: Any,
        paths: Sequence[str] | None,
        weight: WeightFn | None,
        *,
        side: Side = "inputs",
        progress: Progress | None = None,
    ):
        check_listed("collect_grams", "paths", paths)
        weights = kernels(params)
        for path in paths or ():
            if path not in weights:
                raise ValueError(
                    f"collect_grams: {path!r} is no floating array of two axes or more; "
                    f"{suggest(path, weights)}"
                )
        self.loss_fn = loss_fn
        self.weight = weight
        self.side: Side = side
        self.progress = progress or (lambda batches, label: batches)
        # By name, because a stack of scales has the shape of a kernel, too.
        named = [p for p, w in weights.items() if is_matrix(w) or p.split("/")[-1] == "kernel"]
        self.paths = named if paths is None else list(paths)
        self.uses = Uses()
        self.step = jax.jit(self._step, donate_argnums=0)

    def order(self, params: Any, batch: Any) -> list[str]:
        """The paths that the model multiplies, in the order of their first use; none other stay."""

        def traced(params: Any, batch: Any) -> dict[str, Gram]:
            return self._step(self.nothing(params), jnp.bool(True), None, params, batch)

        if batch is None:
            raise ValueError("calibration: there are no batches; nearest: one")
        self.uses.shapes.clear()
        jax.eval_shape(traced, params, batch)
        self.paths = list(self.uses.shapes)
        return self.paths

    def nothing(self, params: Any) -> dict[str, Gram]:
        """The statistics before the first batch."""
        return no_grams(params, self.paths, self.side)

    def collect(
        self, params: Any, batches: Iterable[Any], *, strict: bool = False, only: str | None = None
    ) -> dict[str, Gram]:
        """The statistics of all paths, or of one that `order` has found, over all batches."""
        active = None if only is None else {path: jnp.bool(path == only) for path in self.paths}
        grams: dict[str, Gram] | None = None
        for batch in self.progress(batches, f"calibrate {only or self.side}"):
            if grams is None:
                asked = self.paths
                if only is None:
                    self._check_used(asked if strict else (), self.order(params, batch))
                # Thrice: a mean to centre on, that mean without the rounding of large sums, and
                # the statistics about it.
                grams = self.nothing(params)
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
            return Observed(w, tap, shift, each, on, path, self.uses, self.side)

        def outputs(taps: dict[str, Sums]) -> jax.Array:
            changes = {p: lambda w, p=p: observed(p, w, taps[p]) for p in self.paths}
            return _SCALAR[self.side](self.loss_fn(replaced(params, changes), batch))

        taps = {p: Sums(g.count, g.mean, g.m2, g.absmean) for p, g in grams.items()}
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


def summed(outputs: Any) -> jax.Array:
    """A scalar that depends on every floating output of a model."""
    floating = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum((jnp.sum(x.astype(jnp.float32)) for x in floating), jnp.float32(0))


def _loss(outputs: Any) -> jax.Array:
    leaves = jax.tree.leaves(outputs)
    shapes = [f"{x.dtype}{list(x.shape)}" for x in leaves]
    if len(leaves) != 1 or leaves[0].ndim or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise ValueError(
            f"collect_gradient_grams: loss_fn returns {', '.join(shapes)}; nearest: the loss, one "
            "floating scalar"
        )
    return leaves[0]


_SCALAR = {"inputs": summed, "gradients": _loss}


def opened(batches: Batches) -> Iterable[Any]:
    """The batches, anew if that is possible."""
    return batches() if callable(batches) else batches


def no_grams(params: Any, paths: Sequence[str], side: Side = "inputs") -> dict[str, Gram]:
    """By path, the statistics of nothing, on one side of the kernel."""
    axis = {"inputs": -2, "gradients": -1}[side]
    weights = {path: w for path, w in kernels(params).items() if path in paths}
    return {
        path: gram_init(w.shape[axis], stack=w.shape[:-2], dtype=accumulator(w.dtype))
        for path, w in weights.items()
    }


def kernels(params: Any) -> dict[str, Any]:
    """By path: what may stand for a kernel, arrays and matrices and the matrices' factors."""
    found = leaf_paths(params, is_leaf=is_matrix)
    for path, w in matrices(params).items():
        found |= {f"{path}/{name}" if path else name: getattr(w, name) for name in w.factors}
    return {path: w for path, w in found.items() if is_matrix(w) or _is_kernel(w)}


def _is_kernel(w: Any) -> bool:
    return hasattr(w, "dtype") and w.ndim >= 2 and bool(jnp.issubdtype(w.dtype, jnp.floating))


def put(params: Any, values: dict[str, Any]) -> Any:
    """The tree with `values` at their paths."""
    return replaced(params, {path: lambda _, w=w: w for path, w in values.items()})


def replaced(params: Any, changes: dict[str, Callable[[Any], Any]]) -> Any:
    """The tree with functions applied to what stands at some paths, factors before their matrix."""

    def visit(path: str, w: Any) -> Any:
        if is_matrix(w):
            factors = {n: visit(f"{path}/{n}" if path else n, getattr(w, n)) for n in w.factors}
            w = dataclasses.replace(w, **factors) if factors else w
        return changes[path](w) if path in changes else w

    leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_matrix)
    return treedef.unflatten([visit(path_str(path), leaf) for path, leaf in leaves])
