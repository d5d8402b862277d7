"""What is trained and what is not: one tree split in two, and joined again inside the loss."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import check_listed, first_match, leaf_paths, path_str


def trainable_mask(params: Any, freeze: Sequence[str] = (), *, strict: bool = True) -> Any:
    """Which leaves are trained: floating, not declared frozen by their matrix, not frozen by path.

    Args:
      params: the parameter tree.
      freeze: patterns of whole paths that stay as they are; one that matches a matrix holds all of
        its children.
      strict: whether a pattern that matches nothing is an error.

    Returns:
      A tree of bools with the structure of `params`.

    Raises:
      ValueError: a freeze pattern matches nothing, or `freeze` is one string.
    """
    check_listed("trainable_mask", "freeze", freeze)
    paths = freezable_paths(params)
    frozen = first_match([(p, True) for p in freeze], paths, owner="freeze", strict=strict)
    held = _declared_frozen(params)

    def trained(key_path, leaf) -> bool:
        parts = path_str(key_path).split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts) + 1)}
        floating = bool(jnp.issubdtype(leaf.dtype, jnp.floating))
        return floating and above.isdisjoint(frozen) and above.isdisjoint(held)

    return jax.tree_util.tree_map_with_path(trained, params)


def freezable_paths(params: Any) -> list[str]:
    """Paths that a freeze pattern may match: of every leaf, and of every matrix at any depth."""
    return [*leaf_paths(params), *matrices(params)]


def partition(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Splits a tree into (selected, rest), each with None where the other has the leaf.

    Integer and boolean children cannot be differentiated, so the split comes before `jax.grad`
    and before an optimizer's `init`.

    >>> partition({"w": 1.0, "index": 3}, {"w": True, "index": False})
    ({'index': None, 'w': 1.0}, {'index': 3, 'w': None})
    """
    selected = jax.tree.map(lambda x, keep: x if keep else None, tree, mask)
    rest = jax.tree.map(lambda x, keep: None if keep else x, tree, mask)
    return selected, rest


def partition_like(tree: Any, selected: Any) -> tuple[Any, Any]:
    """Splits a tree as another of its structure was split, of which `selected` is the first part.

    >>> partition_like({"w": 2.0, "index": 3}, {"w": 1.0, "index": None})
    ({'index': None, 'w': 2.0}, {'index': 3, 'w': None})
    """
    is_none = lambda x: x is None  # noqa: E731
    first = jax.tree.map(lambda x, s: None if s is None else x, tree, selected, is_leaf=is_none)
    rest = jax.tree.map(lambda x, s: x if s is None else None, tree, selected, is_leaf=is_none)
    return first, rest


def combine(first: Any, second: Any) -> Any:
    """Joins what `partition` split.

    >>> combine({"w": 1.0, "index": None}, {"w": None, "index": 3})
    {'index': 3, 'w': 1.0}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def _declared_frozen(params: Any) -> set[str]:
    """Paths of the children that a matrix declares frozen, at any depth."""
    return {
        "/".join(filter(None, (path, name)))
        for path, w in matrices(params).items()
        for name in w.frozen
    }
