"""Docstrings and functions: what is read of a file, how files are split, and that it stays so."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from jaxlab.core.registry import build
from jaxlab.data.docstrings import Docstrings, Pair, collect, pairs_of
from jaxlab.data.python_source import source_files
from jaxlab.data.splits import split_by_hash

SOURCE = '''
class Box:
    @property
    def side(self):
        """Return the side
        of this box. It is positive.

        More on that.
        """

        side = self._side  # kept

        if side < 0:
            raise ValueError(side)
        return side

    def undocumented(self):
        return 1

    def short(self):
        """Too few words."""
        return 2

    def empty(self):
        """A docstring and nothing that it describes."""


async def fetch(
    name,
    *,
    again=False,
):
    """Wait for the named thing"""
    return await name
'''


def _lengths(texts, max_length, buckets):
    """A tokenizer of letters."""
    ids = np.zeros((len(texts), max_length), np.int32)
    for i, text in enumerate(texts):
        letters = [ord(letter) % 97 + 1 for letter in text[:max_length]]
        ids[i, : len(letters)] = letters
    return ids, (ids > 0).astype(np.int32)


_lengths.vocab_size = 98


def _build(train=5, held_out=3, **settings):
    pairs = [Pair("d" * (i + 1), "c" * (i + 2)) for i in range(train + held_out)]
    settings = {"seq_len": 8, "seed": 0, "batch_size": 2, **settings}
    return Docstrings(pairs[:train], pairs[train:], tokenizer=_lengths, **settings)


def test_what_is_read_of_a_file():
    assert pairs_of(SOURCE.encode()) == [
        Pair(
            "Return the side of this box.",
            "def side(self):\n"
            "    side = self._side  # kept\n"
            "    if side < 0:\n"
            "        raise ValueError(side)",
        ),
        Pair(
            "Wait for the named thing",
            "async def fetch(\n    name,\n    *,\n    again=False,\n):\n    return await name",
        ),
    ]
    for no_python in (b"def f(:", b"\xff\xfe", b"\0"):
        assert pairs_of(no_python) == []


def test_pairs_are_few_of_each_file_and_none_twice(tmp_path):
    for name in "ab":
        functions = [
            f'def {name}{i}():\n    """Number {min(i, 20)} of the functions."""\n    return {i}\n'
            for i in range(30)
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(functions))
    found = collect(tmp_path, ["a.py", "b.py"], 99)
    assert len({pair.doc for pair in found}) == len(found) <= 21
    assert len(collect(tmp_path, ["a.py"], 99)) == 16
    assert collect(tmp_path, ["b.py", "a.py"], 5) == found[:5]
    other = collect(tmp_path, ["a.py", "b.py"], 99, draw=1)
    assert other[:5] != found[:5]
    known = {pair.doc for pair in found[:3]}
    assert not known & {p.doc for p in collect(tmp_path, ["a.py", "b.py"], 99, known=known)}


def test_batches_are_a_pure_function_of_the_step():
    data = _build()
    seen = [data.batch(step)["row"] for step in range(5)]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.repeat(np.arange(5), 2))
    again = _build().batch(3)
    assert set(again) == {"ids", "mask", "code_ids", "code_mask", "row"}
    for name, x in data.batch(3).items():
        assert x.dtype == np.int32
        np.testing.assert_array_equal(x, again[name])
    np.testing.assert_array_equal(again["mask"].sum(1), again["row"] + 1)
    np.testing.assert_array_equal(again["code_mask"].sum(1), again["row"] + 2)
    last = list(data.eval_batches())[-1]
    assert last["weight"].tolist() == [1, 0]
    assert data.info == _build().info
    assert data.info["eval_sha256"] != _build(held_out=4).info["eval_sha256"]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="seq_len=2 is too short; nearest: 3"):
        _build(seq_len=2)
    with pytest.raises(ValueError, match="5 pairs to train on and 0 held out"):
        _build(held_out=0)
    for name in ("max_pairs", "eval_pairs"):
        with pytest.raises(ValueError, match=f"docstrings: {name}=0 must be positive; nearest: 1"):
            build("data", {"name": "docstrings", name: 0}, seed=0, batch_size=2)
    section = {"name": "docstrings", "tokenizer": str(tmp_path / "nothing")}
    with pytest.raises(FileNotFoundError, match="nothing"):
        build("data", section, seed=0, batch_size=2)


def test_the_librarys_files_are_on_one_side_only():
    root = Path(sysconfig.get_path("stdlib"))
    train, held_out = split_by_hash(source_files(root), 0.3, salt="docstrings")
    assert not set(train) & set(held_out)
    assert 0.2 < len(held_out) / (len(train) + len(held_out)) < 0.4
    found = collect(root, held_out, 100)
    assert len(found) == 100
    for pair in found:
        assert pair.doc not in pair.code
        assert pair.code.startswith(("def ", "async def "))
