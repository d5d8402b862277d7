"""Published figures are those of the stored results."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pages_are_in_step_with_the_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/publish.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_changed_figure_is_noticed(tmp_path):
    import shutil

    for part in ("benchmarks", "configs", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "README.md", tmp_path)
    page = tmp_path / "docs" / "claims.md"
    page.write_text(page.read_text().replace("accuracy 0.", "accuracy 1.", 1))
    done = subprocess.run(
        [sys.executable, "benchmarks/publish.py", "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "docs/claims.md" in done.stdout


def test_the_readme_example_runs():
    import re

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace('jaxlab.save("small.safetensors", small)', "")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "NMPacked" in done.stdout
    assert "LowRank" in done.stdout
