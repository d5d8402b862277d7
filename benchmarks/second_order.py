"""Steps and seconds that optimizers take to the loss of a tuned AdamW: a convolutional network on
Fashion-MNIST, and a byte-level decoder.

    python benchmarks/second_order.py                   # one GPU; the same again to go on
    python benchmarks/second_order.py --only=decoder --budget_seconds=200
    python benchmarks/second_order.py --size=small      # 2 CPU cores, seconds: does it run?

Every optimizer gets three learning rates on one seed, a factor of 3 apart, and further ones while
the best lies at an end of those tried, seven at most; then the other seeds at the rate that ends
with the least held-out loss. What is stored already is not run again.
"""

import time
from typing import Any

from absl import app, flags
from publish_second_order import best_rate, key_of, tried
from records import load, store
from second_order_cells import Program, batching, parameters, programs, run, settings
from second_order_methods import METHODS, RATES, SIZES, Method

_SIZE = flags.DEFINE_enum("size", "large", ["small", "large"], "Of models and runs.")
_ONLY = flags.DEFINE_list("only", ["cnn", "decoder"], "The models to run.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "The optimizers to run, in this order.")
_BUDGET = flags.DEFINE_float("budget_seconds", 480.0, "No run is begun that would end after these.")
_PATH = flags.DEFINE_string("path", "", "Folder of Fashion-MNIST's files, if not Debian's.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_MOST_RATES = 7


class Sweep:
    """The cells of one size: those stored, and how the missing ones are run."""

    def __init__(self, size: str):
        self.began, self.longest = time.perf_counter(), 0.0
        self.name = f"second_order-{size}"
        self.size = SIZES[size]
        self.result: dict[str, Any] = load(self.name, _FOLDER.value) or {"models": {}, "cells": {}}

    def config(self, model: str, method: Method) -> dict[str, Any]:
        """The experiment of an optimizer on a model."""
        sections = self.size.models[model]
        sections = {**sections, "model": {**sections["model"], **method.model.get(model, {})}}
        if _PATH.value and "path" in sections["data"]:
            sections["data"] = {**sections["data"], "path": _PATH.value}
        optim = {**sections["optim"], **method.optim, **method.on.get(model, {})}
        return settings("second_order.py", sections, optim, steps=sections["steps"])

    def wanted(self, model: str, label: str) -> list[tuple[float, int]]:
        """(rate, seed) of the cells that are missing, as far as is known by now."""
        centre = METHODS[label].rate[model]
        first = [(_rounded(centre * factor), 0) for factor in RATES[: self.size.rates]]
        missing = self.missing(model, label, first)
        if missing:
            return missing
        further = self.beyond(model, label)
        if further:
            return further
        rate = best_rate(self.result, model, label)
        others = [] if rate is None else [(rate, seed) for seed in range(1, self.size.seeds)]
        return self.missing(model, label, others)

    def beyond(self, model: str, label: str) -> list[tuple[float, int]]:
        """The next rate on the side where the best is the last one, if any."""
        rates, best = tried(self.result, model, label), best_rate(self.result, model, label)
        if best is None or not 3 <= len(rates) < _MOST_RATES:
            return []
        ends = {rates[0]: best / 3, rates[-1]: best * 3}
        return [(_rounded(ends[best]), 0)] if best in ends else []

    def missing(self, model: str, label: str, cells: Any) -> list[tuple[float, int]]:
        """Those that are not stored."""
        return [c for c in cells if key_of(model, label, *c) not in self.result["cells"]]

    def cell(self, model: str, label: str, made: Program, at: Any) -> bool:
        """Runs one cell and stores it; whether there was time."""
        if time.perf_counter() - self.began + self.longest > _BUDGET.value:
            print("no time for another run; the same command goes on from here", flush=True)
            return False
        rate, seed = at
        started = time.perf_counter()
        found = {"rate": rate, "seed": seed, **run(made, rate=rate, seed=seed)}
        self.longest = max(self.longest, time.perf_counter() - started)
        self.result["cells"][key_of(model, label, rate, seed)] = found
        store(self.name, self.result, _FOLDER.value)
        shown = f"held-out loss {found['held_out'][-1]}, {min(found['seconds']):.3f} s a launch"
        print(f"{model} {label}, rate {rate:g}, seed {seed}: {shown}", flush=True)
        return True


def main(argv: list[str]) -> None:
    """Compiles all that is missing, then runs it."""
    del argv
    sweep = Sweep(_SIZE.value)
    configs = {
        f"{model} {label}": sweep.config(model, METHODS[label])
        for model in _ONLY.value
        for label in _METHODS.value
        if sweep.wanted(model, label)
    }
    data = {}
    for key, config in configs.items():
        model = key.split(" ")[0]
        if model in data:
            continue
        section = sweep.size.models[model]
        data[model] = batching(
            config, seeds=sweep.size.seeds, every=section["every"], options=sweep.size.options
        )
        sweep.result["models"][model] = {
            "parameters": parameters(config),
            **{k: section[k] for k in ("steps", "every", "batch_size", "model", "optim")},
            "data": data[model].info,
        }
    made = programs(configs, data)
    print(f"compiled {len(made)}: {time.perf_counter() - sweep.began:.0f} s", flush=True)
    for key, compiled in made.items():
        model, label = key.split(" ", 1)
        while missing := sweep.wanted(model, label):
            if not sweep.cell(model, label, compiled, missing[0]):
                return


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


if __name__ == "__main__":
    app.run(main)
