"""Time and peak memory of `train.py --config=configs/minilm.py`, in a process of its own.

Most of the process is not arrays: interpreter, libraries, compiled programs and their compiler,
what the allocator keeps. The same command on an encoder an eighth as wide, with random parameters,
imports and compiles the same and has hardly any arrays; what the real one takes beyond it is what
compression takes.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from claim import ROOT
from safetensors.numpy import save_file

from jaxlab.interop.bert import EncoderConfig, minilm_folder, names

CONFIG = "configs/minilm.py"
_WIDE = EncoderConfig()
_NARROW = dataclasses.replace(_WIDE, hidden=_WIDE.hidden // 8, intermediate=_WIDE.intermediate // 8)
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
    """The command, the same on a narrow encoder, and processes that do nothing."""
    load = os.getloadavg()[0]
    run, summary = _run(config)
    returning, _ = _run(config, **_RETURNING)
    with tempfile.TemporaryDirectory() as folder:
        _write_narrow(Path(folder))
        sizes = (f"d_model={_NARROW.hidden}", f"d_mlp={_NARROW.intermediate}")
        flags = [f"--config.model.{size}" for size in sizes]
        narrow, narrow_summary = _run(config, *flags, JAXLAB_MINILM=folder)
    idle, ready = (_watch([sys.executable, "-c", c])["peak_bytes"] for c in (_IDLE, _READY))
    model, grams = summary["bytes"]["dense"], _gram_bytes(_WIDE)
    beyond = 3 * (model - narrow_summary["bytes"]["dense"]) + grams - _gram_bytes(_NARROW)
    return {
        **run,
        "config": config,
        "quality": summary["quality"]["finalized"],
        "load_before": round(load, 2),
        "returning_peak_bytes": returning["peak_bytes"],
        "narrow_peak_bytes": narrow["peak_bytes"],
        "idle_bytes": idle,
        "ready_bytes": ready,
        "model_bytes": model,
        "gram_bytes": grams,
        "beyond_bound_bytes": beyond,
        "bound_bytes": 3 * model + grams + idle,
    }


def _gram_bytes(cfg: EncoderConfig) -> int:
    """Second moments of the inputs of both MLP kernels of every layer, and vectors beside them."""
    return 4 * cfg.layers * sum(d * d + 3 * d + 1 for d in (cfg.hidden, cfg.intermediate))


def _write_narrow(folder: Path) -> None:
    """An encoder of the published depth, words and files, with narrow random parameters."""
    theirs = minilm_folder()
    settings = json.loads((theirs / "config.json").read_text(encoding="utf-8"))
    settings |= {"hidden_size": _NARROW.hidden, "intermediate_size": _NARROW.intermediate}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.copy(theirs / "tokenizer.json", folder)
    rng = np.random.default_rng(0)
    tensors = {
        name: 0.02 * rng.standard_normal(shape[::-1] if path[-1] == "kernel" else shape)
        for name, (path, shape) in names(_NARROW).items()
    }
    save_file(
        {name: x.astype(np.float32) for name, x in tensors.items()}, folder / "model.safetensors"
    )


def _run(config: str, *flags: str, **environment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the command used, and the summary that it left."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", f"--config={config}", f"--config.workdir={folder}", *flags]
        used = _watch([sys.executable, *command], **environment)
        return used, json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))


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
