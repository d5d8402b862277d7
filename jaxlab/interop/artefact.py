"""One file for a parameter tree: safetensors for the buffers, JSON for classes and static fields.

The JSON stands in the file's own metadata. Classes are found by their registered name, never by an
import path, and nothing is unpickled.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import registry
from jaxlab.core.matrix import Matrix

FORMAT = 1
_KEY = "jaxlab"


def save(path: str | os.PathLike, params: Any) -> int:
    """Writes a parameter tree to one safetensors file, whole or not at all.

    Args:
      path: the file to write; an older one is replaced only once the new one is complete.
      params: nested dicts, lists and tuples of arrays and matrices.

    Returns:
      The size of the file in bytes.

    Raises:
      TypeError: the tree holds something that the file cannot (int4, a form that lives in a step
        only); the message names its path. Or the arguments are in the wrong order.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(f"{folder}/a.safetensors", {"w": jnp.arange(3)})
    ...     load(f"{folder}/a.safetensors")
    {'w': Array([0, 1, 2], dtype=int32)}
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save: path is a {type(path).__name__}; nearest: save(path, params)")
    tensors: dict[str, np.ndarray] = {}
    tree = _encode(params, "", tensors)
    header = {"format": FORMAT, "tree": tree, "sha256": _digest(tree, tensors)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # Straight to the file: the whole of it in memory would be another copy of the tree.
        save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})
        os.fsync(descriptor)
        make_readable(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        Path(temporary).unlink(missing_ok=True)
        dtypes = {name: tensor.dtype.name for name, tensor in tensors.items()}
        named = next((name for name, dtype in dtypes.items() if f'"{dtype}"' in str(error)), None)
        raise TypeError(f"save: {named!r}: {error}") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return path.stat().st_size


def make_readable(path: str | os.PathLike) -> None:
    """Gives a temporary file, which only its owner reads, the permissions of any other file."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def load(path: str | os.PathLike) -> Any:
    """Reads a parameter tree that `save` wrote: same classes, static fields and bits.

    Args:
      path: the file.

    Returns:
      The tree, with `jax.Array` leaves.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, foreign, tampered with, of a newer format, or needs a
        method that is not registered here; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no file {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"load: {path} is truncated or no safetensors file: {error}") from None
    if _KEY not in metadata:
        raise ValueError(f"load: {path} is foreign: jaxlab.save writes metadata {_KEY!r}")
    try:
        header = json.loads(metadata[_KEY])
        number, tree, digest = header["format"], header["tree"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"load: {path} was tampered with: broken metadata, {error!r}") from None
    if number != FORMAT:
        raise ValueError(f"load: {path} has format {number}; this version reads format {FORMAT}")
    if digest != _digest(tree, tensors):
        raise ValueError(f"load: {path} was tampered with: its contents do not match their sha256")
    try:
        return _decode(tree, tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"load: {path} does not fit this version's classes: {error}") from None


def _encode(node: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """The JSON form of a tree; buffers go to `tensors` by path."""
    below = f"{path}/" if path else ""
    if node is None:
        return None
    if isinstance(node, Matrix):
        fields = dataclasses.fields(node)  # pyright: ignore
        static = [f.name for f in fields if f.metadata.get("static")]
        fixed = {name: _encode_static(getattr(node, name)) for name in static}
        children = {
            f.name: _encode(getattr(node, f.name), below + f.name, tensors)
            for f in fields
            if f.name not in fixed
        }
        if type(node).name not in registry.names("matrix"):
            raise TypeError(
                f"save: {path!r} is a {type(node).__name__}, which is not registered; nearest, for "
                "what jaxlab.at or an observer returned: the parameters that it was given"
            )
        return {"matrix": type(node).name, "static": fixed, "children": children}
    if isinstance(node, dict):
        # Pairs, because JSON would turn integer keys into strings.
        return {
            "dict": [[_key(k, path), _encode(v, f"{below}{k}", tensors)] for k, v in node.items()]
        }
    if type(node) in (list, tuple):
        items = [_encode(v, f"{below}{i}", tensors) for i, v in enumerate(node)]
        return {type(node).__name__: items}
    if isinstance(node, jax.Array | np.ndarray) and not jnp.issubdtype(
        node.dtype, jax.dtypes.prng_key
    ):
        if path in tensors:
            raise TypeError(f"save: two leaves have the path {path!r}; rename a key")
        array = np.ascontiguousarray(jax.device_get(node)).reshape(node.shape)
        if array.dtype.itemsize == 1 and jnp.issubdtype(array.dtype, jnp.floating):
            # A reader of NumPy arrays does not know the types of 8 bits: they are stored as bytes.
            tensors[path] = array.view(np.uint8)
            return {"array": path, "dtype": array.dtype.name}
        tensors[path] = array
        return {"array": path}
    nearest = "; nearest: a dict, as flax.core.unfreeze makes it" * isinstance(node, Mapping)
    raise TypeError(
        f"save: {path!r} is a {type(node).__name__} and not an array or a matrix{nearest}"
    )


def _key(key: Any, path: str) -> Any:
    key = key.item() if isinstance(key, np.generic) else key
    if key is not None and not isinstance(key, str | int | float):
        raise TypeError(
            f"save: the key {key!r} in {path!r} must be a string or a number; nearest, for keys "
            "that are paths: flax.traverse_util.unflatten_dict(params)"
        )
    return key


def _decode(node: Any, tensors: dict[str, np.ndarray]) -> Any:
    if node is None:
        return None
    ((kind, value), *rest) = node.items()
    if kind == "matrix":
        cls: Any = registry.get("matrix", value)
        fields = dict(rest)
        children = {name: _decode(child, tensors) for name, child in fields["children"].items()}
        return cls(**children, **_decode_static(cls, fields["static"]))
    if kind == "dict":
        return {key: _decode(child, tensors) for key, child in value}
    if kind in ("list", "tuple"):
        items = [_decode(child, tensors) for child in value]
        return items if kind == "list" else tuple(items)
    stored = tensors[value]
    if rest:
        stored = stored.view(jnp.dtype(dict(rest)["dtype"]))
    loaded = jnp.asarray(stored)
    if loaded.dtype != stored.dtype:
        raise ValueError(
            f"{value!r} is {stored.dtype}, which needs jax_enable_x64; nothing was cast"
        )
    return loaded


def _encode_static(value: Any) -> Any:
    """A static field as JSON: plain values, tuples of them, and dataclasses of both."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode_static(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_encode_static(v) for v in value]
    return value


def _decode_static(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a class; which dataclass a field is, its annotation says and not the file."""
    hints = typing.get_type_hints(cls)
    return {name: _decode_value(hints.get(name), value) for name, value in values.items()}


def _decode_value(hint: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return hint(**_decode_static(hint, value))
    if isinstance(value, list):
        # JSON has no tuples, and a static field must be hashable.
        inner = [a for a in typing.get_args(hint) if a is not ...]
        hints = inner if len(inner) == len(value) else inner[:1] * len(value) or [None] * len(value)
        return tuple(_decode_value(h, v) for h, v in zip(hints, value, strict=True))
    return value


def _digest(tree: Any, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        # As bytes where they lie: bfloat16 has no buffer of its own kind.
        digest.update(tensors[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
