"""GP-HM on equations of high frequency: kernels, published and solved grid values, and a PINN.

    python benchmarks/gphm.py                    # the small experiment and the 1-D problems
    python benchmarks/gphm.py --only=small       # cells whose name begins so
    python benchmarks/gphm.py --large            # 2-D problems, for an accelerator
    python benchmarks/gphm.py --minutes=10 --folder=/tmp/results

Every cell is a run of the one entrypoint with a config of this repository and a few settings. A
cell that is stored is not run again; a run that was cut short goes on from its checkpoint. Errors
are those of the last step, and those at the step that the training criterion chooses; the best test
error of a run is not looked for.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from claim import ROOT
from gphm_pinn import pinn
from records import load, store

import jaxlab
from jaxlab.training.experiment import Experiment
from jaxlab.training.logging import read_metrics
from jaxlab.training.run import Run

NAME = "gphm"
KERNELS = ("stm", "gm", "matern", "se")
POINTS = (180, 200, 220)
SMALL_STEPS = 10000
SOLUTIONS = {
    "poisson_1d": ("single_sin", "sin_cos", "x_time_sinx", "mix_sin", "x2_add_sinx"),
    "allencahn_1d": ("single_sin", "sin_cos"),
}


class Cell(NamedTuple):
    """A run: a config, its argument, and settings by dotted name."""

    config: str
    arg: str
    settings: Mapping[str, Any]


def small() -> dict[str, Cell]:
    """u_xx = f, u = sin(100 x) on [0, pi], by kernel and number of points, as published."""
    cells = {}
    for points in POINTS:
        for kernel in KERNELS:
            problem = {"name": "poisson_1d", "points": points, "end": math.pi}
            every = {"eval.every": 1000, "checkpoint.every": 5000, "log.every": 1000}
            settings = {"task.problem": problem, "task.kernel": kernel, "steps": SMALL_STEPS}
            cells[f"small {kernel} {points}"] = Cell("pde_poisson_1d", "adam", settings | every)
    return cells


def problems(steps: int) -> dict[str, Cell]:
    """Every 1-D problem, solved in 200 steps, and as published in fewer steps than published."""
    cells = {}
    for name, solutions in SOLUTIONS.items():
        for solution in solutions:
            config, arg = f"pde_{name}", f"solution={solution}"
            cells[f"solve {name} {solution}"] = Cell(config, arg, {})
            every = {"eval.every": steps // 5, "checkpoint.every": steps // 5}
            cells[f"adam {name} {solution}"] = Cell(
                config, f"adam,{arg}", {"steps": steps, "log.every": 100} | every
            )
    return cells


def large(steps: int) -> dict[str, Cell]:
    """The 2-D problems, as published and solved."""
    cells = {}
    for config, arg in (
        ("pde_poisson_2d", ""),
        ("pde_poisson_2d", "solution=sin_add_cos"),
        ("pde_allencahn_2d", ""),
        ("pde_advection", ""),
    ):
        label = f"{config.removeprefix('pde_')} {arg.removeprefix('solution=')}".strip()
        every = {"eval.every": steps // 20, "checkpoint.every": steps // 4}
        adam = ",".join(filter(None, ("adam", arg)))
        cells[f"adam {label}"] = Cell(config, adam, {"steps": steps, "log.every": 100} | every)
        cells[f"solve {label}"] = Cell(config, arg, {})
    return cells


def settings_of(cell: Cell, workdir: Path) -> dict[str, Any]:
    """The config of a cell as a plain dict."""
    path = ROOT / "configs" / f"{cell.config}.py"
    spec = importlib.util.spec_from_file_location(cell.config, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config(cell.arg)
    c.workdir = str(workdir)
    for name, value in cell.settings.items():
        *sections, key = name.split(".")
        part = c
        for section in sections:
            part = part[section]
        part[key] = value
    return c.to_dict()


def measure(cell: Cell, workdir: Path) -> dict[str, Any]:
    """One run: errors, by step too, the frequencies of the largest weights, and the time."""
    began = time.perf_counter()
    run = Run(Experiment(settings_of(cell, workdir)))
    summary = run.train()
    lines = read_metrics(workdir / "metrics.jsonl")
    errors = {m["step"]: m["trained/relative_l2"] for m in lines if "trained/relative_l2" in m}
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
        "seconds": time.perf_counter() - began,
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
    result = load(name, arguments.folder) or {"cells": {}}
    steps = arguments.steps or (20000 if arguments.large else 5000)
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
    if stm and "pinn" not in result and not arguments.large and "pinn".startswith(arguments.only):
        print("a network with random Fourier features, for as long", flush=True)
        with jax.enable_x64(False):
            result["pinn"] = pinn(seconds=SMALL_STEPS / stm["steps_per_second"])
        store(name, result, arguments.folder)


if __name__ == "__main__":
    main()
