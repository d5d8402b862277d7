"""What an N:M training run costs in FLOPs, and how many steps each recipe may take for equal cost.

Own arithmetic: a training step costs a layer three times its forward pass (forward, gradient of the
input, gradient of the weight). With a fraction rho of the weights, the first two cost rho each; so
does the third, unless pruned weights get a gradient. Weights that are only scaled down cost as much
as dense ones. It counts what hardware that skips every pruned weight would do: masks, decay terms
and the optimizer are left out, and no timing follows from it.
"""

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlab.core.registry import suggest
from jaxlab.methods.nm.recipes import RECIPES
from jaxlab.methods.nm.schedule import NMConfig, nm_frames, nm_phase


def nm_train_flops(
    cfg: NMConfig, layer_flops: Mapping[str, float], lengths: Mapping[str, int] | None = None
) -> dict[str, float]:
    """FLOPs of a whole training run, and of inference after it, beside those of a dense run.

    Args:
      cfg: the schedule; `include` and `overrides` say which layers it applies to.
      layer_flops: FLOPs of the forward pass of one step, by the path of the layer's kernel. What
        no pattern matches (attention scores, heads) counts as dense.
      lengths: of the axes that are grouped, by path, where a schedule widens its groups and they
        might not divide; as `nm_frames` has it.

    Returns:
      "train" and "dense", of all steps; "ratio", the first by the second; "inference", of one
      forward pass; "inference_ratio", that by the dense one.

    Raises:
      ValueError: total_steps is 0, FLOPs are negative or all 0, or a pattern matches no layer.

    >>> from jaxlab.methods.nm.mask import NMPattern
    >>> cfg = NMConfig(NMPattern(1, 4), "ste", total_steps=10, include=("up",))
    >>> nm_train_flops(cfg, {"up": 8.0, "scores": 2.0})["train"]  # 10 (8 (2 / 4 + 1) + 2 * 3)
    180.0
    """
    forward = _checked(cfg, layer_flops)
    rule = RECIPES[cfg.recipe]
    patterns = cfg.patterns_of(forward, owner="nm_train_flops") if rule.prunes else {}

    @functools.cache
    def units(pattern, length):
        return _units(dataclasses.replace(cfg, pattern=pattern), length)

    train = inference = Fraction(0)
    for path, flops in forward.items():
        pattern = patterns.get(path)
        length = (lengths or {}).get(path)
        train += flops * (3 * cfg.total_steps if pattern is None else units(pattern, length))
        inference += flops * (1 if pattern is None else Fraction(pattern.n, pattern.m))
    once = sum(forward.values(), Fraction(0))
    dense = 3 * cfg.total_steps * once
    return {
        "train": float(train),
        "dense": float(dense),
        "ratio": float(train / dense),
        "inference": float(inference),
        "inference_ratio": float(inference / once),
    }


def nm_iso_flop_table(
    runs: Mapping[str, NMConfig],
    layer_flops: Mapping[str, float],
    *,
    lengths: Mapping[str, int] | None = None,
    budget: float | None = None,
    results: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What each run costs, and how long it may be at equal training FLOPs.

    Runs of equal length do not cost the same: to compare recipes, train each for its "iso_steps".

    Args:
      runs: schedules by name. The fractions of a schedule scale with its length; its
        `freeze_mask_at` and `mask_update_every` stay.
      layer_flops: as `nm_train_flops` has it.
      lengths: likewise.
      budget: training FLOPs that all may spend; None for those of the first run, which thus is
        the reference (a dense one, usually).
      results: what was measured, by the names of `runs`.

    Returns:
      A row for each run: "run", "steps", "train" (FLOPs), "share" of the budget, "iso_steps" (the
      most steps that the budget pays for), "is_iso" (whether the run has just that length, so that
      its result may stand beside the others), "inference_ratio", "result" (None if not measured).

    Raises:
      ValueError: as `nm_train_flops`; the budget is not positive; a result belongs to no run.

    >>> from jaxlab.methods.nm.mask import NMPattern
    >>> runs = {name: NMConfig(NMPattern(1, 4), name, 100, include=("up",))
    ...         for name in ("dense", "ste", "asp")}
    >>> [(row["run"], row["iso_steps"]) for row in nm_iso_flop_table(runs, {"up": 8.0})]
    [('dense', 100), ('ste', 200), ('asp', 400)]
    """
    for name in results or {}:
        if name not in runs:
            raise ValueError(
                f"nm_iso_flop_table: results[{name!r}] has no run; {suggest(name, runs)}"
            )
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"nm_iso_flop_table: budget={budget} must be positive and finite")
    rows = []
    for name, cfg in runs.items():
        cost = nm_train_flops(cfg, layer_flops, lengths)
        budget = cost["train"] if budget is None else budget
        steps = _steps_within(budget, cfg, layer_flops, lengths)
        rows.append(
            {
                "run": name,
                "steps": cfg.total_steps,
                "train": cost["train"],
                "share": cost["train"] / budget,
                "iso_steps": steps,
                "is_iso": cfg.total_steps == steps,
                "inference_ratio": cost["inference_ratio"],
                "result": (results or {}).get(name),
            }
        )
    return rows


def _steps_within(
    budget: float,
    cfg: NMConfig,
    layer_flops: Mapping[str, float],
    lengths: Mapping[str, int] | None,
) -> int:
    def exceeds(steps):
        longer = dataclasses.replace(cfg, total_steps=steps)
        return nm_train_flops(longer, layer_flops, lengths)["train"] > budget

    high = cfg.total_steps
    while not exceeds(high):
        high *= 2
    # Of steps 1, 2, ...: how many come before the first that exceeds.
    return bisect.bisect_left(range(1, high), True, key=exceeds)


def _units(cfg: NMConfig, length: int | None) -> Fraction:
    """Cost of all steps, in forward passes of the dense layer."""
    total, closed = cfg.total_steps, _first_closed(cfg)
    masked = RECIPES[cfg.recipe].fixed or cfg.grad_mode == "masked"
    starts, patterns = zip(*nm_frames(cfg, length), strict=True)
    # The first frame is there from the beginning, as far as the mask acts.
    starts = [0, *starts[1:], total]
    units = Fraction(3 * closed)
    for pattern, start, end in zip(patterns, starts, starts[1:], strict=False):
        density = Fraction(pattern.n, pattern.m)
        steps = max(min(end, total) - max(start, closed), 0)
        units += steps * (3 * density if masked else 2 * density + 1)
    return units


def _first_closed(cfg: NMConfig) -> int:
    """The first step without any share of pruned weights (D = 0), or the length of the run.

    D never rises, so it is found by section. Asking `nm_phase`, and not solving for it, agrees with
    the run also where D underflows.
    """
    low, high = (min(step, cfg.total_steps) for step in (cfg.dense_steps, cfg.final_step))
    while low < high:
        probes = np.unique(np.linspace(low, high - 1, 64).astype(np.int32))
        closed = np.asarray(nm_phase(cfg, jnp.asarray(probes)).decay) == 0
        if not closed.any():
            return high
        first = int(closed.argmax())
        high = int(probes[first])
        low = int(probes[first - 1]) + 1 if first else high
    return high


def _checked(cfg: NMConfig, layer_flops: Mapping[str, float]) -> dict[str, Fraction]:
    if cfg.total_steps < 1:
        raise ValueError(
            f"nm_train_flops: total_steps={cfg.total_steps} must be the run's length, 1 or more"
        )
    for path, flops in layer_flops.items():
        if not 0 <= flops < math.inf:
            raise ValueError(f"nm_train_flops: layer_flops[{path!r}]={flops} must be 0 or more")
    if not any(layer_flops.values()):
        raise ValueError(f"nm_train_flops: layer_flops={dict(layer_flops)} has no FLOPs")
    # Fractions, so that sums over a million steps are exact.
    return {path: Fraction(flops) for path, flops in layer_flops.items()}
