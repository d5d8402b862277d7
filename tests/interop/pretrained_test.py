"""Folders of published tensors: read lazily, in shards or whole, and dispatched by model_type."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.interop.artefact import save
from jaxlab.interop.initial import load_init
from jaxlab.interop.pretrained import (
    is_published,
    load_pretrained,
    read_tensors,
    stack_layers,
    unstack_layers,
    write_tensors,
)


def _tensors():
    rng = np.random.default_rng(0)
    return {
        "b.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "a": rng.normal(size=(6,)).astype(ml_dtypes.bfloat16),
        "scalar": np.array(2, np.int64),
        # Not contiguous, which the format's own writer would store in the wrong order.
        "c": np.arange(6, dtype=np.float16).reshape(2, 3).T,
    }


@pytest.mark.parametrize("shard_bytes", [10**9, 50, 1])
def test_written_and_read_bit_for_bit(tmp_path, shard_bytes):
    files = write_tensors(tmp_path, _tensors(), shard_bytes=shard_bytes)
    assert len(files) == {10**9: 1, 50: 2, 1: 4}[shard_bytes]
    assert (tmp_path / "model.safetensors.index.json").exists() == (len(files) > 1)
    tensors = read_tensors(tmp_path)
    assert list(tensors) == sorted(_tensors())
    for name, x in _tensors().items():
        assert tensors[name].dtype == x.dtype
        assert tensors.shape(name) == x.shape
        np.testing.assert_array_equal(tensors[name], x)
    # Two look-ups are two arrays: nothing is kept, and the caller may write into what it has.
    tensors["b.weight"][:] = 0
    np.testing.assert_array_equal(tensors["b.weight"], _tensors()["b.weight"])


def test_an_export_over_shards_leaves_no_stale_index(tmp_path):
    write_tensors(tmp_path, _tensors(), shard_bytes=1)
    write_tensors(tmp_path, {"only": np.ones(2)})
    assert list(read_tensors(tmp_path)) == ["only"]
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    write_tensors(tmp_path, _tensors(), shard_bytes=1)
    assert list(read_tensors(tmp_path)) == sorted(_tensors())


def test_a_file_is_enough(tmp_path):
    write_tensors(tmp_path / "some.safetensors", _tensors())
    assert list(read_tensors(tmp_path / "some.safetensors")) == sorted(_tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["some.safetensors"]


def test_broken_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        read_tensors(tmp_path)
    files = write_tensors(tmp_path, _tensors(), shard_bytes=50)
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text(json.dumps({"weight_map": {"other": files[0].name}}))
    with pytest.raises(ValueError, match=r"00001-of-00002\.safetensors has no 'other'"):
        read_tensors(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of shards"):
        read_tensors(tmp_path)
    index.write_text(whole)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors is truncated"):
        read_tensors(tmp_path)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        read_tensors(tmp_path)
    with pytest.raises(ValueError, match="tensors is empty"):
        write_tensors(tmp_path, {})
    with pytest.raises(ValueError, match="shard_bytes=0 must be positive"):
        write_tensors(tmp_path, _tensors(), shard_bytes=0)


def test_the_model_type_names_the_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry._PARTS["checkpoint"], "tested", lambda folder: ({}, {"from": folder})
    )
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "tested"}')
    assert is_published(tmp_path)
    assert load_pretrained(tmp_path) == ({}, {"from": tmp_path})
    config.write_text('{"model_type": "bret"}')
    with pytest.raises(ValueError, match=r"model_type='bret'; did you mean 'bert'\? valid: bert"):
        load_pretrained(tmp_path)
    config.write_text('["model_type"]')
    with pytest.raises(ValueError, match="holds a list and no settings"):
        load_pretrained(tmp_path)
    config.unlink()
    assert not is_published(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        load_pretrained(tmp_path)


def _layers():
    return {"head": jnp.ones(2), "layers": {i: {"w": jnp.full(3, i)} for i in range(11)}}


def test_a_run_starts_from_either_kind_of_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._PARTS["checkpoint"], "tested", lambda folder: ({}, _layers()))
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "config.json").write_text('{"model_type": "tested"}')
    got = load_init(str(tmp_path / "public"), _layers())
    assert sorted(got["layers"]) == list(range(11))
    # A model that scans its layers gets the stack.
    stacked = stack_layers(_layers())
    got = load_init(str(tmp_path / "public"), stacked)
    np.testing.assert_array_equal(got["layers"]["w"][:, 0], np.arange(11))
    # A run folder has a config.json too, without a model_type.
    save(tmp_path / "run" / "model.safetensors", stacked)
    (tmp_path / "run" / "config.json").write_text('{"name": "digits"}')
    got = load_init(str(tmp_path / "run"), stacked)
    np.testing.assert_array_equal(got["layers"]["w"], stacked["layers"]["w"])
    with pytest.raises(ValueError, match=r"'layers/w' is \(11, 3\) in the file and \(2, 3\)"):
        load_init(str(tmp_path / "public"), {**stacked, "layers": {"w": jnp.ones((2, 3))}})


def test_stacks_are_in_the_order_of_numbers():
    stacked = stack_layers(_layers())
    assert stack_layers(stacked)["layers"] is stacked["layers"]
    np.testing.assert_array_equal(stacked["layers"]["w"][:, 0], np.arange(11))
    again = unstack_layers(stacked)
    assert {i: x["w"].tolist() for i, x in again["layers"].items()} == {
        i: [i, i, i] for i in range(11)
    }
    with pytest.raises(ValueError, match="'layers' differ"):
        stack_layers({"layers": {0: {"w": jnp.ones(2)}, 1: {"v": jnp.ones(2)}}})
