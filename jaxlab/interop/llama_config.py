"""`config.json` of a Llama checkpoint, to and from the `model` section of the same decoder."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxlab.core import registry
from jaxlab.models.rotary import RopeScaling

# Setting there, argument of the decoder here.
_SETTINGS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "seq_len",
    "hidden_size": "d_model",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "d_mlp",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
# What their reader takes where `config.json` is silent.
_SILENT = {
    "max_position_embeddings": 2048,
    "num_key_value_heads": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
# What the decoder has no choice in.
_FIXED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}
# Kinds of rotary positions, and the numbers that each needs.
_ROPE = {
    "default": (),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def decoder_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section of the decoder that a `config.json` describes.

    Args:
      config: what the file holds; entries that change nothing here (special tokens) are ignored.

    Raises:
      ValueError: an entry is missing, or says something that the decoder does not have.

    >>> config = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 6}
    >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "rope_theta": 5e5}
    >>> section = decoder_section(config)
    >>> section["d_model"], section["rope_theta"], section["norm_eps"]
    (4, 500000.0, 1e-06)
    """
    for key, only in {**_FIXED, "quantization_config": None}.items():
        if config.get(key, only) != only:
            raise ValueError(
                f"load_llama: config.json has {key}={config[key]!r}; the decoder has {only!r} only"
            )
    config = {**_SILENT, **config}
    for key in _SETTINGS:
        if key not in config:
            raise ValueError(f"load_llama: config.json has no {key!r}")
    section = {ours: config[key] for key, ours in _SETTINGS.items()}
    d_head = section["d_model"] / section["heads"]
    if (config.get("head_dim") or d_head) != d_head:
        raise ValueError(
            f"load_llama: config.json has head_dim={config['head_dim']}; the decoder has "
            f"hidden_size / num_attention_heads = {d_head:g} only"
        )
    return {"name": "decoder", **section, **_rope_arguments(config)}


def llama_config(section: Mapping[str, Any], *, d_mlp: int, dtype: Any) -> dict[str, Any]:
    """The `config.json` of a decoder: the inverse of `decoder_section`.

    Args:
      section: the decoder's `model` section, with `vocab_size` and `seq_len`.
      d_mlp: hidden width of the feed-forward layers, which a section may leave open.
      dtype: of the parameters.

    >>> section = {"name": "decoder", "vocab_size": 8, "seq_len": 4, "heads": 2}
    >>> config = llama_config(section, d_mlp=6, dtype="float32")
    >>> config["num_key_value_heads"], config["rope_theta"]
    (2, 10000.0)
    """
    name, given = registry.split_section("model", section)
    declared = inspect.signature(registry.get("model", name)).parameters
    arguments = {k: p.default for k, p in declared.items() if p.default is not p.empty}
    arguments |= {**given, "d_mlp": d_mlp}
    arguments["kv_heads"] = arguments["kv_heads"] or arguments["heads"]
    scaling = arguments["rope_scaling"]
    if scaling is not None:
        scaling = {"rope_type": "llama3", **dataclasses.asdict(RopeScaling(**scaling))}
    theta = float(arguments["rope_theta"])
    dtype = jnp.dtype(dtype).name
    return {
        "architectures": ["LlamaForCausalLM"],
        **_FIXED,
        **{key: arguments[ours] for key, ours in _SETTINGS.items()},
        "head_dim": arguments["d_model"] // arguments["heads"],
        # Rotary settings and the dtype have moved: readers from before and after find theirs.
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def _rope_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's rotary arguments, from the older or the newer way to write them."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
    older = rope.pop("type", "default")
    kind = rope.pop("rope_type", older)
    if kind not in _ROPE:
        raise ValueError(
            f"load_llama: config.json has rope_type={kind!r}; {registry.suggest(kind, _ROPE)}"
        )
    if wrong := sorted({*rope} ^ {*_ROPE[kind]}):
        raise ValueError(
            f"load_llama: config.json has {wrong[0]}={rope.get(wrong[0])!r} with "
            f"rope_type={kind!r}, which needs: {', '.join(_ROPE[kind]) or 'nothing'}"
        )
    return {"rope_theta": theta, **({"rope_scaling": rope} if rope else {})}
