"""One-shot low rank on a digits MLP: accuracy by decomposition and rank.

    python benchmarks/low_rank_digits.py            # 2 CPU cores, minutes

A 64-256-256-10 MLP is trained for every seed; then both hidden kernels are decomposed to each rank
from 128 training images, whose inputs are those of the trained model.
"""

import tempfile
from typing import Any

import jax
from absl import app, flags
from records import load, store
from tqdm import tqdm

from jaxlab.config import base_config
from jaxlab.core.calibration import compress_calibrated
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the trained model and of its calibration.")
_RANKS = flags.DEFINE_list("ranks", ["4", "8", "12", "16", "24"], "Ranks of both kernels.")
CALIBRATION = 128
# Settings of the rule, and whether the layer's bias takes up the change of the mean.
METHODS: dict[str, tuple[dict[str, Any], bool]] = {
    "SVD": ({"decomposition": "svd"}, False),
    "ASVD": ({"decomposition": "asvd"}, False),
    "whitening": ({"decomposition": "whiten"}, False),
    "LoRD uncentred": ({"decomposition": "lord"}, False),
    "LoRD centred": ({"decomposition": "lord"}, True),
}


def config(seed: int, folder: str) -> Any:
    """The dense model's experiment."""
    c = base_config("low_rank_digits.py", f"seed={seed}")
    c.workdir = folder
    c.steps, c.batch_size = 800, CALIBRATION
    c.task.name, c.data.name = "classify", "digits"
    c.model.update(name="mlp", hidden=(256, 256))
    c.optim.update(lr=1e-3, schedule={"name": "constant"})
    return c.to_dict()


def cells(seed: int, bar: tqdm) -> dict[str, float]:
    """Held-out accuracy of the dense model and of every method at every rank."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Experiment(config(seed, folder)))
        found = {"dense": run.train()["quality"]["finalized"]}
        params = Experiment({**config(seed, folder), "init": folder}).initial_params()
        batches = [run.experiment.batch(0)]
        for name, (settings, correct_bias) in METHODS.items():
            for rank in _RANKS.value:
                rule = (r"layers/\d+/kernel", "low_rank", {**settings, "rank": int(rank)})
                small = compress_calibrated(
                    run.experiment.loss, params, [rule], batches, correct_bias=correct_bias
                )
                found[f"{name}, rank {rank}"] = run.evaluate(small)["accuracy"]
                bar.update()
    return found


def main(argv: list[str]) -> None:
    """Runs the seeds that are missing and stores each."""
    del argv
    result = load("low_rank_digits") or {"seeds": {}}
    todo = [s for s in range(_SEEDS.value) if str(s) not in result["seeds"]]
    with tqdm(total=len(todo) * len(METHODS) * len(_RANKS.value), unit="model") as bar:
        for seed in todo:
            with jax.default_matmul_precision("highest"):
                result["seeds"][str(seed)] = cells(seed, bar)
            store("low_rank_digits", result)
    for name in ("dense", *METHODS):
        row = {r: f"{name}, rank {r}" for r in _RANKS.value}
        seeds = list(result["seeds"].values())
        mean = {r: sum(s.get(k, s["dense"]) for s in seeds) / len(seeds) for r, k in row.items()}
        print(f"{name:16s}", *(f"{mean[r]:.3f}" for r in _RANKS.value))


if __name__ == "__main__":
    app.run(main)
