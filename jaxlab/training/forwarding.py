"""jit for functions of large trees that leave most of a tree as it is."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Outcome:
    """A function's outputs, without those that are inputs.

    Attributes:
      changed: by place among the outputs, what was computed.
      kept: by place among the outputs, the place among the inputs, or -1.
      treedef: of the outputs.
    """

    changed: dict[int, jax.Array]
    kept: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    treedef: Any = dataclasses.field(metadata={"static": True})


def jit_forwarding(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit`, except that an output which is an input is that array itself and no copy of it.

    Args:
      fn: a function of trees of arrays.

    Returns:
      The jitted function. What it returns shares arrays with its arguments, so donate neither.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones(3)
    >>> same, double = jit_forwarding(lambda x: (x, 2 * x))(x)
    >>> same is x, double.tolist()
    (True, [2.0, 2.0, 2.0])
    """

    @jax.jit
    def outcome(*args: Any) -> _Outcome:
        places = {id(x): i for i, x in enumerate(jax.tree.leaves(args))}
        leaves, treedef = jax.tree.flatten(fn(*args))
        kept = tuple(places.get(id(x), -1) for x in leaves)
        changed = {i: x for i, x in enumerate(leaves) if kept[i] < 0}
        return _Outcome(changed, kept, treedef)

    def forwarding(*args: Any) -> Any:
        inputs, found = jax.tree.leaves(args), outcome(*args)
        return found.treedef.unflatten(
            found.changed[i] if place < 0 else inputs[place] for i, place in enumerate(found.kept)
        )

    return forwarding
