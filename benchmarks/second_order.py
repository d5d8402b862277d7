"""Steps and seconds that optimizers take to the loss of a tuned AdamW: a convolutional network on
Fashion-MNIST, and a byte-level decoder.

    python benchmarks/second_order.py                   # one GPU; the same again to go on
    python benchmarks/second_order.py --only=decoder --budget_seconds=200
    python benchmarks/second_order.py --size=long       # three times the steps
    python benchmarks/second_order.py --size=small      # 2 CPU cores, seconds: does it run?

Every optimizer gets three learning rates on one seed, a factor of 3 apart, and further ones while
the best lies at an end of those tried, seven at most; then the other seeds at the rate that ends
with the least held-out loss. What is stored already is not run again.

The longer race goes to a given loss. Every optimizer gets three settings around the one that the
shorter race found, M-FAC with its damping, and the best is the one that is there first. A later
trial ends where it cannot be that any more, or after the shorter race's steps if its loss is then
more than a tenth above that of the best so far. Two GPUs share it by --only and --methods, each
with its own --folder; benchmarks/merge_parts.py puts the parts together.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from records import load, store
from second_order_cells import Program, batching, parameters, programs, run, settings
from second_order_methods import METHODS, SIZES, Trial
from second_order_results import NEVER, best, best_rate, key_of, setting_of, steps_to, tried

_SIZE = flags.DEFINE_enum("size", "large", list(SIZES), "Of models and runs.")
_ONLY = flags.DEFINE_list("only", ["cnn", "decoder"], "The models to run.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "The optimizers to run, in this order.")
_BUDGET = flags.DEFINE_float("budget_seconds", 480.0, "No run is begun that would end after these.")
_PATH = flags.DEFINE_string("path", "", "Folder of Fashion-MNIST's files, if not Debian's.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_MOST_RATES = 7
# A trial whose loss after the shorter race's steps is this many times the best one's ends there.
_HOPELESS = 1.1


class Sweep:
    """The cells of one size: those stored, and how the missing ones are run."""

    def __init__(self, size: str):
        self.began, self.longest = time.perf_counter(), 0.0
        self.name = f"second_order-{size}"
        self.size = SIZES[size]
        self.result: dict[str, Any] = load(self.name, _FOLDER.value) or {"models": {}, "cells": {}}

    def config(self, model: str, label: str, trial: Trial) -> dict[str, Any]:
        """The experiment of an optimizer on a model."""
        sections, method = self.size.models[model], METHODS[label]
        sections = {**sections, "model": {**sections["model"], **method.model.get(model, {})}}
        if _PATH.value and "path" in sections["data"]:
            sections["data"] = {**sections["data"], "path": _PATH.value}
        optim = {**sections["optim"], **method.optim, **method.on.get(model, {})}
        optim = {**optim, **self.size.optim.get(label, {}), **trial.optim}
        return settings("second_order.py", sections, optim, steps=sections["steps"])

    def wanted(self, model: str, label: str) -> list[tuple[Trial, int]]:
        """(trial, seed) of the cells that are missing, as far as is known by now."""
        missing = self.missing(model, label, [(t, 0) for t in self.size.trials(model, label)])
        if missing:
            return missing
        further = self.beyond(model, label) if self.size.further else []
        if further:
            return further
        found = best(self.result, model, label)
        if found is None:
            return []
        chosen = Trial(*setting_of(found))
        return self.missing(model, label, [(chosen, s) for s in range(1, self.size.seeds)])

    def possible(self, model: str, label: str) -> list[Trial]:
        """What the missing cells may be of: before the last trial, of any of them."""
        wanted = self.wanted(model, label)
        trials = [trial for trial, _ in wanted]
        decided = all(seed > 0 for _, seed in wanted)
        return trials if decided else [*trials, *self.size.trials(model, label)]

    def beyond(self, model: str, label: str) -> list[tuple[Trial, int]]:
        """The next rate on the side where the best is the last one, if any."""
        rates, rate = tried(self.result, model, label), best_rate(self.result, model, label)
        if rate is None or not 3 <= len(rates) < _MOST_RATES:
            return []
        ends = {rates[0]: rate / 3, rates[-1]: rate * 3}
        return [(Trial(float(f"{ends[rate]:.3g}")), 0)] if rate in ends else []

    def missing(self, model: str, label: str, cells: Any) -> list[tuple[Trial, int]]:
        """Those that are not stored."""
        done = self.result["cells"]
        return [(t, s) for t, s in cells if key_of(model, label, t.rate, s, t.optim) not in done]

    def stop(self, model: str, label: str) -> Callable[[Sequence[float]], bool]:
        """Whether a trial with these losses so far cannot be, or will not be, the best."""
        about, rival = self.size.models[model], best(self.result, model, label)
        if rival is None or "target" not in about:
            return lambda losses: False
        loss, every = about["target"], about["every"]
        most = steps_to(self.result, model, rival, loss)
        early = about["short"] // every

        def stops(losses: Sequence[float]) -> bool:
            if min(losses) <= loss:
                return False
            hopeless = (
                len(losses) == early and losses[-1] > _HOPELESS * rival["held_out"][early - 1]
            )
            return hopeless or len(losses) * every >= most

        return stops

    def cell(self, model: str, label: str, made: Program, at: tuple[Trial, int]) -> bool:
        """Runs one cell and stores it; whether there was time."""
        spent = time.perf_counter() - self.began
        if spent + self.longest > _BUDGET.value:
            print("no time for another run; the same command goes on from here", flush=True)
            return False
        (rate, optim), seed = at
        stop = {"stop": self.stop(model, label)} if seed == 0 else {}
        started = time.perf_counter()
        found = {"rate": rate, "seed": seed, **run(made, rate=rate, seed=seed, **stop)}
        if optim:
            found["options"] = dict(optim)
        took = time.perf_counter() - started
        self.longest = max(self.longest, took)
        key = key_of(model, label, rate, seed, optim)
        self.result["cells"][key] = found
        store(self.name, self.result, _FOLDER.value)
        shown = f"held-out loss {found['held_out'][-1]}, {min(found['seconds']):.3f} s a launch"
        if target := self.size.models[model].get("target"):
            steps = steps_to(self.result, model, found, target)
            shown += ", not there" if steps == NEVER else f", there after {steps:.0f} steps"
        print(f"{key}: {shown}; {took:.1f} s, {spent + took:.0f} in all", flush=True)
        return True


def main(argv: list[str]) -> None:
    """Compiles all that is missing, then runs it."""
    del argv
    sweep = Sweep(_SIZE.value)
    configs = {
        program_key(model, label, trial): sweep.config(model, label, trial)
        for model in _ONLY.value
        for label in _METHODS.value
        for trial in sweep.possible(model, label)
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
        kept = ("steps", "every", "batch_size", "model", "optim", "target", "short")
        sweep.result["models"][model] = {
            "parameters": parameters(config),
            **{k: section[k] for k in kept if k in section},
            "data": data[model].info,
        }
    read = time.perf_counter() - sweep.began
    made = programs(configs, data)
    spent = time.perf_counter() - sweep.began
    print(f"compiled {len(made)}: {spent:.0f} s, {read:.0f} of them for the data", flush=True)
    for model in _ONLY.value:
        for label in _METHODS.value:
            while missing := sweep.wanted(model, label):
                compiled = made[program_key(model, label, missing[0][0])]
                if not sweep.cell(model, label, compiled, missing[0]):
                    return


def program_key(model: str, label: str, trial: Trial) -> str:
    """The name of a program: the rate is its argument, other options are compiled."""
    return " ".join([model, label, *(f"{k} {v:g}" for k, v in trial.optim.items())])


if __name__ == "__main__":
    app.run(main)
