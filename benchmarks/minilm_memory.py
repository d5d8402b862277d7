"""Time and peak memory of `train.py --config=configs/minilm.py`, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from claim import ROOT

CONFIG = "configs/minilm.py"
# Width of the inputs of each MLP kernel, and how many layers have it.
_INPUTS, _LAYERS = (384, 1536), 6
# The kernel counts a parent's memory to the child that it starts: this parent has none to speak of.
_RUNNER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps({
    "status": status, "wall_seconds": round(time.perf_counter() - began, 1),
    "user_seconds": round(used.ru_utime, 1), "system_seconds": round(used.ru_stime, 1),
    "peak_bytes": 1024 * used.ru_maxrss,
}))
"""
_IDLE = "import jax, jaxlab; jax.block_until_ready(jax.numpy.zeros(1))"
# The same, with all that the command imports and the data that it reads.
_READY = """
import sys, train
from jaxlab.training.experiment import build_task
sys.path.insert(0, "benchmarks")
from experiments import config_of
build_task(config_of("minilm", "").to_dict()).batch
train.jax.block_until_ready(train.jax.numpy.zeros(1))
"""
# glibc keeps freed arrays of up to 32 MiB for itself unless it is told otherwise.
_RETURNING = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def measure(config: str = CONFIG) -> dict[str, Any]:
    """The command, and a process that imports jax and does nothing."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", f"--config={config}", f"--config.workdir={folder}"]
        run = _watch([sys.executable, *command])
        with open(f"{folder}/summary.json", encoding="utf-8") as file:
            summary = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        again = [*command[:-1], f"--config.workdir={folder}"]
        returning = _watch([sys.executable, *again], **_RETURNING)["peak_bytes"]
    idle, ready = (_watch([sys.executable, "-c", c])["peak_bytes"] for c in (_IDLE, _READY))
    model = summary["bytes"]["dense"]
    # Second moments, and vectors beside them.
    grams = 4 * _LAYERS * sum(d * d + 3 * d + 1 for d in _INPUTS)
    return {
        **run,
        "config": config,
        "quality": summary["quality"]["finalized"],
        "load_before": round(load, 2),
        "returning_peak_bytes": returning,
        "idle_bytes": idle,
        "ready_bytes": ready,
        "model_bytes": model,
        "gram_bytes": grams,
        "bound_bytes": 3 * model + grams + idle,
    }


def _watch(command: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if found.pop("status"):
        raise RuntimeError(f"minilm_memory: {command[1]} failed:\n{done.stderr[-2000:]}")
    return found
