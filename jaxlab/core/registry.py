"""Names to constructors: how configs, rules and the command line find their parts.

A part registers itself where it is defined, `build` checks a config section against the
constructor's signature, and nothing else in the codebase mentions the part's name:

    >>> from jaxlab.core import registry
    >>> @registry.register("schedule", "doctest_ramp")
    ... def ramp(*, slope: float = 1.0):
    ...     return lambda step: slope * step
    >>> registry.build("schedule", {"name": "doctest_ramp", "slope": 2.0})(3)
    6.0
    >>> registry.build("schedule", {"name": "doctest_ramp", "slop": 2.0})
    Traceback (most recent call last):
    ...
    ValueError: schedule 'doctest_ramp' takes no 'slop'; did you mean 'slope'? ...
"""

import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

# Where the parts of each kind live. Every module of a package is imported when its kind is first
# looked up, so that adding a part means adding a file.
_HOMES = {
    "matrix": "jaxlab.methods",
    "model": "jaxlab.models",
    "data": "jaxlab.data",
    "task": "jaxlab.tasks",
    "optimizer": "jaxlab.optim",
    "schedule": "jaxlab.training.schedules",
    "phase": "jaxlab.training.phases",
    "problem": "jaxlab.gp.pde_problems",
    "checkpoint": "jaxlab.interop",
}
_PARTS: dict[str, dict[str, Callable]] = {kind: {} for kind in _HOMES}
_imported: set[str] = set()


def register(kind: str, name: str) -> Callable:
    """Decorator that files a constructor (function or class) under `kind` and `name`.

    Raises:
      ValueError: the kind is unknown, or the name is taken by another constructor.
    """
    if kind not in _PARTS:
        raise ValueError(f"register: kind={kind!r} is unknown; {suggest(kind, _PARTS)}")

    def add(part):
        known = _PARTS[kind].get(name)
        # A module that is imported twice (a reload, a notebook cell run again) replaces itself.
        if known is not None and _origin(known) != _origin(part):
            raise ValueError(f"register: {kind} {name!r} is already {_origin(known)}")
        _PARTS[kind][name] = part
        return part

    return add


def names(kind: str) -> list[str]:
    """Sorted names of every registered part of a kind."""
    _import_home(kind)
    return sorted(_PARTS[kind])


def get(kind: str, name: str) -> Callable:
    """The constructor registered under `name`.

    Raises:
      ValueError: no such name; the message lists the valid ones and the closest.
    """
    _import_home(kind)
    if name not in _PARTS[kind]:
        raise ValueError(f"{kind} {name!r} is not registered; {suggest(name, _PARTS[kind])}")
    return _PARTS[kind][name]


def build(
    kind: str,
    section: Mapping[str, Any],
    *,
    offered: Mapping[str, Any] | None = None,
    **context: Any,
) -> Any:
    """Calls the constructor that `section["name"]` names with the rest of the section.

    Args:
      kind: what sort of part, e.g. "model".
      section: the config section; keys other than "name" become keyword arguments.
      offered: arguments that the caller can supply: the constructor gets those it declares.
      **context: arguments that the caller supplies and a config may not set.

    Returns:
      What the constructor returns.

    Raises:
      ValueError: the name, a key, or a value does not fit the constructor's signature.
    """
    name, arguments = split_section(kind, section)
    arguments = plain(arguments)
    constructor = get(kind, name)
    declared = inspect.signature(constructor).parameters
    context |= {k: v for k, v in (offered or {}).items() if k in declared}
    check_arguments(f"{kind} {name!r}", constructor, arguments, supplied=context)
    return constructor(**context, **arguments)


def split_section(kind: str, section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Splits a config section into its part's name and the part's arguments."""
    arguments = dict(section.items())
    if not isinstance(arguments.get("name"), str):
        raise ValueError(
            f"the {kind} section {arguments} has no 'name'; {suggest('', names(kind))}"
        )
    return arguments.pop("name"), arguments


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with NumPy's scalars as Python's, which static fields and JSON can hold.

    >>> import numpy as np
    >>> plain({"rank": np.int64(4)})
    {'rank': 4}
    """
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in arguments.items()}


def check_arguments(
    owner: str,
    function: Callable,
    arguments: Mapping[str, Any],
    *,
    supplied: Iterable[str] = (),
) -> None:
    """Checks keyword arguments against a signature, before anything is called.

    Args:
      owner: how messages call the function, e.g. "optimizer 'adamw'".
      function: the function whose signature rules.
      arguments: what the user gave.
      supplied: names that the caller passes by itself.

    Raises:
      ValueError: an argument is unknown (the message names the closest), set by the caller,
        missing, or of a type that the annotation excludes.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters, supplied = signature.parameters, set(supplied)
    settable = [p for name, p in parameters.items() if name not in supplied]
    shown = str(signature.replace(parameters=settable, return_annotation=signature.empty))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    legal = {
        n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    for name in sorted(supplied - legal):
        if not takes_any:
            raise ValueError(
                f"{owner} cannot be used here: it takes no {name!r}. Signature: {shown}"
            )
    for name, value in plain(arguments).items():
        if name in supplied:
            raise ValueError(f"{owner}: {name!r} is set by the program and not by a config")
        if name not in legal:
            if takes_any:
                continue
            raise ValueError(
                f"{owner} takes no {name!r}; {suggest(name, legal - supplied)}. Signature: {shown}"
            )
        expected = parameters[name].annotation
        if not _fits(value, expected):
            if choices := _choices(expected):
                raise ValueError(
                    f"{owner}: {name}={value!r} is not known; {suggest(value, choices)}. "
                    f"Signature: {shown}"
                )
            label = getattr(expected, "__name__", None) or str(expected)
            if isinstance(expected, types.UnionType) or typing.get_origin(expected):
                label = str(expected)
            raise ValueError(f"{owner}: {name}={value!r} is not {label}. Signature: {shown}")
    for name in sorted(legal - supplied - set(arguments)):
        if parameters[name].default is inspect.Parameter.empty:
            raise ValueError(f"{owner} needs {name!r}. Signature: {shown}")


def suggest(name: str, valid: Iterable[str], *, listed: bool = True) -> str:
    """The tail of an error message: the closest valid choice, and (if `listed`) all of them."""
    valid = sorted(str(v) for v in valid)
    close = difflib.get_close_matches(str(name), valid, 1, 0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if listed:
        return hint + "valid: " + (", ".join(valid) or "none")
    return hint


def _origin(part: Callable) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _import_home(kind: str) -> None:
    if kind not in _HOMES:
        raise ValueError(f"kind={kind!r} is unknown; {suggest(kind, _HOMES)}")
    if kind in _imported:
        return
    home = importlib.import_module(_HOMES[kind])
    for module in pkgutil.iter_modules(getattr(home, "__path__", ())):
        importlib.import_module(f"{home.__name__}.{module.name}")
    _imported.add(kind)


def _choices(annotation: Any) -> list[str]:
    """What an annotation with a Literal allows: its values, and the names of other types."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    parts = typing.get_args(annotation) if union else (annotation,)
    if not any(typing.get_origin(part) is typing.Literal for part in parts):
        return []
    found = []
    for part in parts:
        if typing.get_origin(part) is typing.Literal:
            found += [str(value) for value in typing.get_args(part)]
        else:
            found.append("None" if part is type(None) else getattr(part, "__name__", str(part)))
    return found


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a config value fits an annotation; annotations that a config cannot express pass."""
    if annotation in (inspect.Parameter.empty, Any):
        return True
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if tuple in (annotation, origin):
        return isinstance(value, (tuple, list))
    if isinstance(origin or annotation, type) and issubclass(origin or annotation, Mapping):
        return isinstance(value, Mapping)
    return True
