"""Checkpoints as others publish them: a folder of safetensors and a `config.json`.

The `model_type` of `config.json` names who reads the folder. A reader registers itself as
`@register("checkpoint", model_type)`: a function of the folder that returns a `Pretrained`, and
whose errors name the tensor.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import registry
from jaxlab.interop.artefact import make_readable

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Pretrained(NamedTuple):
    """What a published checkpoint holds.

    Attributes:
      section: of a config's `model` section, the name of the model and the settings that no shape
        of a parameter shows, such as the number of heads.
      params: nested dicts of arrays, as that model has them.
    """

    section: dict[str, Any]
    params: Any


def load_pretrained(folder: str | os.PathLike) -> Pretrained:
    """A published checkpoint, in this library's layout.

    Args:
      folder: of `config.json` and the weights.

    Returns:
      What decides its outputs: settings and parameters.

    Raises:
      FileNotFoundError: the folder, `config.json` or the weights are missing.
      ValueError: nobody here reads the `model_type`, or a tensor is missing or of another shape.
    """
    folder = Path(folder)
    model_type = read_config(folder).get("model_type")
    known = registry.names("checkpoint")
    if model_type not in known:
        raise ValueError(
            f"load_pretrained: {folder} is of model_type={model_type!r}; "
            f"{registry.suggest(str(model_type), known)}"
        )
    return registry.get("checkpoint", str(model_type))(folder)


def is_published(folder: str | os.PathLike) -> bool:
    """Whether a folder is a published checkpoint: its `config.json` has a `model_type`.

    The `config.json` of a run folder never has one.
    """
    return (Path(folder) / "config.json").is_file() and "model_type" in read_config(folder)


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The contents of a checkpoint's `config.json`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not a JSON object.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"read_config: there is no file {file}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"read_config: {file} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"read_config: {file} holds a {type(config).__name__} and no settings")
    return config


def stack_layers(params: Mapping[str, Any], *, key: str = "layers") -> dict[str, Any]:
    """Puts numbered layers on top of one another, as a model with `scan_layers` has them.

    Args:
      params: `params[key]` is a dict by layer number, of trees of one structure; a stack stays.
      key: where the layers are.

    Returns:
      The tree with `params[key]` one layer whose arrays have a first axis over the depth.

    Raises:
      ValueError: the layers differ in structure or shape: matrices of several ranks, for instance.

    >>> stack_layers({"layers": {0: {"w": jnp.ones(2)}, 1: {"w": jnp.zeros(2)}}})["layers"]["w"]
    Array([[1., 1.],
           [0., 0.]], dtype=float32)
    """
    layers = params[key]
    if not is_numbered(layers):
        return dict(params)
    ordered = [layers[i] for i in sorted(layers, key=int)]
    try:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ordered)
    except (ValueError, TypeError) as error:
        raise ValueError(f"stack_layers: the trees in {key!r} differ: {error}") from None
    return {**params, key: stacked}


def unstack_layers(params: Mapping[str, Any], *, key: str = "layers") -> dict[str, Any]:
    """The inverse of `stack_layers`; layers that are numbered stay.

    >>> list(unstack_layers({"layers": {"w": jnp.ones((3, 2))}})["layers"])
    [0, 1, 2]
    """
    if is_numbered(params[key]):
        return dict(params)
    depth = jax.tree.leaves(params[key])[0].shape[0]
    layers = {i: jax.tree.map(lambda x, i=i: x[i], params[key]) for i in range(depth)}
    return {**params, key: layers}


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one or several safetensors files, each read when it is asked for.

    Nothing is kept: two look-ups read twice, and memory holds what the caller holds. bfloat16
    arrives as the NumPy type of that name.
    """

    def __init__(self, files: Mapping[str, Path]):
        """`files` says by tensor which file it is in; every file must hold what is said of it."""
        from safetensors import SafetensorError, safe_open

        self._handles: dict[Path, Any] = {}
        for file in sorted({*files.values()}):
            if not file.is_file():
                raise FileNotFoundError(f"read_tensors: there is no file {file}")
            try:
                self._handles[file] = safe_open(file, framework="np")
            except SafetensorError as error:
                raise ValueError(
                    f"read_tensors: {file} is truncated or no safetensors file: {error}"
                ) from None
        held = {file: set(handle.keys()) for file, handle in self._handles.items()}
        for name, file in files.items():
            if name not in held[file]:
                raise ValueError(f"read_tensors: {file} has no {name!r}, which the index expects")
        self._files = dict(sorted(files.items()))

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one tensor; the array is the caller's own."""
        return self._handles[self._files[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """The names, sorted."""
        return iter(self._files)

    def __len__(self) -> int:
        """The number of tensors."""
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the file's header: nothing else is read."""
        return tuple(self._handles[self._files[name]].get_slice(name).get_shape())


def read_tensors(folder: str | os.PathLike) -> Tensors:
    """The tensors of a folder (or of one file), in one safetensors file or in indexed shards.

    Args:
      folder: with `model.safetensors`, or `model.safetensors.index.json` and its shards; or the
        path of one safetensors file.

    Returns:
      A mapping from the name to a NumPy array, which is read at the look-up.

    Raises:
      FileNotFoundError: there are no weights, or a shard is missing.
      ValueError: a file is truncated, or the index does not fit.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_tensors(folder, {"b": np.ones(2), "a": np.zeros((2, 3))})
    ...     tensors = read_tensors(folder)
    ...     list(tensors), tensors.shape("a"), tensors["b"].tolist()
    (['a', 'b'], (2, 3), [1.0, 1.0])
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    index = folder / _INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {name: folder / Path(file).name for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"read_tensors: {index} is no index of shards: {error!r}") from None
        return Tensors(files)
    file = folder / _FILE if folder.is_dir() else folder
    if not file.is_file():
        raise FileNotFoundError(f"read_tensors: {folder} has no {_FILE} and no {_INDEX}")
    try:
        with safe_open(file, framework="np") as handle:
            names = list(handle.keys())
    except SafetensorError as error:
        raise ValueError(
            f"read_tensors: {file} is truncated or no safetensors file: {error}"
        ) from None
    return Tensors(dict.fromkeys(names, file))


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], *, shard_bytes: int = 5 * 10**9
) -> list[Path]:
    """Writes tensors as others read them, each file whole or not at all.

    Args:
      path: a `*.safetensors` file; or a folder, which gets one file or, above `shard_bytes`,
        indexed shards. One shard after the other is looked up in `tensors`, so a lazy mapping
        never holds more than one.
      tensors: arrays by name.
      shard_bytes: a shard of a folder is no larger, unless one tensor is.

    Returns:
      The files with tensors, in order.

    Raises:
      ValueError: there is no tensor, or `shard_bytes` is not positive.
    """
    if not tensors:
        raise ValueError("write_tensors: tensors is empty; nearest: one array")
    if shard_bytes < 1:
        raise ValueError(f"write_tensors: shard_bytes={shard_bytes} must be positive; nearest: 1")
    path = Path(path)
    if path.suffix == ".safetensors":
        _write(path, {name: tensors[name] for name in tensors})
        return [path]
    shards: list[list[str]] = [[]]
    sizes, held = {name: _nbytes(tensors[name]) for name in tensors}, 0
    for name, size in sizes.items():
        if shards[-1] and held + size > shard_bytes:
            shards, held = [*shards, []], 0
        shards[-1].append(name)
        held += size
    files = [path / _FILE]
    if len(shards) > 1:
        stem, count = Path(_FILE).stem, len(shards)
        files = [path / f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    index = path / _INDEX
    # What an earlier export left there would win over, or contradict, the new files.
    older = {index, path / _FILE, *path.glob(f"{Path(_FILE).stem}-*-of-*.safetensors")}
    for file, names in zip(files, shards, strict=True):
        _write(file, {name: tensors[name] for name in names})
    for stale in older.difference(files):
        stale.unlink(missing_ok=True)
    if len(files) > 1:
        weight_map = {
            n: file.name for file, names in zip(files, shards, strict=True) for n in names
        }
        content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        whole = path / f".{index.name}"
        whole.write_text(json.dumps(content, indent=2), encoding="utf-8")
        os.replace(whole, index)
    return files


def is_numbered(layers: Mapping[Any, Any]) -> bool:
    """Whether layers are a dict by number, and not one stack."""
    return all(str(name).isdigit() for name in layers)


def _nbytes(x: Any) -> int:
    return int(x.size) * np.dtype(x.dtype).itemsize


def _write(file: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    # reshape: ascontiguousarray makes a vector of a scalar.
    arrays = {k: np.ascontiguousarray(x).reshape(np.shape(x)) for k, x in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        # "pt" is what readers of public checkpoints insist on.
        save_file(arrays, str(Path(folder) / file.name), metadata={"format": "pt"})
        make_readable(Path(folder) / file.name)
        os.replace(Path(folder) / file.name, file)
