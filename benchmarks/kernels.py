"""Our kernels, XLA and torch, with a floor: a table for each op; and the kernels' best tiles.

    python benchmarks/kernels.py                          # a GPU; the same again goes on
    python benchmarks/kernels.py --op=nm_matmul --redo
    CUDA_VISIBLE_DEVICES=1 python benchmarks/kernels.py --shard=1/8   # one of 8 processes
    python benchmarks/kernels.py --merge                  # anywhere: what the processes stored
    python benchmarks/kernels.py --write_configs          # anywhere, from what is stored

Processes that share a GPU compile side by side and measure one at a time. The last command writes
which shapes the kernels take by themselves: those where they beat everything of XLA by a tenth. The
floor is reading operands and writing results at the bandwidth of a copy, or where it takes longer
the operations at the rate of a large dense product.
"""

import os
import re
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants room, too

import kernel_tables
import kernel_timing
import kernel_units
import records
from absl import app, flags
from kernel_choices import merge, write_configs

_OP = flags.DEFINE_string("op", "", "Only this one.")
_MATCH = flags.DEFINE_string("match", "", "Only places whose key has this regular expression.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_SECONDS = flags.DEFINE_float("seconds", 500, "No place is begun after these.")
_SHARD = flags.DEFINE_string("shard", "", "i/n: as process i of n, counted from 0.")
_REDO = flags.DEFINE_bool("redo", False, "Forgets what is stored of what is chosen.")
_MERGE = flags.DEFINE_bool("merge", False, "Joins what processes stored.")
_WRITE = flags.DEFINE_bool("write_configs", False, "Stores which shapes the kernels take.")

NAME = "kernels"
# What a device has of them does not change: they are measured once.
LIMITS = ("bandwidth", "bf16", "int8", "float32")


def measure(units: list[kernel_units.Unit], name: str) -> None:
    """Measures what is not stored yet, most important places first, until the time is up."""
    began = time.monotonic()
    before = records.load(NAME, _FOLDER.value) or {"cells": {}, "dense": {}}
    result = records.load(name, _FOLDER.value) or {"cells": {}, "dense": {}}
    if _REDO.value:
        chosen = {unit.key for unit in units}
        for record in (before, result):
            record["cells"] = {k: v for k, v in record["cells"].items() if k not in chosen}
    limits = {limit: before[limit] for limit in LIMITS if limit in before}
    if len(limits) < len(LIMITS):
        with kernel_timing.alone():
            limits = {"bandwidth": kernel_timing.copy_bandwidth(), **kernel_timing.peaks()}
    result |= limits
    print(", ".join(f"{k} {v / 1e12:.2f}e12/s" for k, v in limits.items()), flush=True)
    for unit in units:
        place = "cells" if unit.op else "dense"
        key = unit.key if unit.op else unit.key.removeprefix("dense ")
        if key in result[place] or key in before[place]:
            continue
        if time.monotonic() - began > _SECONDS.value:
            print(f"time is up before {unit.key}; run again to go on")
            break
        try:
            known = {"cells": before["cells"] | result["cells"]}
            rows = unit.measure(known, limits)
        except Exception as error:  # the others are still worth their time
            print(f"{unit.key} failed: {type(error).__name__}: {error}", flush=True)
            continue
        result[place][key] = {"op": unit.op, "kind": unit.kind, **rows} if unit.op else rows
        records.store(name, result, _FOLDER.value)
        print(f"[{time.monotonic() - began:.0f} s] {unit.key}", flush=True)
    if name == NAME:
        for op in dict.fromkeys(cell["op"] for cell in result["cells"].values()):
            print(f"\n{op}, microseconds\n{kernel_tables.op_table(result, op)}")


def main(argv: list[str]) -> None:
    """Measures, or writes what was measured."""
    del argv
    if _WRITE.value:
        write_configs(NAME)
        return
    if _MERGE.value:
        merge(NAME, _FOLDER.value)
        return
    units = kernel_units.units(_OP.value)
    if not units:
        ops = [*kernel_units.OPS, *kernel_units.cell_ops()]
        raise app.UsageError(f"--op={_OP.value} is unknown; valid: {', '.join(ops)}")
    units = [unit for unit in units if re.search(_MATCH.value, unit.key)]
    name = NAME
    if _SHARD.value:
        mine, of = map(int, _SHARD.value.split("/"))
        units = [unit for unit in units if unit.share % of == mine]
        name = f"{NAME}_part{mine}of{of}"
    measure(units, name)


if __name__ == "__main__":
    app.run(main)
