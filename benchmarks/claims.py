"""The runs behind docs/claims.md: a config and its dense baseline over several seeds.

    python benchmarks/claims.py --config=configs/digits_vit.py --seeds=5
    python benchmarks/claims.py --config=configs/nm_digits.py --seeds=4 --baseline=recipe=dense
    python benchmarks/claims.py --config=configs/monarch_digits.py --seeds=3 --also=dense_until=0.7

Every run goes into its own folder below --runs and is skipped once it is finished, so the command
can be stopped and started again. The figures go to benchmarks/results/, from where
benchmarks/publish.py takes them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from records import store

_CONFIG = flags.DEFINE_string("config", "configs/digits_vit.py", "The experiment.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of each variant.")
_RUNS = flags.DEFINE_string("runs", "runs/claims", "Folder of the run folders.")
_BASELINE = flags.DEFINE_string("baseline", "dense", "The config's argument for its baseline.")
_ALSO = flags.DEFINE_multi_string("also", [], "An argument of the config for a further variant.")
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Runs at the same time; more than 1 spoils speeds.")
_SETTINGS = flags.DEFINE_list("settings", [], "Settings that differ from the file's: name=value.")
_SHARED = flags.DEFINE_bool("shared", False, "Whether other programs kept the machine busy.")
ROOT = Path(__file__).parents[1]
KEPT = ("seed", "quality", "bytes", "steps", "steps_per_second", "wall_seconds", "data", "methods")


def start(variant: str, seed: int) -> tuple[Path, subprocess.Popen | None]:
    """Starts a run, unless it is finished; returns its folder."""
    name = Path(_CONFIG.value).stem + (f"-{variant}" if variant else "")
    folder = ROOT / _RUNS.value / f"{name}-{seed}"
    if (folder / "summary.json").exists():
        return folder, None
    chosen = {"": "", "dense": _BASELINE.value}.get(variant, variant)
    argument = ",".join(filter(None, (chosen, f"seed={seed}")))
    command = [
        sys.executable,
        "train.py",
        f"--config={_CONFIG.value}:{argument}",
        f"--config.workdir={folder}",
        *(f"--config.{setting}" for setting in _SETTINGS.value),
    ]
    return folder, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def main(argv: list[str]) -> None:
    """Runs what is missing and stores all of it."""
    del argv
    variants = ("", "dense", *_ALSO.value)
    todo = [(variant, seed) for variant in variants for seed in range(_SEEDS.value)]
    runs: list[dict[str, Any]] = []
    for i in range(0, len(todo), _AT_ONCE.value):
        started = [(v, *start(v, seed)) for v, seed in todo[i : i + _AT_ONCE.value]]
        for variant, folder, process in started:
            if process is not None and process.wait():
                sys.exit(f"claims: the run in {folder} failed; start it by hand to see why")
            summary = json.loads((folder / "summary.json").read_text())
            runs.append({"variant": variant or "default", **{k: summary[k] for k in KEPT}})
            quality = summary["quality"]
            shown = f"{quality['name']} {quality['finalized']:.4f}, {summary['wall_seconds']} s"
            print(f"{len(runs)}/{len(todo)} {folder.name}: {shown}", flush=True)
    result = {"at_once": _AT_ONCE.value, "settings": _SETTINGS.value, "runs": runs}
    result |= {"shared": True} if _SHARED.value else {}
    store(f"claims-{Path(_CONFIG.value).stem}", result)


if __name__ == "__main__":
    app.run(main)
