"""The figures on the pages of docs/numerics are those of the stored results."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["matrix_completion", "matrix_sensing"])
def test_page_is_in_step_with_the_results(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    content = importlib.import_module(name).content()
    pages = importlib.import_module("numerics_page")
    text = pages.page(name)
    assert "| --- |" in content
    assert pages.with_content(text, content) == text
    assert pages.with_content(text, content.replace("0", "1", 1)) != text
