"""Puts the parts of a benchmark together that several processes of one machine stored.

    python benchmarks/merge_parts.py 0/second_order-long-NVIDIA-H200.json 1/second_order-long-...

The result goes to benchmarks/results, beside which the parts are not needed any more.
"""

import json
import sys
from pathlib import Path
from typing import Any

from claim import RESULTS


def merged(a: Any, b: Any, at: str = "") -> Any:
    """Two results as one: keys of both, where they must agree.

    Raises:
      ValueError: they differ in what both have; the message names the place.

    >>> merged({"cells": {"x": 1}}, {"cells": {"y": 2}})
    {'cells': {'x': 1, 'y': 2}}
    """
    if isinstance(a, dict) and isinstance(b, dict):
        both = {k: merged(a[k], b[k], f"{at}/{k}") for k in a if k in b}
        return {**a, **b, **both}
    if a != b:
        raise ValueError(f"merge_parts: {at or '/'} is {a!r} in one part and {b!r} in another")
    return a


def main(paths: list[str], folder: Path = RESULTS) -> Path:
    """Writes the parts as one file; returns it."""
    if not paths or len({Path(path).name for path in paths}) > 1:
        raise ValueError(f"merge_parts: {paths}; name the files of one benchmark and device")
    whole = json.loads(Path(paths[0]).read_text(encoding="utf-8"))
    for path in paths[1:]:
        whole = merged(whole, json.loads(Path(path).read_text(encoding="utf-8")))
    target = folder / Path(paths[0]).name
    target.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print(f"{len(whole['result']['cells'])} cells in {target.name}")
    return target


if __name__ == "__main__":
    main(sys.argv[1:])
