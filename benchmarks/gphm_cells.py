"""The runs of gphm.py: a config of this repository, its argument, and a few settings."""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from claim import ROOT

LABELS = {"stm": "StM", "gm": "GM", "matern": "Matern", "se": "SE"}
KERNELS = tuple(LABELS)
POINTS = (200, 180, 220)
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


def config_of(cell: Cell) -> Any:
    """The config of a cell, with its settings."""
    path = ROOT / "configs" / f"{cell.config}.py"
    spec = importlib.util.spec_from_file_location(cell.config, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config(cell.arg)
    for name, value in cell.settings.items():
        *sections, key = name.split(".")
        part = c
        for section in sections:
            part = part[section]
        part[key] = value
    return c


def small() -> dict[str, Cell]:
    """u_xx = f, u = sin(100 x) on [0, pi], by kernel and number of points, as published."""
    cells = {}
    for points in POINTS:
        for kernel in KERNELS:
            problem = {"name": "poisson_1d", "points": points, "end": math.pi}
            every = {"eval.every": 1000, "checkpoint.every": 5000, "log.every": 200}
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
            every["steps_per_call"] = 20
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
