"""The notebooks: in step with their scripts, and they run top to bottom."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import jaxlab

COLAB = Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


def load_build(folder):
    spec = importlib.util.spec_from_file_location("colab_build", folder / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """The folder of the notebooks, to be changed."""
    return Path(shutil.copytree(COLAB, tmp_path / "colab"))


@pytest.fixture
def kernel_env(tmp_path, monkeypatch):
    """The environment of a kernel `python3` that is this interpreter and imports this jaxlab."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    # First on the path of kernelspecs: a `python3` of another environment may be installed.
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    root = Path(jaxlab.__file__).resolve().parents[1]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "PIP_NO_INDEX": "1",  # the first cell must find jaxlab, not fetch it
        "JAX_PLATFORMS": "cpu",
        # One device, as a reader has; the notebook computes little, so that optimising costs more.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def test_every_script_has_its_notebook():
    scripts = {path.stem for path in COLAB.glob("*.py")} - {"build"}
    assert scripts
    assert scripts == {path.stem for path in NOTEBOOKS}


def test_notebooks_are_in_sync_with_their_scripts(capsys):
    status = load_build(COLAB).main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_check_fails_on_a_changed_script_and_writes_nothing(copy, capsys):
    build, notebook = load_build(copy), copy / "quickstart.ipynb"
    before = notebook.read_bytes()
    with (copy / "quickstart.py").open("a", encoding="utf-8") as script:
        script.write("\n# %%\nprint('one more cell')\n")
    assert build.main(["--check"]) == 1
    assert "quickstart.ipynb" in capsys.readouterr().err
    assert notebook.read_bytes() == before
    assert build.main([]) == 0
    assert "one more cell" in notebook.read_text(encoding="utf-8")
    assert build.main(["--check"]) == 0


def test_check_fails_on_an_executed_or_missing_notebook(copy):
    build, notebook = load_build(copy), copy / "quickstart.ipynb"
    committed = notebook.read_bytes()
    nb = nbformat.reads(committed.decode(), as_version=4)
    next(cell for cell in nb.cells if cell.cell_type == "code").execution_count = 1
    notebook.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    assert build.main(["--check"]) == 1
    notebook.unlink()
    assert build.main(["--check"]) == 1
    assert build.main([]) == 0
    assert notebook.read_bytes() == committed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, tmp_path, kernel_env):
    nb = nbformat.read(path, as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    client = nbclient.NotebookClient(
        nb,
        timeout=120,
        kernel_name="python3",
        shutdown_kernel="immediate",
        resources={"metadata": {"path": str(work)}},
    )
    client.execute(env=kernel_env)  # a cell that raises is a CellExecutionError here
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "assert" in code[-1].source
    assert not list(work.iterdir())
