"""What every phase that prunes does: kernels as one vector, a step, kernels again, some times."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from tqdm import tqdm

from jaxlab.methods.sparse import Sparse
from jaxlab.training.kernel_gradients import flatten_kernels, unflatten_kernels

# (weights, mask, gradients, number of the sub-step, number of the pool) -> (weights, mask).
Step = Callable[[jax.Array, jax.Array, Any, int, int], tuple[jax.Array, jax.Array]]
Draw = Callable[[dict[str, Sparse], Sequence[Sequence[str]], int], list[jax.Array]]


def pruned_in_steps(
    owner: str,
    kernels: Mapping[str, Sparse],
    pools: Sequence[Sequence[str]],
    steps: int,
    begin: Callable[[], Step],
    draw: Draw | None,
    damp: float,
) -> dict[str, Sparse]:
    """Kernels by path after all sub-steps.

    Args:
      owner: the phase, for errors and the progress bar.
      kernels: by path, before. Shapes alone (an experiment asks before it has any data) come back.
      pools: paths of the kernels that a step sees together.
      steps: how many sub-steps.
      begin: returns the step; called once, and not for shapes.
      draw: gradients of the pools for the present kernels; None for steps that need none.
      damp: what the step's Fisher matrices are damped with, for errors.

    Raises:
      ValueError: weights are not finite after a step.
    """
    kernels = dict(kernels)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(kernels)):
        return kernels
    step = begin()
    # disable=None: no bar where nobody watches.
    for number in tqdm(range(steps), owner, leave=False, disable=None):
        grads = [None] * len(pools) if draw is None else draw(kernels, pools, number)
        for pool, paths in enumerate(pools):
            old = [kernels[p] for p in paths]
            w = flatten_kernels([k.weight for k in old])
            mask = flatten_kernels([k.mask for k in old])
            # Popped, because gradients are the largest thing here and needed once.
            w, mask = step(w, mask, grads.pop(0), number, pool)
            if not bool(jnp.all(jnp.isfinite(w))):
                raise ValueError(
                    f"{owner}: the weights of {', '.join(paths)} are not finite after sub-step "
                    f"{number + 1}: a gradient is not, or damp={damp} is too small"
                )
            kernels |= dict(zip(paths, unflatten_kernels(old, w, mask), strict=True))
    return kernels
