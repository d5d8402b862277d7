"""Decoder checkpoints in the Llama layout of Hugging Face, read and written.

A folder holds `config.json` and one or several safetensors files. Linear layers are stored as
(out, in) there and as (in, out) here; the rotary pairs of a head are the same entries in both.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.core import registry
from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.matrix import Matrix, is_matrix
from jaxlab.interop.llama_config import decoder_section, llama_config
from jaxlab.interop.pretrained import (
    Pretrained,
    Tensors,
    read_config,
    read_tensors,
    write_tensors,
)

# Parameter here, tensor there.
_OUTER = {
    "embed/embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm/scale": "input_layernorm",
    "attn/q/kernel": "self_attn.q_proj",
    "attn/k/kernel": "self_attn.k_proj",
    "attn/v/kernel": "self_attn.v_proj",
    "attn/out/kernel": "self_attn.o_proj",
    "mlp_norm/scale": "post_attention_layernorm",
    "mlp/gate/kernel": "mlp.gate_proj",
    "mlp/up/kernel": "mlp.up_proj",
    "mlp/down/kernel": "mlp.down_proj",
}


# What of the section no shape shows. The length of a text is the user's choice.
_UNSEEN = ("name", "heads", "norm_eps", "rope_theta", "rope_scaling")


def load_llama(
    folder: str | os.PathLike, *, dtype: Any = None, scan_layers: bool = False
) -> tuple[dict[str, Any], Any]:
    """Reads a checkpoint: the `model` section of a config, and the parameters.

    Tensors are read one after the other, so that memory holds the parameters once, and copies of
    no more than one of them.

    Args:
      folder: of `config.json` and the weights.
      dtype: of the parameters; None keeps what is stored.
      scan_layers: whether the layers become one stack, for a decoder of that setting.

    Returns:
      The section, `vocab_size` and `seq_len` included, and nested dicts of arrays such as
      `Network(section).init` gives.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a setting is beyond the decoder, or a tensor is missing, left over, of another
        shape or not floating; the message names it.

    >>> import tempfile
    >>> section = {"name": "decoder", "vocab_size": 8, "seq_len": 4, "d_model": 4, "depth": 1}
    >>> section |= {"heads": 2, "d_mlp": 6}
    >>> model = registry.build("model", section, rngs=nnx.Rngs(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_llama(nnx.to_pure_dict(nnx.state(model)), f"{folder}/a", section)
    ...     loaded, params = load_llama(f"{folder}/a")
    >>> loaded["kv_heads"], params["layers"][0]["mlp"]["up"]["kernel"].shape
    (2, (4, 6))
    """
    section = {**decoder_section(read_config(folder)), "scan_layers": scan_layers}
    structure, places = _places(section)
    tensors = read_tensors(folder)
    _check_tensors(folder, tensors, places)

    def read(key_path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        return _read(tensors, places[path_str(key_path)], like.shape, dtype)

    return section, jax.tree_util.tree_map_with_path(read, structure)


@registry.register("checkpoint", "llama")
def load(folder: Path) -> Pretrained:
    """A published decoder, its parameters in float32, as models have them when training begins."""
    section, params = load_llama(folder, dtype=jnp.float32)
    told = {"rope_scaling": None, **section}
    return Pretrained({name: told[name] for name in _UNSEEN}, params)


def export_llama(
    params: Any,
    folder: str | os.PathLike,
    section: Mapping[str, Any],
    *,
    config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
    densify: bool = False,
) -> list[Path]:
    """Writes parameters as a checkpoint that other libraries read, whole or not at all.

    Args:
      params: of a decoder, each array written in its own dtype.
      folder: a new or empty one.
      section: the decoder's `model` section, with `vocab_size` and `seq_len`.
      config: further entries of `config.json`, such as the numbers of special tokens, or all of
        the original's: whatever the section decides is replaced.
      max_shard_bytes: files are no larger, unless one tensor is.
      densify: whether to write matrices as their dense arrays.

    Returns:
      The files with weights, in order.

    Raises:
      FileExistsError: there is something in the folder.
      ValueError: the parameters are not those of the section, or a matrix is among them and
        `densify` is off; the message names the path.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"export_llama: {folder} is not empty; name a new folder")
    structure, places = _places(section)
    leaves = leaf_paths(params, is_leaf=is_matrix)
    _check_params(leaves, leaf_paths(structure), densify=densify)
    d_mlp = next(x.shape[-1] for p, x in leaves.items() if p.endswith("mlp/up/kernel"))
    dtype = leaves["embed/embedding"].dtype
    settings = {**(config or {}), **llama_config(section, d_mlp=d_mlp, dtype=dtype)}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        files = write_tensors(temporary, _Export(leaves, places), shard_bytes=max_shard_bytes)
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return [folder / file.name for file in files]


class _Place(NamedTuple):
    """Where a parameter stands in a checkpoint: its tensors' names and shape."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool


def _places(section: Mapping[str, Any]) -> tuple[Any, dict[str, _Place]]:
    """The tree of a decoder's shapes, and the place of each path."""

    def init() -> Any:
        model = registry.build("model", section, rngs=nnx.Rngs(jax.random.key(0)))
        return nnx.to_pure_dict(nnx.state(model))

    structure = jax.eval_shape(init)
    return structure, {p: _place(p, x.shape) for p, x in leaf_paths(structure).items()}


def _place(path: str, shape: tuple[int, ...]) -> _Place:
    names, stacked = (_OUTER.get(path, ""),), False
    if path not in _OUTER:
        below = path.removeprefix("layers/")
        number, _, rest = below.partition("/")
        stacked = not number.isdigit()
        name = _IN_LAYER.get(below if stacked else rest)
        if name is None:
            raise ValueError(f"export_llama: section: the Llama layout has no parameter {path!r}")
        numbers = range(shape[0]) if stacked else (number,)
        names = tuple(f"model.layers.{n}.{name}.weight" for n in numbers)
        shape = shape[1:] if stacked else shape
    transposed = path.endswith("/kernel")
    return _Place(names, shape[::-1] if transposed else shape, stacked, transposed)


def _read(
    tensors: Mapping[str, np.ndarray], place: _Place, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    whole: np.ndarray | None = None
    for i, name in enumerate(place.names):
        tensor = tensors[name]
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"load_llama: {name!r} is {tensor.dtype} and not floating")
        if whole is None:
            whole = np.empty(shape, dtype or tensor.dtype)
        if dtype is None and tensor.dtype != whole.dtype:
            raise ValueError(
                f"load_llama: {name!r} is {tensor.dtype}, and {place.names[0]!r} of the same stack "
                f"{whole.dtype}; choose dtype"
            )
        whole[i if place.stacked else ...] = tensor.T if place.transposed else tensor
    loaded = jnp.asarray(whole)
    if whole is None or loaded.dtype != whole.dtype:
        raise ValueError(f"load_llama: {place.names[0]!r} needs jax_enable_x64, or choose dtype")
    return loaded


class _Export(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name, each made when it is asked for."""

    def __init__(self, leaves: Mapping[str, Any], places: Mapping[str, _Place]):
        self._leaves, self._places = leaves, places
        self._where = {n: (p, i) for p, place in places.items() for i, n in enumerate(place.names)}

    def __getitem__(self, name: str) -> np.ndarray:
        path, i = self._where[name]
        leaf, place = self._leaves[path], self._places[path]
        if place.stacked:
            # Every child of a matrix has the stack's axis, so that no other layer is made dense.
            leaf = jax.tree.map(lambda x: x[i], leaf)
        dense = np.asarray(leaf.to_dense() if isinstance(leaf, Matrix) else leaf)
        return dense.T if place.transposed else dense

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _check_tensors(folder: Any, tensors: Tensors, places: Mapping[str, _Place]) -> None:
    # Old files carry the rotary frequencies along, which follow from the config.
    found = {n: tensors.shape(n) for n in tensors if not n.endswith("rotary_emb.inv_freq")}
    embedding, head = _OUTER["embed/embedding"], _OUTER["head/kernel"]
    if "head/kernel" not in places and found.get(head) == found.get(embedding, ()):
        # Some writers store both names of what is one table.
        if not np.array_equal(tensors[head], tensors[embedding]):
            raise ValueError(
                f"load_llama: {folder} ties its embeddings (tie_word_embeddings in config.json), "
                f"and yet {head!r} differs from {embedding!r}; nearest: tie_word_embeddings=false"
            )
        del found[head]
    expected = {name: place.shape for place in places.values() for name in place.names}
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"load_llama: tensor {name!r} is {found.get(name, 'missing')} in {folder} and "
                f"{expected.get(name, 'nothing')} by its config.json"
            )


def _check_params(leaves: Mapping[str, Any], like: Mapping[str, Any], *, densify: bool) -> None:
    for path in sorted({*leaves, *like}):
        theirs, ours = (tuple(x[path].shape) if path in x else None for x in (leaves, like))
        if theirs != ours:
            raise ValueError(
                f"export_llama: {path!r} is {theirs or 'missing'} in params and "
                f"{ours or 'nothing'} by the section"
            )
        leaf = leaves[path]
        if isinstance(leaf, Matrix) and not (densify or leaf.is_array):
            raise ValueError(
                f"export_llama: {path!r} is a {type(leaf).__name__}, which the Llama layout cannot "
                "hold; densify=True writes its dense array, jaxlab.save the matrix itself"
            )
