"""What bounds each kernel: hardware counters of one call, by Nsight Compute.

    python benchmarks/kernel_profile.py              # a GPU, with ncu on the PATH
    python benchmarks/kernel_profile.py --match="nm_matmul|int4"

Runs itself under `ncu`, which repeats each kernel for each group of counters with cold caches.
Packed weights are those of 8192 x 8192 and 16 rows, of other ops the first place of their table;
the configuration is the fastest stored one of this device, or else the first. Each call stands
between two marks, kernels with a name of their own, so that what XLA adds is counted with it.
"""

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import kernel_counters as counters
import kernel_units
import records
from absl import app, flags
from kernel_cases import OPS, cases
from kernel_places import ranked
from kernel_timing import inputs
from publish_kernel_profile import line

_MATCH = flags.DEFINE_string("match", "", "Only places whose key has this regular expression.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_NCU = flags.DEFINE_string("ncu", "ncu", "The profiler.")
_KEEP = flags.DEFINE_string("keep", "", "A file for all that it prints.")
_CHILD = flags.DEFINE_bool("child", False, "What runs under the profiler.")

NAME = "kernel_profile"
MARK = "atan2"
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "SchedulerStats",
    "WarpStateStats",
    "LaunchStats",
    "Occupancy",
)
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_bytes.sum",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
)
Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def chosen() -> list[str]:
    """Keys of the places that are profiled."""
    at = kernel_units.at(*kernel_units.FIRST)
    keys = [f"{op} {kind} {at}" for op, kinds in OPS.items() for kind in kinds]
    keys += [f"{op} {next(iter(m.CELLS))}" for op, m in kernel_units.cell_ops().items()]
    return [key for key in keys if re.search(_MATCH.value, key)]


def made(key: str, best: list[dict[str, Any]]) -> Made:
    """A place's kernel, one call's arguments, and what is stored with the counters."""
    op, kind = key.split(" ", 1)
    if op not in OPS:
        cell = kernel_units.cell_ops()[op].CELLS[kind]()
        problem, kernel, call = cell.problem, cell.kernel, cell.calls[0]
        configs = list(cell.configs)
    else:
        rows, n, k = kernel_units.FIRST
        ways = list(cases(op, kind.removesuffix(f" {kernel_units.at(rows, n, k)}"), rows, n, k))
        stored = best[0]["key"] if best else ways[0].problem.key
        case = next((c for c in ways if c.problem.key == stored), ways[0])
        problem, kernel = case.problem, case.kernel
        call = inputs(rows, k, 1)[0], *case.weights[0]
        configs = problem.plan.candidates(1)
    if best:
        configs.insert(0, type(configs[0])(**best[0]["config"]))
    n, k = problem.sizes
    about = {
        "key": problem.key,
        "config": vars(configs[0]),
        "weights": n * k if op in OPS else None,
    }
    return kernel(configs[0]), call, about


def child() -> None:
    """Calls every kernel once between marks, the profiler on; prints which."""
    stored = (records.load("kernels", _FOLDER.value) or {"cells": {}})["cells"]
    mark = jax.jit(jnp.arctan2)
    one = jnp.arange(1.0, 1025.0)
    jax.block_until_ready(mark(one, one))
    ready = []
    for key in chosen():
        try:
            best = ranked(stored.get(key, {}).get("ours", []))
            kernel, call, about = made(key, best)
            program = jax.jit(kernel).lower(*call).compile()
            jax.block_until_ready(program(*call))
            ready.append((key, about, program, call))
        except Exception as error:
            print(f"{key} failed: {type(error).__name__}: {error}", file=sys.stderr)
    cuda = ctypes.CDLL("libcuda.so.1")
    cuda.cuProfilerStart()
    for _, _, program, call in ready:
        jax.block_until_ready(mark(one, one))
        jax.block_until_ready(program(*call))
    jax.block_until_ready(mark(one, one))
    cuda.cuProfilerStop()
    for key, about, *_ in ready:
        print(f"profiled\t{key}\t{about!r}")


def main(argv: list[str]) -> None:
    """Runs under the profiler, reads what it prints, stores and shows it."""
    if _CHILD.value:
        child()
        return
    ncu = shutil.which(_NCU.value)
    if ncu is None:
        sys.exit(f"kernel_profile: --ncu={_NCU.value} is not on the PATH; it comes with CUDA")
    sections = [part for name in SECTIONS for part in ("--section", name)]
    settings = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    command = [ncu, *settings, "--profile-from-start", "off", *sections]
    command += ["--metrics", ",".join(METRICS), sys.executable, *argv[:1], "--child"]
    command += [f"--match={_MATCH.value}", f"--folder={_FOLDER.value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr[-4000:], file=sys.stderr)
    if _KEEP.value:
        Path(_KEEP.value).write_text(done.stdout, encoding="utf-8")
    keys = re.findall(r"^profiled\t(.*)\t(.*)$", done.stdout, re.MULTILINE)
    found = list(counters.blocks(counters.parse(done.stdout), MARK))[:-1]
    if not keys or len(found) != len(keys):
        sys.exit(
            f"kernel_profile: {len(keys)} kernels ran and {len(found)} were found between marks; "
            f"ncu ended with {done.returncode} and printed\n{done.stdout[-4000:]}"
        )
    result = records.load(NAME, _FOLDER.value) or {"cells": {}}
    for (key, about), launches in zip(keys, found, strict=True):
        main_one = max(launches, key=counters.seconds)
        result["cells"][key] = {
            **ast.literal_eval(about),
            "counters": counters.kept(main_one),
            "others": [
                [x["Kernel Name"], counters.seconds(x)] for x in launches if x is not main_one
            ],
        }
        print(line(key, result["cells"][key]))
    records.store(NAME, result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
