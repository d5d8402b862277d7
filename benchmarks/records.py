"""Results of benchmarks: one JSON file for each benchmark and device, with what they ran on."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


def store(name: str, result: dict[str, Any]) -> Path:
    """Writes a result beside those of other devices; returns the file."""
    device = jax.devices()[0].device_kind.replace(" ", "-")
    path = RESULTS / f"{name}-{device}.json"
    record = {
        "benchmark": name,
        "device": device,
        "devices": jax.device_count(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {p: metadata.version(p) for p in ("jax", "flax", "optax", "numpy")},
        "result": result,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"stored {path.relative_to(RESULTS.parents[1])}")
    return path
