"""One-shot low rank on a digits MLP: accuracy by decomposition and rank.

    python benchmarks/low_rank_digits.py                         # 2 CPU cores, minutes
    python benchmarks/low_rank_digits.py --init=lecun_normal     # the default start of the model

A 64-256-256-10 MLP is trained for every seed, from kernels of variance 2 / fan_in or 1 / fan_in:
how much of the start is left in the trained kernels decides how far the methods are apart. Then
both hidden kernels are decomposed to each rank from 128 training images, whose inputs are those of
the trained model.
"""

import tempfile
from typing import Any

import jax
from absl import app, flags
from records import load, store
from tqdm import tqdm

from jaxlab.config import base_config
from jaxlab.core.collect import collect_grams, put
from jaxlab.core.compress import Rule
from jaxlab.core.gram import Gram
from jaxlab.core.matrix import is_matrix, to_dense
from jaxlab.core.plan import Plan
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

_INIT = flags.DEFINE_enum("init", "he_normal", ["he_normal", "lecun_normal"], "Start of the model.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the trained model and of its calibration.")
_RANKS = flags.DEFINE_list("ranks", ["4", "8", "12", "16", "24"], "Ranks of both kernels.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
CALIBRATION = 128
PATHS = tuple(f"layers/{i}/kernel" for i in range(2))
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
    c.model.update(name="mlp", hidden=(256, 256), init=_INIT.value)
    c.optim.update(lr=1e-3, schedule={"name": "constant"})
    return c.to_dict()


def cells(seed: int, bar: tqdm) -> dict[str, float]:
    """Held-out accuracy of the dense model and of every method at every rank."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Experiment(config(seed, folder)))
        found = {"dense": run.train()["quality"]["finalized"]}
        params = Experiment({**config(seed, folder), "init": folder}).initial_params()
        grams = collect_grams(run.experiment.loss, params, [run.experiment.batch(0)], PATHS)
        for name, (settings, correct_bias) in METHODS.items():
            for rank in _RANKS.value:
                rule = (r"layers/\d+/kernel", "low_rank", {**settings, "rank": int(rank)})
                small = compressed(params, rule, grams, correct_bias=correct_bias)
                found[f"{name}, rank {rank}"] = run.evaluate(small)["accuracy"]
                bar.update()
    return found


def compressed(params: Any, rule: Rule, grams: dict[str, Gram], *, correct_bias: bool) -> Any:
    """What `compress_calibrated` makes of the statistics, which all methods share.

    As dense arrays, so that one compilation evaluates all.
    """
    how: dict[str, Any] = {"sequential": False, "key": None, "offered": None}
    plan = Plan(params, [rule], correct_bias=correct_bias, **how)
    made = plan.compress(params, {p: plan.told(p, grams[p], {}) for p in plan.asking("gram")})
    at = {path: gram.mean + gram.tail for path, gram in grams.items()}
    means = {path: (mean, mean) for path, mean in at.items()}
    made = put(made, plan.corrected(params, made, means))
    return jax.tree.map(to_dense, made, is_leaf=is_matrix)


def main(argv: list[str]) -> None:
    """Runs the seeds that are missing and stores each."""
    del argv
    benchmark = f"low_rank_digits-{_INIT.value}"
    result = load(benchmark, _FOLDER.value) or {"seeds": {}}
    todo = [s for s in range(_SEEDS.value) if str(s) not in result["seeds"]]
    with tqdm(total=len(todo) * len(METHODS) * len(_RANKS.value), unit="model") as bar:
        for seed in todo:
            with jax.default_matmul_precision("highest"):
                result["seeds"][str(seed)] = cells(seed, bar)
            store(benchmark, result, _FOLDER.value)
    for name in ("dense", *METHODS):
        row = {r: f"{name}, rank {r}" for r in _RANKS.value}
        seeds = list(result["seeds"].values())
        mean = {r: sum(s.get(k, s["dense"]) for s in seeds) / len(seeds) for r, k in row.items()}
        print(f"{name:16s}", *(f"{mean[r]:.3f}" for r in _RANKS.value))


if __name__ == "__main__":
    app.run(main)
