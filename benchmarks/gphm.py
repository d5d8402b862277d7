"""GP-HM on equations of high frequency: kernels, published and solved grid values, and a PINN.

    python benchmarks/gphm.py                    # the small experiment and the 1-D problems
    python benchmarks/gphm.py --only=small       # cells whose name begins so
    python benchmarks/gphm.py --large --steps=8000  # 2-D problems, for an accelerator
    python benchmarks/gphm.py --minutes=10 --folder=/tmp/results

Every cell is a run of the one entrypoint with a config of this repository and a few settings. A
cell that is stored is not run again; a run that was cut short goes on from its checkpoint. Errors
are those of the last step, and those at the step that the training criterion chooses; the best test
error of a run is not looked for.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gphm_cells import Cell, config_of, large, problems, small
from gphm_pinn import pinn
from records import load, store

import jaxlab
from jaxlab.training.experiment import Experiment
from jaxlab.training.logging import read_metrics
from jaxlab.training.run import Run

NAME = "gphm"


def settings_of(cell: Cell, workdir: Path) -> dict[str, Any]:
    """The config of a cell as a plain dict."""
    c = config_of(cell)
    c.workdir = str(workdir)
    return c.to_dict()


def measure(cell: Cell, workdir: Path) -> dict[str, Any]:
    """One run: errors, by step too, the frequencies of the largest weights, and the time."""
    done = workdir / "summary.json"
    # The time of a run that was cut short is that of its last part only, and so is not said.
    cut = (workdir / "config.json").exists() and not done.exists()
    if done.exists():
        summary = json.loads(done.read_text(encoding="utf-8"))
    else:
        summary = Run(Experiment(settings_of(cell, workdir))).train()
    lines = read_metrics(workdir / "metrics.jsonl")
    errors = {m["step"]: m["trained/relative_l2"] for m in lines if "trained/relative_l2" in m}
    with jax.enable_x64(True):
        params = jaxlab.load(workdir / "model.safetensors")
    params = params.get("first", params)
    tops = []
    for part in params["kernels"]:
        top = int(np.argmax(part["log_w"]))
        tops.append(abs(float(part["freq"][top])) if "freq" in part else None)
    return {
        "steps": summary["steps"],
        "error": summary["quality"]["trained"],
        "criterion": summary["metrics"]["trained"]["criterion"],
        "chosen": summary["chosen"],
        "errors": {str(step): error for step, error in errors.items()},
        "frequency": tops,
        "steps_per_second": summary["steps_per_second"],
        "seconds": None if cut else summary["wall_seconds"],
        # How many programs wanted a processor over the last minute, this one among them.
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Runs what is missing, and stores after every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="the 2-D problems instead")
    parser.add_argument("--only", default="", help="cells whose name begins so")
    parser.add_argument("--steps", type=int, default=0, help="of the cells as published")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after them")
    parser.add_argument("--folder", default="", help="where to store, instead of results/")
    parser.add_argument("--runs", default="runs/gphm", help="where the runs' folders are")
    arguments = parser.parse_args()
    name = f"{NAME}-large" if arguments.large else NAME
    settings = [f"OPENBLAS_NUM_THREADS={os.environ.get('OPENBLAS_NUM_THREADS', '')}"]
    result = load(name, arguments.folder) or {"settings": settings, "cells": {}}
    steps = arguments.steps or (20000 if arguments.large else 2000)
    cells = large(steps) if arguments.large else small() | problems(steps)
    began = time.perf_counter()
    chosen = {key: cell for key, cell in cells.items() if key.startswith(arguments.only)}
    for number, (key, cell) in enumerate(chosen.items()):
        if key in result["cells"]:
            continue
        if time.perf_counter() - began > 60 * arguments.minutes:
            print(f"time is up: {len(chosen) - number} cells are left")
            break
        print(f"[{number + 1}/{len(chosen)}] {key}", flush=True)
        workdir = Path(arguments.runs) / key.replace(" ", "-")
        result["cells"][key] = measure(cell, workdir)
        store(name, result, arguments.folder)
    stm = result["cells"].get("small stm 200")
    wanted = not arguments.large and "pinn".startswith(arguments.only)
    if wanted and stm and stm["seconds"] and "pinn" not in result:
        print("a network with random Fourier features, for as long", flush=True)
        with jax.enable_x64(False):
            result["pinn"] = pinn(seconds=stm["seconds"])
        store(name, result, arguments.folder)


if __name__ == "__main__":
    main()
