"""The house rules that a machine can check: imports, sizes, names, what configs say."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlab
from jaxlab.core import registry

ROOT = Path(__file__).parents[1]
SOURCES = [
    p for d in ("jaxlab", "configs", "benchmarks", "colab") for p in (ROOT / d).rglob("*.py")
]
SOURCES.append(ROOT / "train.py")


def in_subprocess(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()


def test_import_starts_nothing_and_loads_little():
    code = """
import sys, jax, jax.numpy
import jaxlab
from jax._src import xla_bridge
heavy = ("flax", "optax", "orbax", "matplotlib", "sklearn", "absl.flags", "tqdm", "ml_collections")
print([m for m in heavy if m in sys.modules], xla_bridge.backends_are_initialized())
"""
    assert in_subprocess(code) == "[] False"


def test_import_takes_less_than_a_second_beyond_jax():
    code = """
import time, jax, jax.numpy
began = time.process_time()
import jaxlab
print(time.process_time() - began)
"""
    assert float(in_subprocess(code)) < 1.0


def test_files_are_small():
    every = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    lines = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in every}
    assert {p: n for p, n in lines.items() if n > 350} == {}
    assert lines[Path("train.py")] <= 200


def test_no_drawers_for_everything():
    stems = {p.stem for p in SOURCES}
    assert not stems & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_nothing_branches_on_a_part_name():
    """No comparison with the name of a method, model, dataset, task or optimizer."""
    kinds = ("matrix", "model", "data", "task", "optimizer", "schedule", "phase")
    parts = {name for kind in kinds for name in registry.names(kind)}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = [
                    c.value
                    for side in [node.left, *node.comparators]
                    for c in ast.walk(side)
                    if isinstance(c, ast.Constant)
                ]
                found += [(path.name, node.lineno, c) for c in constants if c in parts]
            if isinstance(node, ast.match_case):
                found += [
                    (path.name, c.value)
                    for c in ast.walk(node.pattern)
                    if isinstance(c, ast.Constant) and c.value in parts
                ]
    assert found == []


def test_the_public_names_exist_and_are_documented():
    assert len(jaxlab.__all__) <= 25
    for name in jaxlab.__all__:
        assert getattr(jaxlab, name).__doc__, name


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_say_what_they_claim(config):
    text = ast.get_docstring(ast.parse(config.read_text()))
    assert text
    for fact in (
        "Claim:",
        "Command:",
        "Wall time, 2 CPU cores:",
        "Wall time, one H100:",
        "Result:",
    ):
        assert fact in text, fact
    assert re.search(r"Command: +python train\.py --config=configs/" + config.name, text)
