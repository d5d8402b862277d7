"""What a run asks of every matrix in a parameter tree, at any depth of nesting.

at(progress) -> loss, gradients -> weight_decays -> optimizer -> advance -> supports
... and at the end finalize.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxlab.core.match import leaf_paths
from jaxlab.core.matrix import Matrix, is_matrix


def at(tree: Any, progress: jax.Array) -> Any:
    """Every matrix of the tree at `progress` in [0, 1] of its schedule."""
    return _map_matrices(lambda w: w.at(progress), tree)


def advance(tree: Any, progress: jax.Array) -> Any:
    """Every matrix as an optimizer step leaves it, at the `progress` of the step to come.

    A loop of one's own calls this after each update: matrices with untrained state (a stored mask)
    move it on here. Without such matrices it returns the tree as it is.
    """
    return _map_matrices(lambda w: w.advance(progress), tree)


def finalize(tree: Any) -> Any:
    """Every matrix of the tree in its smallest form for inference."""
    return _map_matrices(lambda w: w.finalize(), tree)


def matrices(tree: Any) -> dict[str, Matrix]:
    """Every matrix of a tree by path, and every matrix inside another."""
    found: dict[str, Matrix] = {}

    def visit(path: str, w: Any) -> None:
        if is_matrix(w):
            found[path] = w
            for name in w.factors:
                visit(f"{path}/{name}" if path else name, getattr(w, name))

    for path, leaf in leaf_paths(tree, is_leaf=is_matrix).items():
        visit(path, leaf)
    return found


def supports(tree: Any, progress: jax.Array) -> dict[str, jax.Array]:
    """By path of a trained child: where the optimizer's moments are not held at 0."""
    return _by_child(tree, lambda w: w.support(progress))


def weight_decays(tree: Any, progress: jax.Array) -> dict[str, jax.Array]:
    """By path of a trained child: coefficients of the decoupled decay that its matrix asks for."""
    return _by_child(tree, lambda w: w.weight_decay(progress))


def diagnose(
    before: Any,
    after: Any,
    quantities: dict[str, dict[str, jax.Array]],
    progress: jax.Array,
    later: jax.Array,
) -> dict[str, jax.Array]:
    """Scalars that the matrices of a tree report about a step.

    Args:
      before: the tree that the step began with.
      after: the tree that it left.
      quantities: by name ("grad_abs", "nu", ...), arrays by path of a parameter.
      progress: of the step.
      later: of the next step.

    Returns:
      Scalars by "<path of the matrix>/<name>".
    """
    then, found = matrices(after), {}
    for path, w in matrices(before).items():
        below = {c: f"{path}/{c}" if path else c for c in w.axes}
        own = {
            name: {c: values[p] for c, p in below.items() if p in values}
            for name, values in quantities.items()
        }
        present = {name: children for name, children in own.items() if children}
        scalars = w.diagnose(present, then[path], progress, later)
        found |= {f"{path}/{name}".lstrip("/"): value for name, value in scalars.items()}
    return found


def _by_child(tree: Any, ask: Callable[[Matrix], dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {
        f"{path}/{child}" if path else child: value
        for path, w in matrices(tree).items()
        for child, value in ask(w).items()
    }


def _map_matrices(fn: Callable[[Matrix], Matrix], tree: Any) -> Any:
    return jax.tree.map(lambda x: fn(x) if is_matrix(x) else x, tree, is_leaf=is_matrix)
