"""Compression kernel by kernel, each on what the kernels compressed before have made of its inputs.

Source: G. Yu and J. Wu, "Compressing Transformers: Features Are Low-Rank, but Weights Are Not!",
AAAI 2023, for the target: the output of the original layer on the original inputs, which needs the
moments of the original inputs with the changed ones.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.collect import (
    Batches,
    LossFn,
    Observer,
    Progress,
    WeightFn,
    kernels,
    opened,
    put,
    replaced,
    summed,
)
from jaxlab.core.gram import Cross, Gram, gram_init, gram_split, gram_update
from jaxlab.core.matrix import accumulator, to_dense
from jaxlab.core.observe import Capture, Captured, Uses
from jaxlab.core.plan import Plan

_log = logging.getLogger(__name__)


def compress_one_by_one(
    plan: Plan,
    observer: Observer,
    pairs: "Pairs",
    params: Any,
    batches: Batches,
    slopes: dict[str, Gram],
) -> Any:
    """`params` compressed by a plan in the order in which the model first uses the kernels."""
    used = observer.order(params, next(iter(opened(batches)), None))
    weights, made, acting = kernels(params), {}, params
    for path in used:
        if weights[path].ndim > 2:
            _log.warning("calibration: %r is a stack, whose layers are compressed at once", path)
    # What the model never multiplies has no inputs to wait for.
    for path in [*(p for p in plan.paths if p not in used), *used]:
        told, means = {}, {}
        if path in used and "gram" in plan.needs[path]:
            cross = None
            if "cross" in plan.needs[path]:
                cross = pairs.collect(path, params, acting, opened(batches))
            if cross is None:
                gram = observer.collect(acting, opened(batches), only=path)[path]
            else:
                gram = cross.gram
            after = gram.mean + gram.tail
            means[path] = after if cross is None else cross.mean, after
            told[path] = plan.told(path, gram, slopes, cross)
        made[path] = plan.compress({path: weights[path]}, told, strict=False)[path]
        # Dense, so that every kernel's pass runs through the same compiled step.
        acting = put(acting, {path: to_dense(made[path]).astype(weights[path].dtype)})
        for changed, bias in plan.corrected(params, made, means).items():
            made[changed] = bias
            acting = put(acting, {changed: bias})
    return put(params, made)


class Pairs:
    """The moments of a kernel's inputs in the original model with those in a changed one."""

    def __init__(self, loss_fn: LossFn, weight: WeightFn | None, progress: Progress | None):
        self.loss_fn = loss_fn
        self.weight = weight
        self.progress = progress or (lambda batches, label: batches)
        # A compilation for each path: one for all would keep the inputs of all kernels.
        self.step = jax.jit(self._step, static_argnames="path", donate_argnums=0)

    def collect(self, path: str, params: Any, acting: Any, batches: Iterable[Any]) -> Cross | None:
        """The moments over all batches.

        None if the inputs of a batch are not one array of a shape: where a kernel is used several
        times, or under `jax.vmap`, there is no telling which vectors belong together.
        """
        w = kernels(params)[path]
        joint = gram_init(2 * w.shape[-2], stack=w.shape[:-2], dtype=accumulator(w.dtype))
        for batch in self.progress(batches, f"calibrate {path}"):
            joint, paired = self.step(joint, params, acting, batch, path=path)
            if not isinstance(paired, Tracer) and not bool(paired):
                return None
        return gram_split(joint)

    def _step(
        self, joint: Gram, params: Any, acting: Any, batch: Any, *, path: str
    ) -> tuple[Gram, jax.Array]:
        shape = self._input_shape(params, batch, path)
        if shape is None:
            return joint, jnp.bool(False)
        stack = joint.count.shape
        both = [self._captured(p, batch, path, (*stack, *shape), joint) for p in (params, acting)]
        pairs = jnp.concatenate([capture.vectors for capture in both], axis=-1)
        weight = jnp.ones(()) if self.weight is None else jnp.asarray(self.weight(batch))
        weight = weight.reshape(weight.shape + (1,) * (len(shape) - 1 - weight.ndim))

        def update(gram: Gram, pairs: jax.Array) -> Gram:
            return gram_update(gram, pairs, weight)

        for _ in stack:
            update = jax.vmap(update)
        counts = jnp.stack([capture.count for capture in both])
        return update(joint, pairs), jnp.all(counts == math.prod(shape[:-1]))

    def _input_shape(self, params: Any, batch: Any, path: str) -> tuple[int, ...] | None:
        uses = Uses()

        def traced(params: Any, batch: Any) -> Any:
            seen = {path: lambda w: Captured(w, None, path, uses)}
            return self.loss_fn(replaced(params, seen), batch)

        jax.eval_shape(traced, params, batch)
        return uses.shapes.get(path)

    def _captured(
        self, params: Any, batch: Any, path: str, shape: tuple[int, ...], like: Gram
    ) -> Capture:
        def outputs(tap: Capture) -> jax.Array:
            seen = {path: lambda w: Captured(w, tap, path, Uses())}
            return summed(self.loss_fn(replaced(params, seen), batch))

        tap = Capture(jnp.zeros(shape, like.mean.dtype), jnp.zeros_like(like.count))
        return jax.grad(outputs)(tap)
