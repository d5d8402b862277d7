"""Phases: the only thing that changes the structure of the parameters during a run.

A phase's transform maps (params, optimizer state) to new ones outside jit; the step is compiled
once for each structure. Returning None for the optimizer state keeps what still fits.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlab.core import compress as core_compress
from jaxlab.core import registry
from jaxlab.core.match import first_match, leaf_paths, path_str
from jaxlab.core.matrix import is_matrix, to_dense

# (params, optimizer state, key) -> (params, optimizer state or None)
Transform = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


class Phase(NamedTuple):
    """A transform and the step before which it is applied."""

    label: str
    step: int
    transform: Transform


@registry.register("phase", "compress")
def compress(*, rules: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Transform:
    """Applies compress rules, (pattern, method, hyper-parameters), to the parameters."""
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 3:
            raise ValueError(
                f"compress: rules are (pattern, method, hyper-parameters), not {rule!r}; a single "
                "rule needs a tuple around it"
            )
    rules = [(pattern, method, dict(hyper)) for pattern, method, hyper in rules]

    def transform(params, opt, key):
        return core_compress.compress(params, rules, key=key), None

    return transform


@registry.register("phase", "densify")
def densify(*, path: str = ".*") -> Transform:
    """Puts the dense array in the place of every matrix whose whole path matches."""

    def transform(params, opt, key):
        matrices = [p for p, w in leaf_paths(params, is_leaf=is_matrix).items() if is_matrix(w)]
        chosen = first_match([(path, True)], matrices, owner="densify")
        dense = jax.tree_util.tree_map_with_path(
            lambda p, w: to_dense(w) if path_str(p) in chosen else w, params, is_leaf=is_matrix
        )
        return dense, None

    return transform


def make_phases(config: Mapping[str, Any]) -> list[Phase]:
    """The phases of a run in order, the `compress` section of the config first among equals.

    Args:
      config: with `compress`, `compress_at`, `phases` and `steps`.

    Raises:
      ValueError: a section is wrong, or a fraction is not in [0, 1].
    """
    sections = [(label, dict(section)) for label, section in config["phases"].items()]
    if config["compress"]:
        rules = [_rule(label, section) for label, section in config["compress"].items()]
        first = {"at": config["compress_at"], "name": "compress", "rules": rules}
        sections.insert(0, ("compress", first))
    phases = []
    for label, section in sections:
        arguments = dict(section)
        at = arguments.pop("at", None)
        if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at <= 1:
            raise ValueError(
                f"phases: {label}.at={at!r} must be a fraction of the steps, in [0, 1]"
            )
        transform = registry.build("phase", arguments)
        phases.append(Phase(label, round(at * config["steps"]), transform))
    return sorted(phases, key=lambda phase: phase.step)


def _rule(label: str, section: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(section, Mapping):
        raise ValueError(f"compress: rule {label!r} is {section!r} and not a section of settings")
    hyper = dict(section)
    for key in ("path", "name"):
        if not isinstance(hyper.get(key), str):
            raise ValueError(f"compress: rule {label!r} {hyper} needs {key!r}, a string")
    return hyper.pop("path"), hyper.pop("name"), hyper
