"""What Nsight Compute prints of kernels as CSV, and what it says of their bounds."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

# To seconds and bytes; other units stay as they are.
_SCALES = {
    **{unit: 1e-9 for unit in ("ns", "nsecond")},
    **{unit: 1e-6 for unit in ("us", "usecond")},
    **{unit: 1e-3 for unit in ("ms", "msecond")},
    "Kbyte": 1e3,
    "Mbyte": 1e6,
    "Gbyte": 1e9,
}
_PERCENT = r"\.avg\.pct_of_peak_sustained_(active|elapsed)$"
# What has a ceiling, and the counters that say how near it is; the largest of a name counts.
RESOURCES = {
    "memory": r"^(gpu__)?dram__?throughput" + _PERCENT,
    "L2": r"^lts__t_(sectors|bytes|tag_requests)|^lts__(throughput|d_sectors)",
    "L1 and shared memory": r"^l1tex__(throughput|data_pipe_lsu_wavefronts)|^l1tex__data_bank",
    "issue slots": r"^(sm|smsp)__(issue_active|inst_issued|inst_executed)" + _PERCENT,
    "ALU": r"^sm__(inst_executed_)?pipe_alu(_cycles_active)?" + _PERCENT,
    "FMA": r"^sm__(inst_executed_)?pipe_fma(heavy)?(_cycles_active)?" + _PERCENT,
    "FP64": r"^sm__(inst_executed_)?pipe_fp64(_cycles_active)?" + _PERCENT,
    "load and store": r"^sm__inst_executed_pipe_lsu" + _PERCENT,
    "tensor cores": r"^sm__(inst_executed_)?pipe_tensor",
}
_STALL = re.compile(r"^smsp__average_warps_issue_stalled_(\w+)_per_issue_active(\.ratio)?$")
_DURATION = "gpu__time_duration.sum"


def parse(text: str) -> list[dict[str, Any]]:
    r"""The launches of `ncu --csv --page raw`, in order: "Kernel Name", and numbers by metric.

    Seconds and bytes are plain; what is no number is left out.

    >>> table = '"ID","Kernel Name","gpu__time_duration.sum"\n"","","us"\n"0","f","1,500.0"'
    >>> parse(table)[0]["gpu__time_duration.sum"]
    0.0015
    """
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return []
    table = [line for line in lines[begin:] if line.startswith('"')]
    header, units, *rows = csv.reader(io.StringIO("\n".join(table)))
    return [_launch(header, units, row) for row in rows if len(row) == len(header)]


def _launch(header: list[str], units: list[str], row: list[str]) -> dict[str, Any]:
    launch: dict[str, Any] = {}
    for name, unit, value in zip(header, units, row, strict=True):
        if name == "Kernel Name":
            launch[name] = value
        elif "__" in name:
            try:
                launch[name] = float(value.replace(",", "")) * _SCALES.get(unit, 1.0)
            except ValueError:
                continue
    return launch


def blocks(launches: list[dict[str, Any]], mark: str) -> Iterator[list[dict[str, Any]]]:
    """Launches between those whose name has `mark`: what follows one, until the next."""
    block: list[dict[str, Any]] | None = None
    for launch in launches:
        if mark in launch["Kernel Name"]:
            if block is not None:
                yield block
            block = []
        elif block is not None:
            block.append(launch)
    if block is not None:
        yield block


def seconds(launch: Mapping[str, Any]) -> float:
    """How long a launch took."""
    return launch.get(_DURATION, 0.0)


def ceilings(launch: Mapping[str, Any]) -> dict[str, float]:
    """Percent of what each resource can do, nearest first."""
    found: dict[str, float] = {}
    for name, pattern in RESOURCES.items():
        values = [v for k, v in launch.items() if re.search(pattern, k) and re.search(_PERCENT, k)]
        if values:
            found[name] = max(values)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def stalls(launch: Mapping[str, Any]) -> dict[str, float]:
    """What warps that do not issue wait for, in warps to an issue, most first."""
    found = {
        match[1]: v
        for k, v in launch.items()
        if (match := _STALL.match(k)) and match[1] not in ("selected", "not_selected")
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def instructions(launch: Mapping[str, Any]) -> float | None:
    """That were executed, of warps."""
    names = ("sm__inst_executed.sum", "smsp__inst_executed.sum")
    return next((launch[n] for n in names if n in launch), None)


def kept(launch: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth storing of a launch."""
    named = ("dram__bytes", "lts__t_bytes.sum", "launch__registers", "launch__occupancy_limit")
    also = ("launch__block_size", "launch__grid_size", "sm__warps_active.avg.pct", "sm__cycles")
    wanted = [
        k
        for k in launch
        if k == "Kernel Name"
        or k.startswith((*named, *also))
        or _STALL.match(k)
        or k in (_DURATION, "sm__inst_executed.sum", "smsp__inst_executed.sum")
        or (re.search(_PERCENT, k) and any(re.search(p, k) for p in RESOURCES.values()))
    ]
    return {k: launch[k] for k in wanted}
