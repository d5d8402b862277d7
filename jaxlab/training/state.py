"""The state of a run: one pytree, and how it survives a change of structure."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.trainable import combine, partition, trainable_mask


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
    """The state before the first step."""
    trainable, frozen = partition(params, trainable_mask(params, freeze))
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), average)


def restructure(
    state: TrainState,
    transform: Any,
    tx: optax.GradientTransformation,
    *,
    freeze: tuple[str, ...],
    key: jax.Array,
) -> TrainState:
    """Applies a phase's transform: new parameters, and what fits of the old optimizer state.

    Unless the transform gives an optimizer state, each of its leaves is kept if the leaf of the
    same path, or of the path one level up (a kernel that became a matrix's child), had the same
    shape and dtype, and starts anew otherwise.
    """
    params, opt = transform(state.params, state.opt, key)
    fresh = init_state(params, tx, freeze=freeze, ema=0.0)
    if opt is None:
        opt = _carry(state.opt, fresh.opt)
    average = None
    if state.ema is not None:
        averaged, _ = transform(combine(state.ema, state.frozen), state.opt, key)
        average, _ = partition(averaged, trainable_mask(averaged, freeze))
    return dataclasses.replace(fresh, step=state.step, opt=opt, ema=average)


def _carry(old: Any, new: Any) -> Any:
    known = leaf_paths(old)

    def pick(key_path, leaf):
        for path in (path_str(key_path), path_str(key_path[:-1])):
            past = known.get(path)
            if past is not None and (past.shape, past.dtype) == (leaf.shape, leaf.dtype):
                return past
        return leaf

    return jax.tree_util.tree_map_with_path(pick, new)
