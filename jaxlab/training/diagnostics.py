"""Numbers about gradients that matrices report: of a step, and of the noise between minibatches."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.lifecycle import at, diagnose
from jaxlab.core.match import leaf_paths, owner_path
from jaxlab.core.trainable import combine
from jaxlab.training.state import TrainState

Metrics = dict[str, jax.Array]
_ADAM = "nu"


def step_diagnostics(
    before: Any, after: Any, grads: Any, opt: Any, progress: jax.Array, later: jax.Array
) -> Metrics:
    """What the matrices say of a step, given |gradient| and, where there is one, Adam's nu.

    Args:
      before: parameters that the gradient was taken at.
      after: parameters after the step.
      grads: the gradient, in the structure of the trained part.
      opt: state of the optimizer after the step.
      progress: of the step.
      later: of the next step.
    """
    sizes = {path: jnp.abs(g) for path, g in leaf_paths(grads).items()}
    quantities = {"grad_abs": sizes, _ADAM: _moments(opt, _ADAM, sizes)}
    return diagnose(before, after, quantities, progress, later)


def gradient_noise(
    loss_fn: Any, state: TrainState, batches: Sequence[Any], key: jax.Array, *, steps: int
) -> Metrics:
    """What the matrices say of the variance of the gradient between minibatches.

    Args:
      loss_fn: (params, batch, key) -> (loss, metrics).
      state: the state, whose parameters stay as they are.
      batches: two or more minibatches.
      key: of the loss's randomness.
      steps: length of the run, which schedules inside matrices refer to.
    """
    progress = state.step / steps

    def gradient(batch):
        def loss_of(trainable):
            return loss_fn(at(combine(trainable, state.frozen), progress), batch, key)

        return jax.grad(loss_of, has_aux=True)(state.trainable)[0]

    def add(sums, batch):
        # Welford's recurrence: a difference of two large sums would lose the variance.
        count, mean, m2 = sums
        grads, count = gradient(batch), count + 1
        delta = jax.tree.map(jnp.subtract, grads, mean)
        mean = jax.tree.map(lambda m, d: m + d / count, mean, delta)
        m2 = jax.tree.map(lambda s, d, g, m: s + d * (g - m), m2, delta, grads, mean)
        return (count, mean, m2), None

    zeros = jax.tree.map(jnp.zeros_like, state.trainable)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
    (count, _, m2), _ = jax.lax.scan(add, (jnp.zeros(()), zeros, zeros), stacked)
    variance = {path: s / (count - 1) for path, s in leaf_paths(m2).items()}
    found = diagnose(state.params, state.params, {"grad_var": variance}, progress, progress)
    # Nothing has moved: a flip rate of 0 would only mislead.
    return {name: value for name, value in found.items() if not name.endswith("/flip_rate")}


def _moments(opt: Any, name: str, like: dict[str, Any]) -> dict[str, jax.Array]:
    """The optimizer's arrays called `name`, by path of the parameter they belong to."""
    found = {}
    for path, leaf in leaf_paths(opt).items():
        parameter = owner_path(path, like)
        if parameter and path.removesuffix(parameter).endswith(f"/{name}/"):
            found[parameter] = leaf
    return found
