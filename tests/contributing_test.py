"""The worked example of CONTRIBUTING.md, run through the whole conformance table."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_worked_method_passes_the_conformance_table(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "banded_method.py").write_text(block)
    plugin = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import banded_method"
    (tmp_path / "load_banded.py").write_text(plugin)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests/conformance_test.py",
            "-k",
            "banded",
            "-o",
            "addopts=--import-mode=importlib",
            "-p",
            "no:xdist",
            "-p",
            "load_banded",
            "-q",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\b1[5-9] passed|\b[2-9]\d passed", done.stdout), done.stdout[-300:]
