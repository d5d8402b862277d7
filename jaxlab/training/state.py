"""The state of a run: one pytree, and how it survives a change of structure."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.lifecycle import matrices, supports
from jaxlab.core.trainable import combine, partition, trainable_mask
from jaxlab.optim.carry import Trained, carry, converted_paths
from jaxlab.optim.chain import hold_windows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, number of steps done.
      trainable: the parameters that are trained; None where `frozen` has the leaf.
      frozen: the other parameters.
      opt: state of the optimizer.
      ema: running average of `trainable`, or None.
    """

    step: jax.Array
    trainable: Any
    frozen: Any
    opt: optax.OptState
    ema: Any

    @property
    def params(self) -> Any:
        """The whole parameter tree."""
        return combine(self.trainable, self.frozen)

    @property
    def eval_params(self) -> Any:
        """The parameters that are evaluated and saved: averaged ones where there are any."""
        return self.params if self.ema is None else combine(self.ema, self.frozen)


def init_state(
    params: Any, tx: optax.GradientTransformation, *, freeze: tuple[str, ...], ema: float
) -> TrainState:
    """The state before the first step; freeze patterns may be meant for later structures."""
    trainable, frozen = partition(params, trainable_mask(params, freeze, strict=False))
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), average)


def restructure(
    state: TrainState,
    transform: Any,
    tx: optax.GradientTransformation,
    *,
    freeze: tuple[str, ...],
    key: jax.Array,
    policy: str = "reset_converted",
    progress: jax.typing.ArrayLike = 0.0,
) -> TrainState:
    """Applies a phase's transform to the parameters, and carries the optimizer along.

    Parameters that are old ones in another place (a kernel that became the dense master of a
    matrix, or the reverse) keep their moments. The running average goes along, and so does that of
    a matrix that became dense; with any other new parameter it starts anew: averaging the factors
    of two decompositions gives the average of neither.

    Args:
      state: before the phase.
      transform: (params, optimizer state, key) -> (params, optimizer state or None); a state that
        it returns is taken as it is.
      tx: the optimizer.
      freeze: patterns of paths that are not trained.
      key: of the transform's randomness.
      policy: what the optimizer begins with for new parameters; see `jaxlab.optim.carry`.
      progress: where matrices are in their schedules, which says what of them lives.
    """
    params, opt = transform(state.params, state.opt, key)
    fresh = init_state(params, tx, freeze=freeze, ema=0.0)
    old = Trained(state.params, state.trainable)
    new = Trained(params, fresh.trainable)
    if opt is None:
        opt = carry(tx, state.opt, old, new, policy)
        alive = supports(params, jnp.asarray(progress, jnp.float32))
        opt = hold_windows(opt, alive, fresh.trainable)
    average = None
    if state.ema is not None:
        average = jax.tree.map(jnp.copy, fresh.trainable)
        if converted_paths(old, new) <= set(matrices(state.params)):
            averaged, _ = transform(combine(state.ema, state.frozen), state.opt, key)
            average, _ = partition(averaged, trainable_mask(averaged, freeze, strict=False))
    return dataclasses.replace(fresh, step=state.step, opt=opt, ema=average)
