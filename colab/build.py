"""Writes the notebook of every script in this folder, or checks that it is up to date.

    python colab/build.py           # colab/quickstart.py -> colab/quickstart.ipynb
    python colab/build.py --check   # exit status 1 if a notebook differs from its script

The percent-format script is the source: edit that, never the notebook. A notebook has no outputs,
and the same script always gives the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).resolve().parent
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_NEW_CELL = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}


def notebook(script: str) -> str:
    """The notebook of a percent-format script, as JSON text."""
    read = jupytext.reads(script, fmt="py:percent")
    cells = []
    for i, cell in enumerate(read.cells):
        new = _NEW_CELL[cell.cell_type]
        # By position: random ids would make every build differ.
        cells.append(new(cell.source, id=f"cell-{i}"))
    built = nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)
    # Pinned, so that a newer nbformat writes the same bytes.
    built.nbformat, built.nbformat_minor = 4, 5
    nbformat.validate(built)
    return nbformat.writes(built) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Builds or checks every notebook; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args(argv).check
    stale = []
    for script in sorted(FOLDER.glob("*.py")):
        if script.name == Path(__file__).name:
            continue
        file = script.with_suffix(".ipynb")
        text = notebook(script.read_text(encoding="utf-8"))
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(file.name)
        if not check:
            file.write_text(text, encoding="utf-8", newline="\n")
    if stale and check:
        print(f"out of date: {', '.join(stale)}; run python colab/build.py", file=sys.stderr)
        return 1
    print(f"wrote {', '.join(stale)}" if stale else "all notebooks are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
