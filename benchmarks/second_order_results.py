"""How the stored runs of second-order optimizers are read."""

import statistics
from collections.abc import Mapping
from typing import Any

LARGE = "second_order-large"
LONG = "second_order-long"
DIGITS = "second_order_digits"
BASE = "AdamW"
INPUTS = {"pixels": "pixels between 0 and 1", "digits": "standardised pixels"}
MODELS = {"cnn": "a ResNet-8 on Fashion-MNIST", "decoder": "a byte-level decoder"}
# The optimizer that MKOR hands its gradients to.
INNER = {"cnn": "SGD-momentum", "decoder": "LAMB"}
NEVER = float("inf")


def key_of(
    model: str, label: str, rate: float, seed: int, options: Mapping[str, float] | None = None
) -> str:
    """The name of a cell."""
    tuned = "".join(f", {name} {value:g}" for name, value in (options or {}).items())
    return f"{model} {label}, rate {rate:g}{tuned}, seed {seed}"


def cells_of(result: Any, model: str, label: str) -> list[Any]:
    """All cells of an optimizer on a model."""
    prefix = f"{model} {label}, rate "
    return [cell for key, cell in result["cells"].items() if key.startswith(prefix)]


def final(cell: Any) -> float:
    """The held-out loss at the end (digits: training loss); infinite for a run that diverged."""
    loss = cell["train_loss"] if "train_loss" in cell else cell["held_out"][-1]
    return NEVER if loss is None else loss


def tried(result: Any, model: str, label: str) -> list[float]:
    """The rates that were tried, in order."""
    return sorted(cell["rate"] for cell in cells_of(result, model, label) if cell["seed"] == 0)


def best(result: Any, model: str, label: str) -> Any | None:
    """The best cell of the first seed: the one that ends with the least held-out loss.

    In a race to a given loss it is the one that is there first, and the least loss at the end
    decides between equals; what was stopped on the way is not the best. None if all diverged.
    """
    cells = [c for c in cells_of(result, model, label) if c["seed"] == 0 and final(c) < NEVER]
    loss = result.get("models", {}).get(model, {}).get("target")

    def merit(cell: Any) -> tuple[bool, float, float]:
        steps = 0.0 if loss is None else steps_to(result, model, cell, loss)
        return cell.get("stopped", False), steps, final(cell)

    return min(cells, key=merit, default=None)


def best_rate(result: Any, model: str, label: str) -> float | None:
    """The rate of the best cell; None if all diverged."""
    cell = best(result, model, label)
    return None if cell is None else cell["rate"]


def setting_of(cell: Any) -> tuple[float, dict[str, float]]:
    """The rate of a cell, and what else was tuned."""
    return cell["rate"], cell.get("options", {})


def runs_of(result: Any, model: str, label: str) -> list[Any]:
    """The runs with the best cell's setting, by seed."""
    chosen = best(result, model, label)
    cells = cells_of(result, model, label)
    runs = [c for c in cells if chosen is not None and setting_of(c) == setting_of(chosen)]
    return sorted(runs, key=lambda c: c["seed"])


def target(result: Any, model: str) -> float:
    """The loss to be reached: a given one, or the largest that a seed of AdamW ends with."""
    given = result["models"][model].get("target")
    return given or max(map(final, runs_of(result, model, BASE)))


def steps_to(result: Any, model: str, cell: Any, loss: float) -> float:
    """Steps until an evaluation finds the held-out loss no higher; infinite if none does."""
    every = result["models"][model]["every"]
    for number, value in enumerate(cell["held_out"], 1):
        if value is not None and value <= loss:
            return number * every
    return NEVER


def step_seconds(result: Any, model: str, cell: Any) -> float:
    """Median seconds of a step; the first launch warms up."""
    seconds = cell["seconds"][1:] or cell["seconds"]
    return statistics.median(seconds) / result["models"][model]["every"]


def step_ratios(result: Any, model: str, label: str, other: str) -> list[float]:
    """By seed, steps to the loss that the other run ends with, of all steps of that run."""
    pairs = zip(runs_of(result, model, label), runs_of(result, model, other), strict=False)
    steps = result["models"][model]["steps"]
    return [steps_to(result, model, mine, final(theirs)) / steps for mine, theirs in pairs]


def time_ratios(result: Any, model: str, label: str, other: str) -> list[float]:
    """By seed, seconds to the loss that the other run ends with, of that run's seconds."""
    pairs = zip(runs_of(result, model, label), runs_of(result, model, other), strict=False)
    ratios = step_ratios(result, model, label, other)
    seconds = [[step_seconds(result, model, cell) for cell in pair] for pair in pairs]
    return [r * mine / theirs for r, (mine, theirs) in zip(ratios, seconds, strict=True)]


def reach_ratios(result: Any, model: str, label: str, other: str) -> list[float]:
    """By seed, steps to the loss of the race as a multiple of the other optimizer's.

    Where the other does not get there, of all steps of the race: the ratio is below that.
    """
    loss, steps = target(result, model), result["models"][model]["steps"]
    pairs = zip(runs_of(result, model, label), runs_of(result, model, other), strict=False)
    reached = [[steps_to(result, model, cell, loss) for cell in pair] for pair in pairs]
    return [mine / min(theirs, steps) for mine, theirs in reached]


def is_whole(result: Any, model: str, label: str) -> bool:
    """Whether there are two seeds or more, or three rates that all diverged."""
    cells = cells_of(result, model, label)
    diverged = all(final(c) == NEVER for c in cells) and len(cells) >= 3
    return diverged or len({c["seed"] for c in cells}) > 1


def step_costs(result: Any, model: str, label: str, other: str) -> list[float]:
    """By seed, seconds of a step as a multiple of the other optimizer's."""
    pairs = zip(runs_of(result, model, label), runs_of(result, model, other), strict=False)
    return [step_seconds(result, model, a) / step_seconds(result, model, b) for a, b in pairs]
