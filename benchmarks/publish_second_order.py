"""What was claimed of second-order optimizers, and the verdicts by the stored runs."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from claim import Claim, spread, stored, verdict
from publish_compression import at_least, with_error
from second_order_results import (
    BASE,
    DIGITS,
    INNER,
    INPUTS,
    LARGE,
    LONG,
    MODELS,
    NEVER,
    cells_of,
    final,
    is_whole,
    reach_ratios,
    step_costs,
    step_ratios,
    time_ratios,
)

# More gradients than a race has steps.
_WINDOW = 512


def judged(ratios: Sequence[float], most: float) -> str:
    """The verdict on ratios that are to be at most so much; a loss never reached is no ratio."""
    if NEVER in ratios or not ratios:
        return verdict(False)
    return at_least([most - r for r in ratios], 0.0)


def ratio_words(ratios: Sequence[float]) -> str:
    """Ratios by seed; of what is not reached in the steps of a run nothing more is known."""
    shown = ["not reached" if r == NEVER else f"{r:.3f}" for r in ratios]
    return f"by seed {', '.join(shown)}" if shown else "diverged at every rate"


class SweepClaim(Claim):
    """A claim whose `needs` are (model, optimizer), each run to its end."""

    def records(self) -> list[dict[str, Any]]:
        """The stored results that have all that the claim needs."""
        return [
            record
            for record in stored(self.benchmark)
            if all(is_whole(record["result"], *need) for need in self.needs)  # pyright: ignore
        ]


Ratios = Callable[[Any, str, str, str], list[float]]
COMMANDS = {
    LARGE: "python benchmarks/second_order.py",
    LONG: "python benchmarks/second_order.py --size=long",
}
_LONGER = "a given loss, where the tuned AdamW ended the shorter race"


def _against(
    text: str,
    source: str,
    model: str,
    label: str,
    other: str,
    ratios: Ratios,
    most: float,
    besides: Callable[[Any], str] = lambda r: "",
    race: str = LARGE,
) -> SweepClaim:
    return SweepClaim(
        f"{text} ({MODELS[model]})",
        source,
        COMMANDS[race],
        race,
        lambda r: ratio_words(ratios(r, model, label, other)) + besides(r),
        lambda r: judged(ratios(r, model, label, other), most),
        [(model, label), (model, other)],  # pyright: ignore
    )


# Digits.

_PRINTED = "MKOR printed formula"
_ON_DIGITS = "python benchmarks/second_order_digits.py"
_MKOR, _MFAC = "Mozaffari et al., 2023", "Frantar et al., 2021"
_COMPARED = ("SGD-momentum", "Adam", "MKOR")


def runs_by_rate(result: Any, inputs: str, label: str) -> dict[float, list[Any]]:
    """The runs of an optimizer by rate, those of a rate by seed."""
    found: dict[float, list[Any]] = {}
    for cell in cells_of(result, inputs, label):
        found.setdefault(cell["rate"], []).append(cell)
    return {rate: sorted(found[rate], key=lambda c: c["seed"]) for rate in sorted(found)}


def mean_loss(cells: Sequence[Any]) -> float:
    """The mean training loss; infinite if a seed diverged."""
    return statistics.mean(map(final, cells))


def digits_rate(result: Any, inputs: str, label: str) -> float:
    """The rate with the least mean training loss."""
    found = runs_by_rate(result, inputs, label)
    return min(found, key=lambda rate: mean_loss(found[rate]))


def of_seeds(result: Any, inputs: str, label: str, name: str) -> list[float]:
    """A figure of every seed at the best rate; a loss that is not finite is infinite."""
    cells = runs_by_rate(result, inputs, label)[digits_rate(result, inputs, label)]
    return [NEVER if c[name] is None else c[name] for c in cells]


def _loss_ratios(result: Any, inputs: str) -> list[float]:
    own, sgd, adam = (
        of_seeds(result, inputs, x, "train_loss") for x in ("MKOR", "SGD-momentum", "Adam")
    )
    return [a / min(b, c) for a, b, c in zip(own, sgd, adam, strict=True)]


def _accuracy_gaps(result: Any, inputs: str) -> list[float]:
    """By seed, how far MKOR is below the one of the two that is more accurate on average."""
    pair = [of_seeds(result, inputs, x, "accuracy") for x in ("SGD-momentum", "Adam")]
    own = of_seeds(result, inputs, "MKOR", "accuracy")
    return [b - a for a, b in zip(own, max(pair, key=statistics.mean), strict=True)]


def _mfac_gap(result: Any) -> list[float]:
    adam, mfac = (of_seeds(result, "pixels", x, "train_loss") for x in ("Adam", "M-FAC"))
    return [a - m for a, m in zip(adam, mfac, strict=True)]


def _of_digits(
    text: str, source: str, inputs: str, labels: Sequence[str], figures: Any, judge: Any
) -> SweepClaim:
    needs: Any = [(inputs, label) for label in labels]
    text = f"{text} ({INPUTS[inputs]})"
    return SweepClaim(text, source, _ON_DIGITS, DIGITS, figures, judge, needs)


def _digits_claims(inputs: str) -> list[Claim]:
    return [
        _of_digits(
            "MKOR's training loss on digits is at most a third of the better of tuned SGD with "
            "momentum and tuned Adam, in every seed",
            "ours", inputs, _COMPARED,
            lambda r: f"MKOR / the better, {ratio_words(_loss_ratios(r, inputs))}",
            lambda r: verdict(max(_loss_ratios(r, inputs)) <= 1 / 3),
        ),
        _of_digits(
            "MKOR's mean test accuracy on digits is at most 0.005 below the better of the two",
            "ours", inputs, _COMPARED,
            lambda r: f"below ± standard error {with_error(_accuracy_gaps(r, inputs))}; by seed "
            + ", ".join(f"{gap:+.4f}" for gap in _accuracy_gaps(r, inputs)),
            lambda r: at_least([0.005 - gap for gap in _accuracy_gaps(r, inputs)], 0.0),
        ),
    ]  # fmt: skip


SECOND_ORDER_CLAIMS: list[Claim] = [
    *(claim for inputs in INPUTS for claim in _digits_claims(inputs)),
    _of_digits(
        "MKOR's factor update as it is printed does not train: it diverges at every rate",
        "ours", "pixels", [_PRINTED],
        lambda r: "; ".join(
            f"rate {rate:g}: {sum(final(c) == NEVER for c in cells)} of {len(cells)} seeds"
            for rate, cells in runs_by_rate(r, "pixels", _PRINTED).items()
        ) + " end without a finite loss",
        lambda r: verdict(all(final(c) == NEVER for c in cells_of(r, "pixels", _PRINTED))),
    ),
    _of_digits(
        "M-FAC's mean training loss on digits is not above tuned Adam's",
        _MFAC, "pixels", ["M-FAC", "Adam"],
        lambda r: ", ".join(
            f"{x} {spread(of_seeds(r, 'pixels', x, 'train_loss'))}" for x in ("M-FAC", "Adam")
        ) + f"; {len(_mfac_gap(r))} seeds",
        lambda r: at_least(_mfac_gap(r), 0.0),
    ),
    *(
        _against(
            f"{label} needs at most 0.8 of the steps of its inner optimizer, {INNER[model]}, to "
            "the loss where that ends",
            _MKOR, model, label, INNER[model], step_ratios, 0.8,
        )
        for model in MODELS
        for label in ("MKOR every step", "MKOR every 10", "MKOR-H")
    ),
    *(
        _against(
            f"MKOR every 10 takes less time than {INNER[model]} to the loss where that ends",
            _MKOR, model, "MKOR every 10", INNER[model], time_ratios, 1.0,
        )
        for model in MODELS
    ),
    *(
        _against(
            f"A training step with MKOR every 10 takes at most 1.10 times one with {INNER[model]}",
            "ours", model, "MKOR every 10", INNER[model], step_costs, 1.1, race=race,
        )
        for model in MODELS
        for race in (LARGE, LONG)
    ),
    *(
        _against(
            f"{label} needs fewer steps than {other} to the loss where that ends",
            "ours", model, label, other, step_ratios, 1.0,
        )
        for model in MODELS
        for label, other in (("MKOR every step", "Muon"), ("Muon", BASE))
    ),
    *(
        _against(
            f"M-FAC with a window for {_WINDOW} gradients, which is never full, needs no more "
            "steps than AdamW to the loss where that ends",
            _MFAC, model, f"M-FAC m={_WINDOW}", BASE, step_ratios, 1.0,
            lambda r, model=model: f"; {r['models'][model]['steps']} steps do not fill the window, "
            f"whose sum is divided by {_WINDOW} throughout; damping fixed at 0.01",
        )
        for model in MODELS
    ),
    *(
        _against(
            f"{label} takes at most {most:g} times the steps of {other} to {_LONGER}",
            source, model, label, other, reach_ratios, most, race=LONG,
        )
        for model in MODELS
        for label, other, most, source in (
            ("MKOR every step", INNER[model], 0.8, _MKOR),
            ("MKOR every 10", INNER[model], 0.8, _MKOR),
            ("MKOR-H", INNER[model], 0.8, _MKOR),
            ("MKOR every step", "Muon", 1.0, "ours"),
            ("Muon", BASE, 1.0, "ours"),
            ("M-FAC m=128", BASE, 1.0, _MFAC),
            (f"M-FAC m={_WINDOW}", BASE, 1.0, _MFAC),
        )
    ),
]  # fmt: skip
