"""What stored measurements of kernels become: one record, and the choices that `dispatch` reads."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from claim import RESULTS, stored
from kernel_places import (
    KERNELS,
    complete,
    floor,
    layout_of,
    on_device,
    peers,
    present_layout,
    ranked,
)

from jaxlab.kernels import measured as tables
from jaxlab.kernels.plan import STEPS

# How many times as fast as everything of XLA a kernel must be to be taken, if its op says nothing.
MARGIN = 1.1


def choices(record: dict[str, Any], op: str) -> dict[str, Any]:
    """What `dispatch` reads: by problem, and by family where the kernel won at every size."""
    result = record["result"]
    of_op = {name: cell for name, cell in result["cells"].items() if cell["op"] == op}
    # What was measured with an earlier layout is not what the kernel does now.
    layout = max(layout_of(result, cell) for cell in of_op.values())
    entries: dict[str, Any] = {}
    measured: dict[str, list[tuple[tuple[int, int, int], bool]]] = {}
    for name, entry in of_op.items():
        if layout_of(result, entry) != layout:
            print(f"{name}: measured with layout {layout_of(result, entry)}, left out")
            continue
        if not complete(result, entry):
            print(f"{name}: the dense product was not measured, left out")
            continue
        rows = peers(result, entry).items()
        others = min((on_device(row) for name, row in rows if name.startswith("XLA")), default=0.0)
        # Of every way to store the operands.
        best = {row["key"]: row for row in reversed(ranked(entry["ours"]))}
        for key, row in best.items():
            wins = on_device(row) * entry.get("margin", MARGIN) <= others
            entries[key] = {
                "implementation": "mosaic_gpu" if wins else "xla",
                "config": row["config"],
                "us": on_device(row),
                "xla_us": others,
            }
            if not wins:
                print(f"{name}, {key}: XLA stays")
            place = entry["rows"], *entry["sizes"]
            measured.setdefault(row["family"], []).append((place, wins))
    return {
        "device": record["device"].replace("-", " "),
        "jax": record["versions"]["jax"],
        "layout": layout,
        "won": {family: boxes for family, found in measured.items() if (boxes := won(found))},
        "entries": entries,
    }


def won(measured: Iterable[tuple[tuple[int, int, int], bool]]) -> list[dict[str, Any]]:
    """The ranges of rows, outputs and inputs between which the kernel is taken, none in another.

    All corners of each were measured, and the kernel won wherever in it that was.
    """
    wins = dict(measured)
    axes = [sorted(set(axis)) for axis in zip(*wins, strict=True)]
    spans = [list(itertools.combinations_with_replacement(axis, 2)) for axis in axes]
    found = []
    for box in itertools.product(*spans):
        known = all(corner in wins for corner in itertools.product(*box))
        inside = [ok for at, ok in wins.items() if _within([(x, x) for x in at], box)]
        if known and all(inside):
            found.append(box)
    largest = [box for box in found if not any(_within(box, b) for b in found if b != box)]
    # A measurement is that of every number of rows up to it that falls into its step.
    return [
        {
            "implementation": "mosaic_gpu",
            "rows": [_least(rows[0]), rows[1]],
            "n": list(n),
            "k": list(k),
        }
        for rows, n, k in largest
    ]


def _within(inner: Iterable[tuple[int, int]], outer: Iterable[tuple[int, int]]) -> bool:
    pairs = zip(inner, outer, strict=True)
    return all(low <= least and most <= high for (least, most), (low, high) in pairs)


def _least(step: int) -> int:
    # Beyond the last step every number of rows is one of its own.
    return step if step > STEPS[-1] else max((s + 1 for s in STEPS if s < step), default=1)


def write_configs(name: str) -> None:
    """Stores the shapes at which the kernels run when nothing is asked for."""
    for record in stored(name):
        for op in dict.fromkeys(entry["op"] for entry in record["result"]["cells"].values()):
            table, present = choices(record, op), present_layout(op)
            if table["layout"] != present:
                there = "no such kernel" if present is None else f"its layout is {present}"
                print(
                    f"{op}: measured on {table['device']} with layout {table['layout']}, {there}; "
                    "nothing is written"
                )
                continue
            path = KERNELS / op / "configs" / tables.file_name(table["device"])
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
            print(f"{op}: {len(table['entries'])} shapes to {path.name}")


def merge(name: str, folder: str) -> None:
    """Joins what processes stored with what is there, and removes their files.

    Later measurements replace earlier ones. A device's limits are the best that a process saw, and
    all floors are by those.
    """
    where = Path(folder) if folder else RESULTS
    joined: dict[str, Any] = {}
    parts = sorted(where.glob(f"{name}_part*.json"))
    for part in parts:
        record = json.loads(part.read_text(encoding="utf-8"))
        path = where / f"{name}-{record['device']}.json"
        there = path if path.exists() else RESULTS / path.name
        if path.name not in joined and there.exists():
            joined[path.name] = json.loads(there.read_text(encoding="utf-8"))
        joined[path.name] = _joined(name, joined.get(path.name), record)
    for file, record in joined.items():
        (where / file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"{file}: {len(record['result']['cells'])} places")
    for part in parts:
        part.unlink()


def _joined(name: str, record: dict[str, Any] | None, part: dict[str, Any]) -> dict[str, Any]:
    new = part["result"]
    old: dict[str, Any] = record["result"] if record else {"cells": {}, "dense": {}}
    limits = {k: max(old.get(k, 0), v) for k, v in new.items() if isinstance(v, float)}
    cells, dense = ({**old[k], **new[k]} for k in ("cells", "dense"))
    cells = {key: {**cell, "floor": floor(cell, limits)} for key, cell in cells.items()}
    for place, cell in cells.items():
        of = new if place in new["cells"] else old
        cell["layout"] = layout_of(of, cell)
    return {**part, "benchmark": name, "result": {**new, **limits, "cells": cells, "dense": dense}}
