"""What is trained and what is not: one tree split in two, and joined again inside the loss."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.match import first_match, leaf_paths, path_str
from jaxlab.core.matrix import Matrix, is_matrix


def trainable_mask(params: Any, freeze: Sequence[str] = ()) -> Any:
    """Which leaves are trained: floating, not declared frozen by their matrix, not frozen by path.

    Args:
      params: the parameter tree.
      freeze: patterns of whole paths that stay as they are.

    Returns:
      A tree of bools with the structure of `params`.

    Raises:
      ValueError: a freeze pattern matches nothing.
    """
    paths = leaf_paths(params)
    frozen = first_match([(p, True) for p in freeze], paths, owner="freeze")
    held = _declared_frozen(params)

    def trained(key_path, leaf) -> bool:
        path = path_str(key_path)
        return (
            bool(jnp.issubdtype(leaf.dtype, jnp.floating))
            and path not in frozen
            and path not in held
        )

    return jax.tree_util.tree_map_with_path(trained, params)


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


def combine(first: Any, second: Any) -> Any:
    """Joins what `partition` split.

    >>> combine({"w": 1.0, "index": None}, {"w": None, "index": 3})
    {'index': 3, 'w': 1.0}
    """
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda x: x is None
    )


def _declared_frozen(params: Any) -> set[str]:
    """Paths of the leaves below children that a matrix declares frozen, at any depth."""
    held: set[str] = set()

    def visit(prefix: str, w: Matrix) -> None:
        for name in w.frozen:
            held.update(
                "/".join(filter(None, (prefix, name, path)))
                for path in leaf_paths(getattr(w, name))
            )
        for name in w.factors:
            child = getattr(w, name)
            if is_matrix(child):
                visit(f"{prefix}/{name}" if prefix else name, child)

    for path, leaf in leaf_paths(params, is_leaf=is_matrix).items():
        if is_matrix(leaf):
            visit(path, leaf)
    return held
