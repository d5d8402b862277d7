"""Embedded docstrings: classes are modules, no docstring is in both parts."""

import hashlib

import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.data import docstring_features
from jaxlab.data.features import StoredFeatures

FILES = ["ast.py", "json/decoder.py", "json/encoder.py", "statistics.py", "textwrap.py"]


@pytest.fixture
def encoded(monkeypatch):
    """What was embedded; the encoder is a hash of the text."""
    calls = []

    def encode(texts):
        calls.append(texts)
        seeds = [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) for t in texts]
        rows = np.stack([np.random.default_rng(s).normal(size=6) for s in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(docstring_features, "minilm_folder", lambda: "nowhere")
    monkeypatch.setattr(docstring_features, "_encoder", lambda folder, seq_len: encode)
    monkeypatch.setattr(docstring_features, "source_files", lambda root: FILES)
    return calls


def test_classes_are_the_modules_with_most_docstrings(encoded):
    section = {"name": "docstring_features", "modules": 2, "per_module": 10}
    data = registry.build("data", section, seed=0, batch_size=4)
    train, held_out, code = encoded
    assert (len(train), len(held_out), len(code)) == (14, 6, 6)
    assert not set(train) & set(held_out)
    assert all("def " in text for text in code)
    assert set(data.info["modules"]) == {"ast", "statistics"}
    first, last = data.eval_batches()
    labels = np.concatenate([first["label"], last["label"]])[:6]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert last["weight"].tolist() == [1, 1, 0, 0]
    assert not np.allclose(first["feature"], first["outside"])
    seen = np.concatenate([data.batch(step)["feature"] for step in range(7)])
    assert len(np.unique(seen.round(6), axis=0)) == 14  # two epochs of 14 rows


def test_bad_settings_are_named(encoded):
    for setting, message in (
        ({"modules": 1}, "modules=1; nearest: 2"),
        ({"per_module": 2}, "per_module=2; nearest: 4"),
        ({"seq_len": 2}, "seq_len=2 is too short"),
        ({"modules": 9}, "modules=9, but .* has 4 with docstrings"),
    ):
        section = {"name": "docstring_features", **setting}
        with pytest.raises(ValueError, match=message):
            registry.build("data", section, seed=0, batch_size=4)
    y = np.eye(3, dtype=np.float32)
    part = y, np.arange(3)
    with pytest.raises(ValueError, match="batch_size=4 is more than 3 training rows; nearest: 3"):
        StoredFeatures("t", part, (*part, y), num_classes=3, seed=0, batch_size=4)
