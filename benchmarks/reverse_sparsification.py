"""Monarch for a part of the steps, dense for the rest, against dense and Monarch throughout.

    python benchmarks/reverse_sparsification.py --minutes=9     # one GPU; the same again to go on
    python benchmarks/reverse_sparsification.py --size=small --seeds=3 --steps=150   # 2 CPU cores

All runs take the same steps of configs/monarch_python_source.py with the same data and schedule.
"""

from functools import partial

from absl import app, flags
from experiments import config_of, run_all

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "Which variant of the config.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Seeds of each variant.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps; 0 for the config's.")
_MINUTES = flags.DEFINE_float("minutes", 1e9, "No run is begun that would end after so many.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")

# A small run would take as long to be judged as to be trained by all of the held-out text.
_EVAL_BYTES = {"small": 65_536, "large": 262_144}
VARIANTS = {
    "dense": "dense",
    "monarch": "",
    "dense from 0.9": "dense_from=0.9",
    "dense from 0.7": "dense_from=0.7",
}


def config(argument: str, seed: int):
    """The config of a variant; the checkpoint at the end is all that it keeps."""
    parts = [argument, f"size={_SIZE.value}", f"seed={seed}"]
    c = config_of("monarch_python_source", ",".join(filter(None, parts)))
    c.steps = _STEPS.value or c.steps
    c.data.eval_bytes = _EVAL_BYTES[_SIZE.value]
    # Of float32 products what the device finds fast: the model's own dtype decides the rest.
    c.matmul_precision = "default"
    return c


def main(argv: list[str]) -> None:
    """Every variant of a seed, then of the next."""
    del argv
    configs = {
        f"{label}, seed {seed}": partial(config, argument, seed)
        for seed in range(_SEEDS.value)
        for label, argument in VARIANTS.items()
    }
    name = f"reverse_sparsification-{_SIZE.value}"
    run_all(name, configs, minutes=_MINUTES.value, folder=_FOLDER.value)


if __name__ == "__main__":
    app.run(main)
