"""Results of benchmarks: one JSON file for each benchmark and device, with what they ran on."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def load(name: str, folder: str = "") -> dict[str, Any] | None:
    """What was stored of a benchmark on this device, or None; looks into `folder` first."""
    for path in (_path(name, folder), _path(name, "")):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["result"]
    return None


def store(name: str, result: dict[str, Any], folder: str = "") -> Path:
    """Writes a result beside those of other devices, whole or not at all; returns the file."""
    path = _path(name, folder)
    device = path.stem.removeprefix(f"{name}-")
    record = {
        "benchmark": name,
        "device": device,
        "devices": jax.device_count(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in ("jax", "flax", "optax", "numpy")},
        "result": result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"stored {path.name}")
    return path


def _path(name: str, folder: str) -> Path:
    device = jax.devices()[0].device_kind.replace(" ", "-")
    return (Path(folder) if folder else RESULTS) / f"{name}-{device}.json"
