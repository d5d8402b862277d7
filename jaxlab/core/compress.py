"""From a dense parameter tree to a compressed one, by rules on paths."""

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import registry
from jaxlab.core.match import Matcher, path_str
from jaxlab.core.matrix import Matrix, is_matrix

# (pattern of the whole path, name of the method, hyper-parameters)
Rule = tuple[str, str, dict[str, Any]]
# What a caller can tell methods about a path, by the name of the argument.
Offered = Callable[[str], dict[str, Any]]
# Arguments that only a caller can give, because they are measured, and how one comes by them.
_MEASURED = {
    "gram": "calibrate.batches, or compress_calibrated",
    "gradient_gram": "calibrate.batches, or compress_calibrated",
    "cross": "calibrate.sequential, or compress_calibrated(sequential=True)",
    "center": "calibrate.correct_bias, for layers that have a bias",
}


def compress(
    params: Any,
    rules: Sequence[Rule],
    *,
    key: jax.Array | None = None,
    offered: Offered | None = None,
    strict: bool = True,
) -> Any:
    """Puts a matrix in the place of every array that a rule matches.

    The first rule whose pattern matches the whole path wins. Methods combine by paths: a rule for
    `.*/kernel` may make a low-rank matrix, and one for `.*/kernel/u` compress its factor. A rule
    may not match inside a matrix that it made.

    Args:
      params: tree of arrays and matrices.
      rules: (pattern, method, hyper-parameters) triples; the method "dense" changes nothing, which
        is how an early rule keeps a path from the later ones.
      key: for methods that draw random numbers; each path gets its own.
      offered: what the caller can tell a method about a path, e.g. the statistics of its inputs: a
        method takes what its `from_dense` declares, and the rule's own settings go before.
      strict: whether a rule that matches nothing is an error.

    Returns:
      The tree with matrices in place of arrays.

    Raises:
      ValueError: an argument is not of its kind, a rule matches nothing, or inside the matrix that
        it made, or names an unknown method or hyper-parameter, or the method refuses the array;
        the message names the path and the nearest legal choice.
      TypeError: the matched array is not floating.

    >>> import jax.numpy as jnp
    >>> params = {"up": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    >>> compress(params, [(".*/kernel", "low_rank", {"rank": 2})])["up"]["kernel"]
    LowRank(u=float32[8, 2], v=float32[2, 8])
    """
    check_inputs(params, rules, key, offered)
    for pattern, method, hyper in rules:
        _check_rule(pattern, method, hyper)
    rules = [(pattern, method, registry.plain(hyper)) for pattern, method, hyper in rules]
    walk = _Walk(rules, key, offered)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_matrix)
    # An array is let go as soon as it is replaced: a caller that keeps none needs no second copy.
    del params
    leaves.reverse()
    made = []
    while leaves:
        path, leaf = leaves.pop()
        made.append(walk.visit(path_str(path), leaf, {}))
        del leaf
    compressed = treedef.unflatten(made)
    if strict:
        walk.matcher.check_all_used()
    return compressed


def declares(method: str, argument: str) -> bool:
    """Whether a method's `from_dense` has an argument of this name.

    >>> declares("nm", "total_steps"), declares("low_rank", "total_steps")
    (True, False)
    """
    return argument in inspect.signature(registry.get("matrix", method).from_dense).parameters


def check_inputs(params: Any, rules: Any, key: Any, offered: Any) -> None:
    """Raises a ValueError if an argument of `compress` is not of the kind that it documents."""
    # By the module's name, since the core does not depend on Flax.
    held = jax.tree.leaves(params, is_leaf=_is_nnx)
    if found := next((x for x in held if _is_nnx(x)), None):
        raise ValueError(
            f"compress: params holds a {type(found).__name__} of flax.nnx, not arrays; nearest: "
            "nnx.to_pure_dict(state), of a model's state = nnx.state(model)"
        )
    kind = "a rule is (pattern, method, settings), e.g. ('.*/kernel', 'low_rank', {'rank': 4})"
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise ValueError(f"compress: rules={rules!r} must be a list of rules; {kind}")
    if len(rules) == 3 and isinstance(rules[0], str) and isinstance(rules[1], str):
        raise ValueError(f"compress: rules={rules!r} must be a list of rules; nearest: [{rules!r}]")
    for index, rule in enumerate(rules):
        owner = f"compress: rules[{index}]={rule!r}"
        if not isinstance(rule, tuple | list) or len(rule) not in (2, 3):
            raise ValueError(f"{owner} is no rule; {kind}")
        if not isinstance(rule[0], str) or not isinstance(rule[1], str):
            raise ValueError(f"{owner} is no rule: pattern and method are strings; {kind}")
        if len(rule) == 2 or not hasattr(rule[2], "keys"):
            nearest = (rule[0], rule[1], {})
            raise ValueError(f"{owner} has no dict of settings; {kind}; nearest: {nearest!r}")
    if key is not None:
        try:
            jax.eval_shape(jax.random.fold_in, key, 0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"compress: key={key!r} must be jax.random.key(...)") from error
    if offered is not None and not callable(offered):
        raise ValueError(
            f"compress: offered={offered!r} must be a function of the path; nearest: "
            "offered=lambda path: {...}"
        )


def _is_nnx(x: Any) -> bool:
    return any(kind.__module__.startswith("flax.nnx") for kind in type(x).__mro__)


def _check_rule(pattern: str, method: str, hyper: dict[str, Any]) -> None:
    from_dense = registry.get("matrix", method).from_dense
    owner = f"compress: rule {pattern!r}: method {method!r}"
    measured = {name for name in _MEASURED if declares(method, name)}
    for name in sorted(measured & set(hyper)):
        raise ValueError(
            f"{owner}: {name!r} is set by the program and not by a config; by {_MEASURED[name]}"
        )
    supplied = {"w", "key"} | measured
    registry.check_arguments(owner, from_dense, hyper, supplied=supplied)


class _Walk:
    """One pass over the tree: applies the rules to arrays, then to the factors of what it made."""

    def __init__(self, rules: Sequence[Rule], key: jax.Array | None, offered: Offered | None):
        self.rules = rules
        self.key = key
        self.offered = offered
        self.matcher = Matcher([pattern for pattern, _, _ in rules], owner="compress")

    def visit(self, path: str, leaf: Any, above: Mapping[int, str]) -> Any:
        """What stands at `path` in the end, inside what rules made at the paths `above`."""
        index = self.matcher(path)
        if index is not None:
            above = {**above, index: path}
            # What no method takes (a bias, a matrix) is refused as such: `_make` says how.
            if getattr(leaf, "ndim", 0) > 1 and (not is_matrix(leaf) or leaf.is_array):
                self._refuse_inside(path, index, above)
            leaf = self._make(path, leaf, *self.rules[index][1:])
        if is_matrix(leaf):
            factors = {n: self.visit(f"{path}/{n}", getattr(leaf, n), above) for n in leaf.factors}
            self._refuse_other_children(path, leaf)
            return replace(leaf, **factors) if factors else leaf
        return leaf

    def _refuse_inside(self, path: str, rule: int, made: Mapping[int, str]) -> None:
        """Refuses, before anything is computed, a rule that goes on inside a matrix that it made.

        It would match the factors of factors without end; nor is it what `.*` at the end means.
        """
        for child in registry.get("matrix", self.rules[rule][1]).axes:  # pyright: ignore
            below = f"{path}/{child}"
            index = self.matcher.first(below)
            if index is not None and index in made:
                whole = made[index]
                raise ValueError(
                    f"compress: rule {index} ({self.rules[index][0]!r}) makes a matrix of "
                    f"{whole!r} and matches {below!r} inside it, too; nearest: end the pattern "
                    f"with {whole[whole.rfind('/') :] if '/' in whole else whole!r}"
                )

    def _make(self, path: str, leaf: Any, method: str, hyper: dict[str, Any]) -> Matrix:
        if is_matrix(leaf) and leaf.is_array:
            leaf = leaf.to_dense()
        if is_matrix(leaf):
            raise ValueError(
                f"compress: {path!r} is already a {type(leaf).__name__}; match one of its factors "
                f"({', '.join(f'{path}/{n}' for n in leaf.factors) or 'it has none'}) or make it "
                "dense first (jaxlab.to_dense, or the phase 'densify')"
            )
        # crc32: a path's randomness must not depend on which other paths the rules match.
        key = None if self.key is None else jax.random.fold_in(self.key, zlib.crc32(path.encode()))
        told = self.offered(path) if self.offered else {}
        told = {name: value for name, value in told.items() if declares(method, name)}
        try:
            from_dense = registry.get("matrix", method).from_dense
            if isinstance(leaf, np.ndarray):
                leaf = jnp.asarray(leaf)  # in the dtype that products have, whatever the method
            return from_dense(leaf, key=key, **{**told, **hyper})
        except (ValueError, TypeError) as error:
            raise type(error)(f"compress: {path!r} {tuple(leaf.shape)}: {error}") from error

    def _refuse_other_children(self, path: str, leaf: Matrix) -> None:
        for child in leaf.axes:
            below = f"{path}/{child}"
            if child not in leaf.factors and self.matcher(below) is not None:
                raise ValueError(
                    f"compress: {below!r} cannot be compressed: {type(leaf).__name__} computes "
                    "with its entries; factors that may be matrices: "
                    f"{', '.join(leaf.factors) or 'none'}"
                )
