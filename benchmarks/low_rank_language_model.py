"""One-shot low rank in a byte-level decoder: held-out bits per byte, time and speed.

    python benchmarks/low_rank_language_model.py --minutes=9     # one GPU; the same again to go on
    python benchmarks/low_rank_language_model.py --size=small    # 2 CPU cores, 2 minutes

A dense decoder (configs/monarch_python_source.py, `dense`) is trained, unless its run folder is
there, and its MLP kernels are decomposed. A cell is a method at one kept fraction; each is stored
when it is done. The cells belong to one trained model: where that is another one, they are all
measured anew.
"""

import time

import jax
from absl import app, flags, logging
from low_rank_cells import OutOfTime, cells
from low_rank_decoder import Decoder
from records import load, store

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "The decoder.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of training; 0 for the size's.")
_RECOVERY = flags.DEFINE_integer("recovery", 0, "Steps of recovery; 0 for the size's.")
_BATCHES = flags.DEFINE_integer("batches", 0, "Batches of calibration; 0 for the size's.")
_MINUTES = flags.DEFINE_float("minutes", 1e9, "No cell is begun that would end after so many.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_RUNS = flags.DEFINE_string("runs", "runs/low_rank_language_model", "Folder of the run folders.")


def main(argv: list[str]) -> None:
    """Trains if need be, then measures what is missing, as long as there is time."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax reports every file it touches
    began, longest = time.perf_counter(), 0.0
    deadline = began + 60 * _MINUTES.value
    name = f"low_rank_language_model-{_SIZE.value}"
    decoder = Decoder(
        _SIZE.value,
        f"{_RUNS.value}-{_SIZE.value}",
        steps=_STEPS.value,
        recovery=_RECOVERY.value,
        batches=_BATCHES.value,
    )
    print(f"trained or loaded in {time.perf_counter() - began:.0f} s", flush=True)
    result = load(name, _FOLDER.value)
    if result is None or result["model"]["sha256"] != decoder.facts["sha256"]:
        result = {"model": decoder.facts, "cells": {}}
    for key, measure in cells(deadline).items():
        if key in result["cells"]:
            continue
        started = time.perf_counter()
        try:
            if started + longest > deadline:
                raise OutOfTime
            found = measure(decoder)
        except OutOfTime:
            print(f"{key}: no time; the same command goes on from here", flush=True)
            break
        seconds = time.perf_counter() - started
        longest = max(longest, seconds)
        result["cells"][key] = {**found, "wall_seconds": round(seconds, 2)}
        # Empty where a command that goes on needed no statistics.
        result["calibration"] = decoder.calibration or result.get("calibration", {})
        store(name, result, _FOLDER.value)
        bits = f"bits per byte {found['bits_per_byte']:.4f}, " if "bits_per_byte" in found else ""
        print(f"{key}: {bits}{seconds:.1f} s", flush=True)
    print(f"{time.perf_counter() - began:.0f} s in all on {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    app.run(main)
