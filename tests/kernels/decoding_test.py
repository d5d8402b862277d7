"""The benchmark of decoding: its sizes are measured alone, too, and its parameters drawn."""

import importlib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_decoder_of_the_decoding_benchmark_has_the_sizes_that_are_measured(module):
    section = module("decoding").SIZES["large"].section
    wide, inner = section["d_model"], section["d_mlp"]
    assert set(module("kernel_units").DECODER) == {(wide, wide), (inner, wide), (wide, inner)}


def test_a_drawn_method_has_the_form_that_compression_gives(module):
    decoding = module("decoding")
    about = {"vocab_size": 32, "d_model": 32, "depth": 1, "heads": 2, "d_mlp": 32}
    size = decoding.Size({**decoding.SIZES["large"].section, **about}, "bfloat16", 2, 1)
    drawn = next(m for m in decoding.METHODS.values() if m.drawn)
    (a, form), (b, expected) = (
        jax.tree.flatten(decoding.parameters(size, method)[1])
        for method in (drawn, drawn._replace(drawn=False))
    )
    assert form == expected
    assert [(x.shape, x.dtype) for x in a] == [(x.shape, x.dtype) for x in b]
