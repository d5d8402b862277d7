"""Llama checkpoints: the reference's logits, bits there and back, refusals by name.

What the stored folders are and where their logits come from, `data/llama_reference.md` says.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxlab
from jaxlab.config import base_config
from jaxlab.core.match import leaf_paths
from jaxlab.interop import llama
from jaxlab.interop.llama import export_llama, load_llama
from jaxlab.interop.llama_config import decoder_section
from jaxlab.tasks.base import Network
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

DATA = Path(__file__).parent / "data"
TINY, TIED = DATA / "llama_tiny", DATA / "llama_tied"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def logits(section, params):
    return jax.jit(Network(section).apply)(params, jnp.asarray(np.load(DATA / "tokens.npy")))


def drawn(section):
    """Parameters of a section, drawn without compiling what draws them."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(Network(section).init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), like)


def copy_with(folder, source, **changes):
    """A stored checkpoint with other settings; None takes an entry away."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_bits(a, b):
    a, b = leaf_paths(a), leaf_paths(b)
    assert list(a) == list(b)
    for path, x in a.items():
        assert x.dtype == b[path].dtype, path
        assert np.asarray(x).tobytes() == np.asarray(b[path]).tobytes(), path


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logits_are_those_of_the_reference(scan_layers):
    section, params = load_llama(TINY, scan_layers=scan_layers)
    expected = np.load(TINY / "logits.npy")
    np.testing.assert_allclose(logits(section, params), expected, rtol=0, atol=1e-5)
    like = jax.eval_shape(Network(section).init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(like)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)


@pytest.mark.parametrize("written", ["as stored", "newer", "older"])
def test_tied_bfloat16_shards_and_stretched_positions(tmp_path, written):
    changes, name = {
        "as stored": ({}, "logits.npy"),
        "newer": ({"rope_parameters": {**LLAMA3, "rope_theta": 10000.0}}, "logits_llama3.npy"),
        "older": (
            {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": LLAMA3},
            "logits_llama3.npy",
        ),
    }[written]
    section, params = load_llama(copy_with(tmp_path / "a", TIED, **changes), dtype=jnp.float32)
    assert section["tie_embeddings"]
    assert "head" not in params
    expected = np.load(TIED / name)
    np.testing.assert_allclose(logits(section, params), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("source", [TINY, TIED], ids=lambda p: p.name)
def test_bits_there_and_back(tmp_path, source, scan_layers):
    section, params = load_llama(source, scan_layers=scan_layers)
    files = export_llama(params, tmp_path / "out", section, max_shard_bytes=30_000)
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) < 32_000
    again, loaded = load_llama(tmp_path / "out", scan_layers=scan_layers)
    assert again == section
    same_bits(loaded, params)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    # The file's own view: every tensor of the source, same name, shape and bits.
    stored, written = (
        {
            name: x
            for file in folder.glob("*.safetensors")
            for name, x in safetensors.numpy.load_file(file).items()
        }
        for folder in (source, tmp_path / "out")
    )
    same_bits(written, stored)


def test_config_json_is_the_original(tmp_path):
    original = json.loads((TIED / "config.json").read_text())
    section, params = load_llama(TIED)
    export_llama(params, tmp_path / "out", section, config=original)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: written[k] for k in original} == original
    # Three keys of older readers come on top.
    assert {*written} - {*original} == {"rope_theta", "rope_scaling", "torch_dtype"}


def test_a_section_that_leaves_things_open_is_exported_whole(tmp_path):
    scaling = {"factor": 2.0, "original_max_position_embeddings": 16}
    section = {"name": "decoder", "vocab_size": 16, "seq_len": 8, "d_model": 8, "depth": 1}
    section |= {"heads": 2, "rope_scaling": scaling}
    params = drawn(section)
    export_llama(params, tmp_path / "out", section)
    again, loaded = load_llama(tmp_path / "out")
    same_bits(loaded, params)
    assert again["kv_heads"] == 2
    assert again["d_mlp"] == 64
    assert again["norm_eps"] == 1e-5
    assert again["rope_scaling"] == {**scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_compressed_kernels_are_refused_or_made_dense(tmp_path):
    section, params = load_llama(TINY, scan_layers=True)
    small = jaxlab.compress(params, [("layers/mlp/up/kernel", "low_rank", {"rank": 4})])
    message = r"'layers/mlp/up/kernel' is a LowRank, .*densify=True"
    with pytest.raises(ValueError, match=message):
        export_llama(small, tmp_path / "out", section)
    assert list(tmp_path.iterdir()) == []
    export_llama(small, tmp_path / "out", section, densify=True)
    _, loaded = load_llama(tmp_path / "out", scan_layers=True)
    dense = loaded["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(dense, small["layers"]["mlp"]["up"]["kernel"].to_dense(), atol=1e-6)
    assert np.linalg.matrix_rank(dense[1], tol=1e-4) == 4
    loaded["layers"]["mlp"]["up"] = params["layers"]["mlp"]["up"]
    same_bits(loaded, params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'; the decoder has 'llama' only"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; the decoder has 'silu' only"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=\{'bits': 4\}"),
        ({"head_dim": 16}, "head_dim=16; .* = 8 only"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"rope_scaling": {"type": "lama3"}}, "rope_type='lama3'; did you mean 'llama3'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "high_freq_factor=None with"),
        ({"rope_scaling": {"beta_fast": 32}}, "beta_fast=32 with rope_type='default'"),
    ],
)
def test_settings_beyond_the_decoder_are_refused(changes, message):
    config = json.loads((TINY / "config.json").read_text()) | changes
    del config["rope_parameters"]
    config = {k: v for k, v in config.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        decoder_section(config)


def change_tensors(folder, change):
    shutil.copytree(TINY, folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"'lm_head.weight' is missing .* \(128, 32\) by"),
        (lambda t: t.update(extra=np.ones(3)), r"'extra' is \(3,\) .* nothing by"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.ones((32, 64))}),
            r"'model.layers.1.mlp.up_proj.weight' is \(32, 64\) .* \(64, 32\) by",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(32, np.int8)}),
            "'model.norm.weight' is int8 and not floating",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(32)}), "needs jax_enable_x64"),
    ],
    ids=["missing", "extra", "shape", "integers", "float64"],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_llama(change_tensors(tmp_path / "a", change))


def test_a_stack_of_two_dtypes_is_refused_or_cast(tmp_path):
    name = "model.layers.1.input_layernorm.weight"
    halved = lambda t: t.update({name: t[name].astype(np.float16)})  # noqa: E731
    folder = change_tensors(tmp_path / "a", halved)
    with pytest.raises(ValueError, match=rf"'{name}' is float16, .*; choose dtype"):
        load_llama(folder, scan_layers=True)
    _, params = load_llama(folder, scan_layers=True, dtype="float32")
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}


def tied_with_head(folder, change):
    """The stored tied checkpoint, whose tensors then have a head too."""
    shutil.copytree(TIED, folder)
    (index,) = folder.glob("*.index.json")
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
        file.unlink()
    index.unlink()
    tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"])
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_tied_head_that_is_stored_too_must_be_the_embedding(tmp_path):
    same_bits(load_llama(tied_with_head(tmp_path / "same", np.copy))[1], load_llama(TIED)[1])
    for name, change, message in (
        ("other", lambda w: w + w.dtype.type(1), "'lm_head.weight' differs from 'model.embed_tok"),
        ("short", lambda w: w[:-1].copy(), r"'lm_head.weight' is \(\d+, \d+\) .* nothing by"),
    ):
        with pytest.raises(ValueError, match=message):
            load_llama(tied_with_head(tmp_path / name, change))


def test_rotary_buffers_of_old_files_are_ignored(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = change_tensors(tmp_path / "a", lambda t: t.update({name: np.ones(4, np.float32)}))
    same_bits(load_llama(folder)[1], load_llama(TINY)[1])


def test_export_refuses_a_full_folder_and_another_tree(tmp_path):
    section, params = load_llama(TINY)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="full is not empty"):
        export_llama(params, tmp_path / "full", section)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"'head/kernel' is missing .* \(32, 128\)"):
        export_llama({k: v for k, v in params.items() if k != "head"}, tmp_path / "a", section)
    with pytest.raises(ValueError, match=r"'head/kernel' is \(32, 128\) in params and nothing"):
        export_llama(params, tmp_path / "a", {**section, "tie_embeddings": True})


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    section, params = load_llama(TINY)
    monkeypatch.setattr(llama.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_llama(params, tmp_path / "out", section)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_run_begins_from_a_folder(tmp_path, scan_layers):
    model = {"name": "decoder", "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 16}
    section = {**model, "vocab_size": 256, "seq_len": 8}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn(section))
    export_llama(params, tmp_path / "public", section)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text("some words of text, " * 4)
    c = base_config("tiny.py")
    c.steps, c.batch_size, c.workdir = 0, 2, str(tmp_path / "run")
    c.init = str(tmp_path / "public")
    c.task.name, c.data.name = "language_model", "text_folder"
    c.data.update(path=str(tmp_path), seq_len=8, held_out=0.3, eval_bytes=40)
    c.model.update(**model, scan_layers=scan_layers)
    c.compress.up = {"path": "layers/.*up/kernel", "name": "low_rank", "rank": 2}
    experiment = Experiment(c.to_dict())
    _, expected = load_llama(tmp_path / "public", dtype="float32", scan_layers=scan_layers)
    same_bits(experiment.initial_params(), expected)
    for setting, value in {"rope_theta": 500.0, "heads": 4, "norm_eps": 1e-3}.items():
        config = c.to_dict()
        config["model"] |= {setting: value, "kv_heads": 2}
        with pytest.raises(ValueError, match=rf"does not fit the model: model\.{setting}={value}"):
            Experiment(config)
    if scan_layers:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            summary = Run(experiment).train()
        assert summary["methods"] == ["low_rank"]
        assert summary["bytes"]["finalized"] < summary["bytes"]["dense"]
