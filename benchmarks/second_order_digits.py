"""Second-order optimizers on a digits MLP: training loss and test accuracy after 200 steps.

    python benchmarks/second_order_digits.py            # 2 CPU cores, minutes

An MLP of 64-64-64-10 in batches of 64. Every optimizer has four learning rates and five seeds; the
rate with the least mean training loss is the one that it is judged by. Pixels are taken between 0
and 1, and again with mean 0 and deviation 1, which is the easier problem. M-FAC has besides a grid
of its damping and its rate, with three seeds.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from records import load, store
from second_order_cells import Model, batching, model, program, settings, stacked
from second_order_results import DIGITS, INPUTS, key_of
from tqdm import tqdm

from jaxlab.training.experiment import build_task

_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of every optimizer and rate.")
_METHODS = flags.DEFINE_list("methods", [], "Labels of the optimizers; all if empty.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
STEPS, BATCH, ALL = 200, 64, 1200
SECTIONS: dict[str, Any] = {
    "task": {"name": "classify"},
    "data": {"name": "digits"},
    "model": {"name": "mlp", "hidden": (64, 64)},
    "batch_size": BATCH,
}
_SGD_RATES, _ADAM_RATES = (0.03, 0.1, 0.3, 1.0), (3e-3, 1e-2, 3e-2, 0.1)
_MFAC = {"name": "mfac", "m": 128, "damp": 1e-2, "momentum": 0.9}
_MKOR = {"name": "mkor", "update_every": 1}
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "SGD-momentum": ({"name": "sgd", "momentum": 0.9}, _SGD_RATES),
    "Adam": ({"name": "adamw"}, _ADAM_RATES),
    "MKOR": (_MKOR, _SGD_RATES),
    "MKOR ema": ({**_MKOR, "factor_update": "ema", "eps": 100.0}, _SGD_RATES),
    "MKOR every 10": ({**_MKOR, "update_every": 10}, _SGD_RATES),
    "MKOR without rescaling": ({**_MKOR, "rescale": "none"}, _SGD_RATES),
    "MKOR printed formula": ({**_MKOR, "factor_update": "paper"}, _SGD_RATES),
    "Eva": ({"name": "eva"}, _SGD_RATES),
    "M-FAC": (_MFAC, (1e-2, 3e-2, 0.1, 0.3)),
    "M-FAC published defaults": (
        {**_MFAC, "damp": 1e-5, "momentum": 0.0},
        (1e-4, 1e-3, 1e-2, 0.1),
    ),
}
DAMPINGS = (1e-1, 1e-2, 1e-3, 1e-5)
GRID_RATES = (3e-3, 1e-2, 3e-2, 0.1, 0.3)
GRID_SEEDS = 3
GRID_INPUTS = "pixels"


def grid_label(damp: float) -> str:
    """The label of a row of M-FAC's grid."""
    return f"M-FAC grid damp {damp:g}"


def rows(inputs: str) -> dict[str, tuple[dict[str, Any], tuple[float, ...], int]]:
    """By label, the optimizer's section, its rates, and its number of seeds."""
    every = {k: (optim, rates, _SEEDS.value) for k, (optim, rates) in METHODS.items()}
    if inputs == GRID_INPUTS:
        seeds = min(GRID_SEEDS, _SEEDS.value)
        every |= {grid_label(d): ({**_MFAC, "damp": d}, GRID_RATES, seeds) for d in DAMPINGS}
    return {k: v for k, v in every.items() if k in (_METHODS.value or every)}


class Digits(NamedTuple):
    """The model and its batches; all training and all held-out images, as one batch each."""

    model: Model
    train: Any
    held_out: Any

    def between_0_and_1(self) -> "Digits":
        """The same with the least pixel at 0 and the greatest at 1."""
        low, high = (fn(self.train["image"]) for fn in (jnp.min, jnp.max))
        change = lambda b: {**b, "image": (b["image"] - low) / (high - low)}  # noqa: E731
        data = self.model.data
        data = data._replace(batches=[change(b) for b in data.batches])
        return Digits(self.model._replace(data=data), change(self.train), change(self.held_out))


def digits(seeds: int) -> Digits:
    """Standardised images, as the data set has them."""
    config = settings("second_order_digits.py", SECTIONS, {}, steps=STEPS)
    whole = build_task({**config, "batch_size": ALL})
    train = {**whole.batch(0), "weight": np.ones(ALL, np.float32)}
    held_out = stacked(list(whole.eval_batches()))
    data = batching(config, seeds=seeds, every=STEPS)._replace(held_out=held_out)
    return Digits(model(config, data), stacked([train]), held_out)


def runs(of: Digits, optim: Mapping[str, Any], cells: Any) -> Iterator[dict[str, Any]]:
    """The results of an optimizer at (rate, seed)s, in order."""
    config = settings("second_order_digits.py", SECTIONS, optim, steps=STEPS)
    made = program(config, of.model)
    for rate, seed in cells:
        batches = of.model.data.batches[seed]
        state, _ = made.launch(made.start(seed), batches, jnp.float32(rate))
        loss = made.evaluate(state, of.train)["loss"]
        yield {
            "rate": rate,
            "seed": seed,
            "train_loss": loss if np.isfinite(loss) else None,
            "accuracy": made.evaluate(state, of.held_out)["accuracy"],
        }


def main(argv: list[str]) -> None:
    """Runs the optimizers that are missing and stores each."""
    del argv
    result = load(DIGITS, _FOLDER.value) or {"cells": {}}
    standardised = digits(_SEEDS.value)
    data = dict(zip(INPUTS, (standardised.between_0_and_1(), standardised), strict=True))
    for inputs, given in data.items():
        for label, (optim, rates, seeds) in rows(inputs).items():
            every = {key_of(inputs, label, r, s): (r, s) for r in rates for s in range(seeds)}
            missing = {key: at for key, at in every.items() if key not in result["cells"]}
            if missing:
                found = zip(missing, runs(given, optim, missing.values()), strict=True)
                bar = tqdm(found, f"{inputs}: {label}", total=len(missing), disable=None)
                result["cells"].update(bar)
                store(DIGITS, result, _FOLDER.value)
                jax.clear_caches()


if __name__ == "__main__":
    app.run(main)
