"""Parameters that began at different steps, under one optimizer.

Adam and its kin correct the bias of their averages by one count for all parameters. A parameter
that joins later, with averages at 0, then makes first updates that are up to 1 / sqrt(1 - b2) times
too large. Here every cohort, the parameters that joined together, has a state and so a count of its
own.
"""

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

import jax
import optax

from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.matrix import static
from jaxlab.core.trainable import combine


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cohorts:
    """States of one optimizer, one for each cohort of parameters.

    Attributes:
      states: of the cohorts; each has None in the place of the others' parameters.
      paths: of the parameters in each cohort after the first, which has all the others.
    """

    states: tuple[Any, ...]
    paths: tuple[tuple[str, ...], ...] = static(default=())


def in_cohorts(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose state may be split into cohorts; until then, the optimizer itself.

    Args:
      tx: any transformation. What it takes over all parameters at once (a global norm), it takes
        over each cohort: put clipping before this, not inside.

    >>> tx = in_cohorts(optax.adam(0.1))
    >>> len(tx.init({"kernel": jax.numpy.ones(2)}).states)
    1
    """
    inner = optax.with_extra_args_support(tx)

    def init(params) -> Any:
        return Cohorts((inner.init(params),))

    def update(updates, state, params=None, **extra) -> tuple[Any, Any]:
        groups = members(updates, state.paths)
        new, states = None, []
        for group, part in zip(groups, state.states, strict=True):
            own = None if params is None else restrict(params, group)
            scaled, part = inner.update(restrict(updates, group), part, own, **extra)
            new = scaled if new is None else combine(new, scaled)
            states.append(part)
        return new, Cohorts(tuple(states), state.paths)

    return optax.GradientTransformationExtraArgs(init, update)


def members(tree: Any, paths: Sequence[Sequence[str]]) -> list[set[str]]:
    """The paths of each cohort in a tree; the first cohort has what the later ones have not."""
    later = [set(group) for group in paths]
    return [set(leaf_paths(tree)).difference(*later), *later]


def restrict(tree: Any, paths: Container[str]) -> Any:
    """The tree with None in the place of leaves whose path is not among `paths`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x if path_str(path) in paths else None, tree
    )


def is_cohorts(x: Any) -> bool:
    """Whether `x` is a `Cohorts`: the `is_leaf` of walks that stop there."""
    return isinstance(x, Cohorts)


def only(state: Any, index: int) -> Any:
    """An optimizer's whole state, with one of its cohorts as the only one."""
    return jax.tree.map(
        lambda x: Cohorts((x.states[index],)) if is_cohorts(x) else x, state, is_leaf=is_cohorts
    )


def join(parts: Sequence[Any], groups: Sequence[Container[str]]) -> Any:
    """Whole states that differ in their cohorts, as one; the rest is the first one's.

    Args:
      parts: states with one cohort each.
      groups: the paths of each.
    """
    later = tuple(tuple(sorted(group)) for group in groups[1:])  # pyright: ignore

    def joined(*xs):
        if not is_cohorts(xs[0]):
            return xs[0]
        return Cohorts(tuple(x.states[0] for x in xs), later)

    return jax.tree.map(joined, *parts, is_leaf=is_cohorts)
