"""The artefact: bit-exact both ways, whole or absent, and refused by name when it is not ours."""

import json
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxlab
from jaxlab.interop import artefact


def tree():
    params = {
        "blocks": [
            {"kernel": jax.random.normal(jax.random.key(0), (16, 8), jnp.bfloat16)},
            {"kernel": jax.random.normal(jax.random.key(1), (16, 8))},
        ],
        "by_number": {0: jnp.arange(3), 1: (jnp.array(2.5, jnp.float16), None)},
        "flags": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
    }
    return jaxlab.finalize(
        jaxlab.compress(
            params,
            [
                ("blocks/0/kernel", "nm", {"n": 2, "m": 4}),
                ("blocks/1/kernel", "low_rank", {"rank": 2}),
            ],
        )
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    jaxlab.save(path, tree())
    return path


def test_round_trip_is_exact(saved):
    loaded, params = jaxlab.load(saved), tree()
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_same_tree_gives_the_same_bytes(saved, tmp_path):
    size = jaxlab.save(tmp_path / "again.safetensors", jaxlab.load(saved))
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == saved.read_bytes()
    assert size == len(again)


def test_any_safetensors_reader_sees_the_buffers(saved):
    tensors = safetensors.numpy.load_file(saved)
    assert "blocks/0/kernel/values" in tensors
    assert tensors["blocks/0/kernel/index"].dtype == np.uint8


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(ValueError, match="model.safetensors is truncated"):
            jaxlab.load(saved)


def test_foreign_and_missing_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, foreign)
    with pytest.raises(ValueError, match="foreign.safetensors is foreign"):
        jaxlab.load(foreign)
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        jaxlab.load(tmp_path / "nothing.safetensors")


def test_tampered_buffers_and_structure_are_refused(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="tampered"):
        jaxlab.load(saved)
    jaxlab.save(saved, tree())
    jaxlab.load(saved)
    rewrite(saved, lambda header: header["tree"]["dict"].reverse())
    with pytest.raises(ValueError, match="tampered"):
        jaxlab.load(saved)


def test_newer_format_and_unknown_method_are_named(saved):
    rewrite(saved, lambda header: header.update(format=99))
    with pytest.raises(ValueError, match="format 99"):
        jaxlab.load(saved)
    jaxlab.save(saved, tree())

    def rename(header):
        text = json.dumps(header["tree"]).replace('"low_rank"', '"low_rnak"')
        header["tree"] = json.loads(text)
        header["sha256"] = artefact._digest(header["tree"], safetensors.numpy.load_file(saved))

    rewrite(saved, rename)
    with pytest.raises(ValueError, match="'low_rnak' is not registered; did you mean 'low_rank'"):
        jaxlab.load(saved)


def test_what_cannot_come_back_is_refused(saved):
    with pytest.raises(TypeError, match="two leaves have the path 'a/b'"):
        jaxlab.save(saved, {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}})
    with pytest.raises(TypeError, match="'x' is a Pair"):
        jaxlab.save(saved, {"x": Pair(jnp.ones(1), jnp.ones(1))})


def test_the_file_is_readable_like_any_other(saved):
    assert saved.stat().st_mode & 0o044


class Pair(NamedTuple):
    first: jax.Array
    second: jax.Array


def test_nothing_is_written_when_a_leaf_cannot_be_saved(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError, match="'bad/key' is a ArrayImpl|'bad/key'"):
        jaxlab.save(saved, {"bad": {"key": jax.random.key(0)}})
    with pytest.raises(TypeError, match="'x' is a str"):
        jaxlab.save(saved, {"x": "text"})
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_float64_needs_x64_and_is_not_cast(tmp_path):
    path = tmp_path / "wide.safetensors"
    jaxlab.save(path, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="'w' is float64, which needs jax_enable_x64"):
        jaxlab.load(path)


def rewrite(path, change):
    """Rewrites the JSON header of an artefact in place."""
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["jaxlab"])
    change(header)
    safetensors.numpy.save_file(tensors, path, metadata={"jaxlab": json.dumps(header)})


def test_dtypes_and_arguments_that_do_not_fit_are_named(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match="save: 'b/w': .*int4"):
        jaxlab.save(file, {"a": jnp.ones(3), "b": {"w": jnp.ones(4, jnp.int4)}})
    with pytest.raises(TypeError, match=r"path is a dict; nearest: save\(path, params\)"):
        jaxlab.save({"a": jnp.ones(3)}, str(file))
    params = jaxlab.compress({"w": jnp.ones((8, 8))}, [("w", "nm", {"n": 2, "m": 4})])
    with pytest.raises(TypeError, match="'w' is a NMNow.*what jaxlab.at"):
        jaxlab.save(file, jaxlab.at(params, jnp.array(0.5)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16])
def test_types_that_numpy_does_not_know_come_back(tmp_path, dtype):
    params = {"w": jnp.arange(-8, 8).reshape(4, 4).astype(dtype), "none": jnp.zeros((0, 2), dtype)}
    jaxlab.save(tmp_path / "narrow", params)
    for name, loaded in jaxlab.load(tmp_path / "narrow").items():
        assert loaded.dtype == dtype
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(params[name]))


def test_keys_that_a_file_does_not_hold_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"key \('up', 'kernel'\) in '' .*unflatten_dict"):
        jaxlab.save(tmp_path / "a", {("up", "kernel"): jnp.ones(2)})
    with pytest.raises(TypeError, match="FrozenDict and not .*nearest: a dict"):
        jaxlab.save(tmp_path / "a", flax.core.freeze({"a": jnp.ones(2)}))
    assert not list(tmp_path.iterdir())
    jaxlab.save(tmp_path / "a", {np.int64(3): jnp.ones(2)})
    assert list(jaxlab.load(tmp_path / "a")) == [3]


@pytest.mark.parametrize("method", ["nm", "dense", "low_rank"])
def test_weights_of_numpy_have_the_dtype_of_products(tmp_path, method):
    settings = {"nm": {"n": 2, "m": 4}, "dense": {}, "low_rank": {"rank": 2}}[method]
    kernel = np.random.default_rng(0).normal(size=(16, 8))
    made = jaxlab.compress({"kernel": kernel}, [("kernel", method, settings)])
    assert made["kernel"].dtype == jnp.float32
    jaxlab.save(tmp_path / "a", made)
    assert jaxlab.load(tmp_path / "a")["kernel"].dtype == jnp.float32
