"""The generated part of docs/second_order.md: digits, and runs to a fixed held-out loss."""

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from claim import ROOT, machine, spread, stored
from numerics_page import table
from publish_second_order import digits_rate, mean_loss, of_seeds, runs_by_rate
from second_order_methods import METHODS
from second_order_results import (
    BASE,
    DIGITS,
    INPUTS,
    LARGE,
    LONG,
    MODELS,
    NEVER,
    best,
    cells_of,
    final,
    runs_of,
    setting_of,
    step_seconds,
    steps_to,
    target,
    tried,
)

FIRST_ORDER = ("SGD-momentum", "Adam", "AdamW", "LAMB", "Muon")
_GRID = "M-FAC grid damp "
# By race, its plot.
CURVES = {LARGE: "second_order.png", LONG: "second_order_long.png"}


def second_order_page() -> str:
    """What stands between the markers of docs/second_order.md."""
    parts = [part for record in stored(DIGITS) for part in _digits(record)]
    parts += [part for race in CURVES for record in stored(race) for part in _races(record)]
    # Tables and headings are lines of their own, and stay.
    return "\n\n".join(p if p[0] in "|#!" else _wrapped(p) for p in parts) or "Not run."


def _digits(record: dict[str, Any]) -> list[str]:
    result = record["result"]
    parts = ["## Digits", f"Machine: {machine(record)}.{_versions(record)}"]
    for inputs, about in INPUTS.items():
        labels = _labels(result, inputs)
        rows = [_digits_row(result, inputs, label) for label in labels if _GRID not in label]
        head = ["optimizer", "best rate of", "training loss", "test accuracy", "seeds"]
        parts += [f"### {about.capitalize()}", table(head, rows)]
    dampings = [label for label in _labels(result, "pixels") if _GRID in label]
    if dampings:
        rates = list(runs_by_rate(result, "pixels", dampings[0]))
        parts += [
            "### M-FAC's damping and rate",
            "Mean training loss, pixels between 0 and 1, 128 gradients, momentum 0.9.",
            table(
                ["damping", *(f"rate {rate:g}" for rate in rates)],
                [_grid_row(result, label) for label in dampings],
            ),
        ]
    return parts


def _digits_row(result: Any, inputs: str, label: str) -> list[str]:
    rate = digits_rate(result, inputs, label)
    found = runs_by_rate(result, inputs, label)
    losses, accuracies = (
        of_seeds(result, inputs, label, name) for name in ("train_loss", "accuracy")
    )
    return [
        label,
        _rates(rate, list(found)),
        f"{losses.count(NEVER)} diverged" if NEVER in losses else spread(losses),
        spread(accuracies),
        str(len(losses)),
    ]


def _grid_row(result: Any, label: str) -> list[str]:
    losses = [mean_loss(cells) for cells in runs_by_rate(result, "pixels", label).values()]
    shown = ["diverged" if x == NEVER else f"{x:.4f}" for x in losses]
    return [label.removeprefix(_GRID), *shown]


def _races(record: dict[str, Any]) -> list[str]:
    result, race = record["result"], record.get("benchmark", LARGE)
    heading = {LARGE: "Races", LONG: "Longer races to a given loss"}[race]
    parts = [f"## {heading}"]
    if (ROOT / "docs" / CURVES[race]).exists():
        words = "Mean held-out loss of the seeds by steps and by seconds; dotted, the target"
        parts.append(f"![{words}]({CURVES[race]})")
    for model, title in MODELS.items():
        if not runs_of(result, model, BASE):
            continue
        about = result["models"][model]
        loss = target(result, model)
        rows = [_race_row(result, model, label, loss) for label in _labels(result, model)]
        head = [
            "optimizer", "best setting of", "held-out loss at the end", "steps", "of AdamW's",
            "ms a step", "seconds", "of AdamW's", "seeds that reach it",
        ]  # fmt: skip
        windows = (_window_words(label, about) for label in _labels(result, model))
        parts += [
            f"### {title[0].upper()}{title[1:]}",
            f"{about['parameters'] / 1e6:.2f} million parameters, {about['steps']} steps of "
            f"{about['batch_size']}, held-out loss every {about['every']}. "
            f"{_target_words(about, loss)} {' '.join(filter(None, windows))}".strip(),
            f"Machine: {machine(record)}.{_versions(record)}",
            table(head, rows),
            _switch_words(result, model),
        ]
    return [part for part in parts if part]


def _target_words(about: dict[str, Any], loss: float) -> str:
    """What is to be reached, and what is known of those that do not reach it."""
    means = "Steps and seconds are means of the seeds that reach it."
    if "target" in about:
        return (
            f"The target is {loss:.4f}, where the slowest seed of the tuned {BASE} ended the race "
            f"of {about['short']} steps on an H100. {means} A row without steps does not reach it "
            f"in {about['steps']} steps. Three settings of every optimizer were tried on the first "
            "seed; the second and the third ended early where they could not win any more, or "
            f"were a tenth behind after {about['short']} steps."
        )
    return (
        f"The target is {loss:.4f}, the largest loss that a seed of the tuned {BASE} ends with. "
        f"{means} No run goes on beyond the {about['steps']} steps of {BASE}'s: a row without "
        "steps is censored there, and says no more than that it takes longer."
    )


def _window_words(label: str, about: dict[str, Any]) -> str:
    """What is to be known of a window of gradients that a run does not fill, or only later."""
    optim, steps = METHODS[label].optim if label in METHODS else {}, about["steps"]
    m = optim.get("m", 0)
    if m > steps:
        return (
            f"{label}: the window never fills in {steps} steps, and the sum over it is divided by "
            f"{m} throughout; the damping is fixed at {optim['damp']:g}."
        )
    if m and "target" in about:
        return (
            f"{label}: the window is full after {m} steps, and until then the sum over it is "
            "divided by the gradients that it holds; damping and rate are tuned together."
        )
    return ""


def _switch_words(result: Any, model: str) -> str:
    """When hybrids fell back, as far as it was stored."""
    labels = [x for x in _labels(result, model) if x in METHODS and METHODS[x].optim.get("hybrid")]
    found = []
    for label in labels:
        runs = runs_of(result, model, label)
        steps = [c["switched_at"] for c in runs if "switched_at" in c]
        said = ", ".join("not at all" if step is None else f"at step {step}" for step in steps)
        by_seed = f"fell back, by seed: {said}" if len(steps) == len(runs) else None
        unknown = "the stored runs do not say whether and when it fell back"
        found.append(f"{label}: {by_seed or unknown}.")
    return " ".join(found)


def _versions(record: dict[str, Any]) -> str:
    """What a record says of the software beyond `machine`, and what it does not."""
    versions = record["versions"]
    return (
        f" Also optax {versions['optax']}, numpy {versions['numpy']}, Python {record['python']}. "
        "Versions are those of the call that stored last; the record names no revision of this "
        "library."
    )


def _race_row(result: Any, model: str, label: str, loss: float) -> list[str]:
    chosen, cells = best(result, model, label), runs_of(result, model, label)
    if chosen is None:
        return [label, "all diverged", *[""] * 6, f"0 of {len(cells_of(result, model, label))}"]
    reached = [c for c in cells if steps_to(result, model, c, loss) < NEVER]
    steps, seconds = _to(result, model, reached, loss)
    base_cells = runs_of(result, model, BASE)
    base_steps, base_seconds = _to(result, model, base_cells, loss)
    each = statistics.mean(step_seconds(result, model, c) for c in cells)
    ends = [final(c) for c in cells if final(c) < NEVER]
    return [
        label,
        _settings(result, model, label, chosen),
        spread(ends) + (f" ({len(cells) - len(ends)} diverged)" if len(ends) < len(cells) else ""),
        f"{steps:.0f}" if reached else "",
        f"{steps / base_steps:.2f}" if reached else "",
        f"{1e3 * each:.2f}",
        f"{seconds:.2f}" if reached else "",
        f"{seconds / base_seconds:.2f}" if reached else "",
        f"{len(reached)} of {len(cells)}",
    ]


def _to(result: Any, model: str, cells: Sequence[Any], loss: float) -> tuple[float, float]:
    """Mean steps and seconds to a loss that all of the runs reach; 0 without any."""
    steps = [steps_to(result, model, c, loss) for c in cells] or [0.0]
    seconds = [
        count * step_seconds(result, model, c) for count, c in zip(steps, cells, strict=False)
    ]
    return statistics.mean(steps), statistics.mean(seconds or [0.0])


def _settings(result: Any, model: str, label: str, chosen: Any) -> str:
    """The best setting among those tried, with what was tuned besides the rate."""
    if "options" not in chosen:
        return _rates(chosen["rate"], tried(result, model, label))
    first = [setting_of(c) for c in cells_of(result, model, label) if c["seed"] == 0]
    tuned = [_setting(*each) for each in sorted(first, key=lambda each: each[0])]
    return f"{_setting(*setting_of(chosen))} of {', '.join(tuned)}"


def _setting(rate: float, options: dict[str, float]) -> str:
    return " ".join([f"{rate:g}", *(f"({name} {value:g})" for name, value in options.items())])


def _rates(rate: float, of: Sequence[float]) -> str:
    """The rate among those tried; a rate at the end of its grid might be better beyond it."""
    edge = len(of) > 1 and rate in (min(of), max(of))
    return f"{rate:g} of {', '.join(f'{x:g}' for x in of)}" + (" (at the edge)" if edge else "")


def _labels(result: Any, model: str) -> list[str]:
    """The optimizers of a model: first order, then the others by name."""
    keys = (key for key in result["cells"] if key.startswith(f"{model} "))
    labels = {key.removeprefix(f"{model} ").split(", rate ")[0] for key in keys}
    first = [label for label in FIRST_ORDER if label in labels]
    # A damping of 1e-05 comes after 0.1, and the window of 128 before that of 512.
    return first + sorted(labels.difference(first), key=lambda x: (x.split(" damp ")[0], len(x), x))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)
