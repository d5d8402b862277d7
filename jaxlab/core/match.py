"""Paths of a parameter tree, and the one matcher behind every per-path setting.

Compress rules, freezing, weight decay, learning-rate groups and shardings all are lists of
(pattern, value): a pattern is a regular expression that must match a whole path, and the first
match wins.
"""

import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, TypeVar

import jax

from jaxlab.core.registry import suggest

T = TypeVar("T")


def path_str(key_path: Sequence[Any]) -> str:
    """A JAX key path as text: `blocks/0/mlp/up/kernel`."""
    return "/".join(str(_key(k)) for k in key_path)


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves of a tree by path, in tree order.

    >>> leaf_paths({"mlp": {"kernel": 1, "bias": 2}})
    {'mlp/bias': 2, 'mlp/kernel': 1}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_str(path): leaf for path, leaf in leaves}


def check_listed(owner: str, name: str, value: Any) -> None:
    """Raises a ValueError if one string stands where a sequence of them should.

    A string is a sequence, too, so that every letter of it would be taken for a path.
    """
    if isinstance(value, str):
        raise ValueError(f"{owner}: {name}={value!r} must be a list; nearest: [{value!r}]")


def owner_path(path: str, known: Container[str]) -> str | None:
    """The longest path in `known` that a path ends in: whose an optimizer's array is.

    >>> owner_path("0/mu/enc/up/kernel", {"up/kernel", "enc/up/kernel"})
    'enc/up/kernel'
    """
    parts = path.split("/")
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in known), None)


def first_match(
    rules: Sequence[tuple[str, T]], paths: Iterable[str], *, owner: str, strict: bool = True
) -> dict[str, T]:
    """The value of the first rule that matches each path.

    Args:
      rules: (pattern, value) pairs.
      paths: the paths to match; one that no rule matches is absent from the result.
      owner: how messages call the rules, e.g. "compress".
      strict: whether a rule that wins no path is an error.

    Returns:
      {path: value} for the matched paths.

    Raises:
      ValueError: a pattern is not a regular expression, or is the first match of no path.

    >>> first_match([(".*/bias", 0.0), (".*", 1.0)], ["up/bias", "up/kernel"], owner="decay")
    {'up/bias': 0.0, 'up/kernel': 1.0}
    """
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(
                f"{owner}: rules are (pattern, value) pairs, not {rule!r}; a single pair needs a "
                "tuple around it"
            )
    paths = list(paths)
    matcher = Matcher([pattern for pattern, _ in rules], owner=owner)
    found = {}
    for path in paths:
        index = matcher(path)
        if index is not None:
            found[path] = rules[index][1]
    if strict:
        matcher.check_all_used()
    return found


class Matcher:
    """First-match-wins over patterns, for walks that discover their paths as they go."""

    def __init__(self, patterns: Sequence[str], *, owner: str):
        self.owner = owner
        self.patterns = [self._compiled(p) for p in patterns]
        self.wins = [0] * len(patterns)
        self.taken: dict[int, str] = {}
        self.seen: list[str] = []

    def __call__(self, path: str) -> int | None:
        """Index of the first pattern that matches the whole path, or None."""
        self.seen.append(path)
        matching = self._matching(path)
        for later in matching[1:]:
            self.taken.setdefault(later, f"{path!r} (first matched by {self._show(matching[0])})")
        if not matching:
            return None
        self.wins[matching[0]] += 1
        return matching[0]

    def first(self, path: str) -> int | None:
        """What a call returns, for a path that may yet come: it counts as no use of the rule."""
        return next(iter(self._matching(path)), None)

    def check_all_used(self) -> None:
        """Raises a ValueError for the first pattern that won no path, with the nearest path."""
        for index, pattern in enumerate(self.patterns):
            if self.wins[index]:
                continue
            shown = self._show(index)
            if index in self.taken:
                raise ValueError(
                    f"{self.owner}: rule {shown} is never used: all it matches is taken before it, "
                    f"e.g. {self.taken[index]}; put it first"
                )
            plain = re.sub(r"[\\^$.*+?()\[\]{}|]+", "", pattern.pattern)
            raise ValueError(
                f"{self.owner}: pattern {shown} matches no path; patterns match whole paths. "
                f"{suggest(plain, self.seen, listed=False) or self._some_paths()}"
            )

    def _matching(self, path: str) -> list[int]:
        return [i for i, p in enumerate(self.patterns) if p.fullmatch(path)]

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{self.owner}: pattern {pattern!r} is not a regular expression: {error}"
            ) from None

    def _show(self, index: int) -> str:
        return repr(self.patterns[index].pattern)

    def _some_paths(self) -> str:
        if not self.seen:
            return "The tree has no arrays"
        shown = self.seen[:6] + ["..."] * (len(self.seen) > 6)
        return "Paths: " + ", ".join(shown)


def _key(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key
