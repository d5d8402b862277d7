"""Whether an accelerator trains like the CPU: the loss curves of a config's first steps.

    python benchmarks/device_agreement.py --configs=configs/digits_vit.py,configs/python_source.py

Each config runs twice, on the CPU and on the accelerator, from the same parameters and batches.
The largest difference of the training losses must stay below 0.01.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from absl import app, flags
from records import store

_CONFIGS = flags.DEFINE_list(
    "configs", ["configs/digits_vit.py", "configs/python_source.py"], "Experiments to compare."
)
_STEPS = flags.DEFINE_integer("steps", 50, "Steps to compare.")
TOLERANCE = 1e-2
ROOT = Path(__file__).parents[1]


def losses(config: str, platform: str, folder: str) -> list[float]:
    """Training losses of every step of a run on one platform."""
    command = [
        sys.executable,
        "train.py",
        f"--config={config}",
        f"--config.workdir={folder}",
        f"--config.steps={_STEPS.value}",
        "--config.log.every=1",
        "--config.eval.every=0",
        "--config.checkpoint.every=0",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [m["loss"] for m in map(json.loads, lines) if "loss" in m]


def main(argv: list[str]) -> None:
    """Compares, prints and stores; exit status 1 if a config disagrees."""
    del argv
    platform = jax.devices()[0].platform
    if platform == "cpu":
        sys.exit("device_agreement: there is no accelerator here to compare with the CPU")
    result = {"steps": _STEPS.value, "tolerance": TOLERANCE, "largest_difference": {}}
    for config in _CONFIGS.value:
        with tempfile.TemporaryDirectory() as folder:
            accelerator = losses(config, "cuda" if platform == "gpu" else platform, f"{folder}/a")
            cpu = losses(config, "cpu", f"{folder}/b")
        difference = max(abs(a - b) for a, b in zip(accelerator, cpu, strict=True))
        result["largest_difference"][config] = difference
        print(f"{config}: largest difference of {len(cpu)} losses {difference:.2e}", flush=True)
    store("device_agreement", result)
    if max(result["largest_difference"].values()) > TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
