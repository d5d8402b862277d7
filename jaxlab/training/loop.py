"""The one training step, pure and jitted once for each structure of the parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.collect import WeightFn
from jaxlab.core.lifecycle import advance, at, supports, weight_decays
from jaxlab.core.trainable import combine, partition_like
from jaxlab.optim.chain import hold_moments
from jaxlab.optim.observing import statistics_of
from jaxlab.training.diagnostics import step_diagnostics
from jaxlab.training.state import TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Metrics]]
StepFn = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def stream(seed: int, purpose: Literal["init", "phases", "steps"]) -> jax.Array:
    """The key of one of a run's independent sources of randomness.

    Parameters are drawn from the seed's own key; the others are far from what that draws.
    """
    key = jax.random.key(seed)
    return jax.random.fold_in(key, _STREAMS[purpose]) if purpose in _STREAMS else key


_STREAMS = {"phases": 0x7FFF_0001, "steps": 0x7FFF_0002}


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformationExtraArgs,
    *,
    steps: int,
    seed: int = 0,
    accumulate: int = 1,
    ema: float = 0.0,
    rate: optax.Schedule | None = None,
    diagnostics: bool = False,
    weight: WeightFn | None = None,
) -> StepFn:
    """The step as a pure function of (state, batch).

    progress = step / steps -> matrices at that progress -> loss -> gradients of the trainable
    part -> optax update -> what the step leaves to the matrices -> new state. Randomness is a
    function of (seed, step).

    Args:
      loss_fn: (params, batch, key) -> (scalar mean loss, scalar metrics).
      tx: the optimizer; it is given the extra arguments `value`, the loss; `decay`, by path the
        coefficients of decoupled weight decay that matrices ask for; and if it wants them
        (`jaxlab.optim.observing`), `stats`, averaged over the parts of the batch as gradients are.
      steps: length of the run, which schedules inside matrices refer to.
      seed: of the loss's randomness.
      accumulate: parts that the batch is split into; gradients are averaged over them.
      ema: decay of the running average, for a state that keeps one.
      rate: the learning rate as a function of the step, to be reported among the metrics.
      diagnostics: whether the metrics include what matrices report of each step.
      weight: of a batch, or of a part of it: what its rows or tokens count in the statistics that
        the optimizer wants, of a shape that layers' inputs begin with, 0 for padding. A scalar, and
        None, count all alike.

    Returns:
      A function (state, batch) -> (new state, metrics "loss", "grad_norm" and the task's own).
    """
    wanted = statistics_of(tx)

    def loss_of(trainable, taps, frozen, progress, batch, key):
        params = at(combine(trainable, frozen), progress)
        if wanted is not None:
            each = jnp.ones(()) if weight is None else weight(batch)
            # With weights, the windows of convolutions are written down: not for all alike.
            params = wanted.attach(params, taps, **({"weight": each} if jnp.ndim(each) else {}))
        return loss_fn(params, batch, key)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        progress = state.step / steps
        key = jax.random.fold_in(stream(seed, "steps"), state.step)
        taps = {} if wanted is None else wanted.init(state.trainable)

        def gradients(part, key):
            grad_fn = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
            given = state.trainable, taps, state.frozen, progress, part, key
            (loss, metrics), (grads, stats) = grad_fn(*given)
            return grads, stats, {**metrics, "loss": loss}

        if accumulate == 1:
            grads, stats, metrics = gradients(batch, key)
        else:
            grads, stats, metrics = _mean_over_parts(gradients, batch, key, accumulate)
        updates, opt = tx.update(
            grads,
            state.opt,
            state.trainable,
            value=metrics["loss"],
            decay=weight_decays(state.params, progress),
            **({} if wanted is None else {"stats": stats}),
        )
        trainable = optax.apply_updates(state.trainable, updates)
        later = (state.step + 1) / steps
        params = advance(combine(trainable, state.frozen), later)
        trainable, frozen = partition_like(params, trainable)
        frozen = jax.tree.map(_as_it_was, state.frozen, frozen)
        opt = hold_moments(opt, supports(params, later), trainable)
        if diagnostics:
            metrics |= step_diagnostics(state.params, params, grads, opt, progress, later)
        average = state.ema
        if average is not None:
            # The average of a few steps must not remember the initialisation.
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(trainable, average, 1 - decay)
        metrics["grad_norm"] = optax.tree.norm(grads)
        if rate is not None:
            metrics["learning_rate"] = jnp.asarray(rate(state.step))
        new = dataclasses.replace(
            state, step=state.step + 1, trainable=trainable, frozen=frozen, opt=opt, ema=average
        )
        return new, metrics

    return train_step


def compile_step(
    step: StepFn, shardings: Any, counter: list[int] | None = None, at_once: int = 1
) -> StepFn:
    """Jits a step with its state donated and kept in its sharding.

    Args:
      step: what `make_train_step` returned.
      shardings: tree of the state's shardings.
      counter: its last entry is increased whenever the step is traced.
      at_once: steps of a call. Of more than one, the batches are stacked along a new first axis,
        and the metrics are those of the last step.

    Returns:
      The jitted step.
    """

    def counted(state, batch):
        if counter:
            counter[-1] += 1
        if at_once == 1:
            return step(state, batch)
        state, metrics = jax.lax.scan(step, state, batch, length=at_once)
        return state, jax.tree.map(lambda x: x[-1], metrics)

    return jax.jit(counted, donate_argnums=0, out_shardings=(shardings, None))


def _as_it_was(before: jax.Array, after: jax.Array) -> jax.Array:
    """What is not trained: numbers that a freeze pattern holds stay, masks and ranges move on."""
    return before if jnp.issubdtype(before.dtype, jnp.floating) else after


def _mean_over_parts(gradients: Any, batch: Any, key: jax.Array, parts: int) -> Any:
    # Part i takes rows i, i + parts, ...: so each device's rows of a sharded batch stay with it.
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape((-1, parts, *x.shape[1:])), 1, 0), batch)

    def body(total, part_key):
        return jax.tree.map(jnp.add, total, gradients(*part_key)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(gradients, jax.tree.map(lambda x: x[0], split), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (split, keys))
    return jax.tree.map(lambda x: x / parts, total)
