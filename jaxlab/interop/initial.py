"""Parameters to start from: of an artefact, of a run, or of a published checkpoint."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.core import registry
from jaxlab.core.match import leaf_paths
from jaxlab.core.matrix import is_matrix
from jaxlab.interop.artefact import load
from jaxlab.interop.pretrained import is_numbered, is_published, load_pretrained, stack_layers


def load_init(path: str, like: Any, *, section: Mapping[str, Any] | None = None) -> Any:
    """Parameters of an artefact, a run folder or a published checkpoint, checked by the model's.

    Args:
      path: the artefact, a run folder, or a folder whose `config.json` has a `model_type`. Layers
        that a published checkpoint numbers are stacked if the model scans its layers.
      like: the model's parameters, or their shapes.
      section: the config's `model` section, compared with what a published checkpoint says of
        heads, positions and all else that no shape shows; None compares nothing.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is broken, a setting of the model is another, or a parameter is missing,
        extra or of another shape.
    """
    file = Path(path)
    if is_published(file):
        theirs, params = load_pretrained(file)
        if section is not None:
            _check_section(path, theirs, section)
        if "layers" in like and not is_numbered(like["layers"]):
            params = stack_layers(params)
    else:
        params = load(file / "model.safetensors" if file.is_dir() else file)
    theirs = {p: tuple(x.shape) for p, x in leaf_paths(params, is_leaf=is_matrix).items()}
    ours = {p: tuple(x.shape) for p, x in leaf_paths(like).items()}
    wrong = [p for p in sorted({*theirs, *ours}) if theirs.get(p) != ours.get(p)]
    if wrong:
        p = wrong[0]
        raise ValueError(
            f"init={path!r} does not fit the model: {p!r} is {theirs.get(p, 'missing')} in the "
            f"file and {ours.get(p, 'missing')} in the model ({len(wrong)} paths differ)"
        )
    return params


def _check_section(path: str, theirs: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raises unless a model computes what the checkpoint's own would."""
    declared = inspect.signature(registry.get("model", section["name"])).parameters
    ours = {name: p.default for name, p in declared.items()} | dict(section)
    for name, value in theirs.items():
        if ours.get(name) != value:
            raise ValueError(
                f"init={path!r} does not fit the model: model.{name}={ours.get(name)!r}, and "
                f"{value!r} in the checkpoint's config.json; no parameter would show it"
            )
