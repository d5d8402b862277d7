"""The standard library as text: what is read, how it is split, and that it stays so."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from jaxlab.core import registry
from jaxlab.data.python_source import module_of, source_files


def _build(seq_len=32, batch_size=4, **section):
    section = {"name": "python_source", "seq_len": seq_len, **section}
    return registry.build("data", section, seed=0, batch_size=batch_size)


def _write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")


def test_only_the_librarys_own_source_is_read(tmp_path):
    own = ["ast.py", "json/__init__.py", "json/decoder.py", "zoneinfo/_common.py"]
    _write(
        tmp_path, *own,
        "site-packages/numpy/core.py", "dist-packages/x.py", "test/test_ast.py",
        "lib2to3/tests/data/bom.py", "idlelib/idle_test/test_a.py", "json/__pycache__/d.py",
        "_sysconfigdata__linux.py", "config-3.11/python-config.py", "sitecustomize.py",
        "LICENSE.txt", "json/decoder.pyc",
    )  # fmt: skip
    assert source_files(tmp_path) == own


def test_two_constructions_are_the_same():
    first, second = _build(), _build()
    assert first.info == second.info
    assert first.batch(9)["tokens"].tobytes() == second.batch(9)["tokens"].tobytes()


def test_about_a_tenth_is_held_out_by_whole_modules():
    info = _build().info
    held_out = set(info["eval_modules"])
    root = Path(sysconfig.get_path("stdlib"))
    size = {True: 0, False: 0}
    for name in source_files(root):
        size[module_of(name) in held_out] += (root / name).stat().st_size + 1
    # A newline between files, none after the last.
    assert (info["train_items"], info["eval_items"]) == (size[False] - 1, size[True] - 1)
    assert 0.05 < info["eval_items"] / (info["train_items"] + info["eval_items"]) < 0.2


def test_held_out_modules_are_not_trained_on():
    data = _build()
    assert "gzip" in data.info["eval_modules"]
    source = (Path(sysconfig.get_path("stdlib")) / "gzip.py").read_bytes()
    assert source in data._held_out.tobytes()
    assert source not in data._train.tobytes()


def test_caps_are_prefixes_that_sample_many_modules():
    whole, capped = _build(), _build(max_bytes=300_000, eval_bytes=1_000)
    assert capped.info["train_items"] == 300_000
    assert capped._train.tobytes() == whole._train.tobytes()[:300_000]
    rows = [b["tokens"][b["weight"] == 1] for b in capped.eval_batches()]
    targets = np.concatenate(rows)[:, 1:].ravel()
    assert len(targets) == capped.info["eval_targets"] == 31 * 32


def test_vocabulary_and_windows():
    data = _build()
    batch = data.batch(0)["tokens"]
    assert (data.vocab_size, data.seq_len) == (256, 32)
    assert batch.shape == (4, 33)
    assert 0 <= batch.min() <= batch.max() < 256


def test_a_python_without_source_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"python_source: .* 0 source files.*'text_folder'"):
        _build()
