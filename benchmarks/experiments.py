"""Whole runs of the one entrypoint in one process, each stored when it is done.

What is stored already is not run again, so that a benchmark can be stopped and started.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from records import load, store

from jaxlab.training.experiment import Experiment
from jaxlab.training.logging import read_metrics
from jaxlab.training.run import Run

ROOT = Path(__file__).parents[1]
KEPT = ("seed", "quality", "metrics", "bytes", "steps", "steps_per_second", "wall_seconds", "data")


def config_of(name: str, argument: str) -> Any:
    """The ConfigDict of `configs/<name>.py:<argument>`."""
    spec = importlib.util.spec_from_file_location("config", ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def run_all(
    name: str,
    configs: Mapping[str, Callable[[], Any]],
    *,
    minutes: float = 1e9,
    folder: str = "",
) -> dict[str, Any]:
    """Runs the experiments that are missing from the stored results, as long as there is time.

    Args:
      name: of the stored results.
      configs: by key, a function that returns the ConfigDict.
      minutes: no run is begun that would end after so many, if it took as long as the longest.
      folder: where to store; benchmarks/results if empty.

    Returns:
      The stored result, {"runs": {key: figures}}.
    """
    logging.set_verbosity(logging.WARNING)  # orbax reports every file it touches
    began, longest = time.perf_counter(), 0.0
    result = load(name, folder) or {"runs": {}}
    todo = [key for key in configs if key not in result["runs"]]
    for number, key in enumerate(todo):
        if time.perf_counter() - began + longest > 60 * minutes:
            print("no time for another run; the same command goes on from here", flush=True)
            break
        started = time.perf_counter()
        result["runs"][key] = figures = _run(configs[key]())
        longest = max(longest, time.perf_counter() - started)
        store(name, result, folder)
        quality = figures["quality"]
        shown = f"{quality['name']} {quality['finalized']:.4f}, {figures['wall_seconds']} s"
        print(f"{number + 1}/{len(todo)} {key}: {shown}", flush=True)
        jax.clear_caches()
    return result


def _run(config: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        config.workdir = folder
        summary = Run(Experiment(config.to_dict())).train()
        lines = read_metrics(Path(folder) / "metrics.jsonl")
    phases = [line for line in lines if "loss_before" in line]
    return {**{key: summary[key] for key in KEPT}, "phases": phases}
