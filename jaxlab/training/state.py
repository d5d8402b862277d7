"""The state of a run: one pytree, and how it survives a change of structure."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.trainable import combine, partition, trainable_mask
from jaxlab.optim.chain import with_schedule_of


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
) -> TrainState:
    """Applies a phase's transform to the parameters, and carries the optimizer along.

    If every trained parameter is an old one in another place (a kernel that became the dense
    master of a matrix, or the reverse), optimizer state and running average go with it. If any is
    new, both start anew: a new parameter's moments beside an old count of steps would make its
    first updates several times too large, and averaging the factors of two decompositions gives
    the average of neither. The learning rate's place in its schedule is kept in any case.

    A transform that returns an optimizer state has it taken as it is.
    """
    params, opt = transform(state.params, state.opt, key)
    fresh = init_state(params, tx, freeze=freeze, ema=0.0)
    old_names, new_names = _masters(state.params), _masters(params)
    old = _shapes(state.trainable, old_names)
    new = _shapes(fresh.trainable, new_names)
    same = all(old.get(name) == shape for name, shape in new.items())
    if opt is None:
        known = {_renamed(p, old_names): x for p, x in leaf_paths(state.opt).items()}
        opt = jax.tree_util.tree_map_with_path(
            lambda path, x: known.get(_renamed(path_str(path), new_names), x) if same else x,
            fresh.opt,
        )
        opt = with_schedule_of(state.opt, opt)
    average = None
    if state.ema is not None:
        average = jax.tree.map(jnp.copy, fresh.trainable)
        if same:
            averaged, _ = transform(combine(state.ema, state.frozen), state.opt, key)
            average, _ = partition(averaged, trainable_mask(averaged, freeze, strict=False))
    return dataclasses.replace(fresh, step=state.step, opt=opt, ema=average)


def _masters(params: Any) -> dict[str, str]:
    """Path of every dense master inside a matrix -> path of the matrix.

    A matrix has a dense master if exactly one child runs along both axes, in the dense shape.
    """
    masters = {}
    for path, w in matrices(params).items():
        children = {n: getattr(w, n) for n, axes in w.axes.items() if axes == ("in", "out")}
        full = [n for n, x in children.items() if _is_floating(x)]
        if len(full) == 1 and children[full[0]].shape == w.shape:
            masters[f"{path}/{full[0]}"] = path
    return masters


def _is_floating(x: Any) -> bool:
    return x is not None and bool(jnp.issubdtype(x.dtype, jnp.floating))


def _renamed(path: str, masters: dict[str, str]) -> str:
    """A path, below any prefix, with a master's path in it replaced by its matrix's."""
    parts = path.split("/")
    for start in range(len(parts)):
        matrix = masters.get("/".join(parts[start:]))
        if matrix is not None:
            return "/".join([*parts[:start], matrix])
    return path


def _shapes(tree: Any, masters: dict[str, str]) -> dict[str, Any]:
    return {_renamed(p, masters): (x.shape, x.dtype) for p, x in leaf_paths(tree).items()}
