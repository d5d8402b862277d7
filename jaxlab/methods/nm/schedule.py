"""When an N:M pattern closes: recipes, phases and frames as pure functions of the training step.

Source: A. Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in
Transformers", 2024; its predecessor S.-C. Kao et al., "Training Recipe for N:M Structured Sparsity
with Decaying Pruning Mask", 2022. A run has three phases: dense, decay, and sparse fine-tuning.

Differs from the authors' code: frames are a function of the step, so a run that is resumed inside
a frame has its pattern; the decay counts from the end of the dense phase; every structure schedule
ends in the target, also where m / n is no power of two; the final pattern is binary.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxlab.core.match import first_match
from jaxlab.core.registry import suggest
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.recipes import RECIPES, Frames

GradMode = Literal["ste", "masked"]
SRSTEMode = Literal["grad", "decoupled"]


class Phase(NamedTuple):
    """Where a step stands in its schedule.

    Attributes:
      frame: int32, index into `nm_frames`.
      decay: float32 factor D of pruned weights, 1 in the dense phase and exactly 0 at the end.
      is_dense: whether the pattern is not applied yet.
      is_final: whether the pattern is binary and will not change any more.
    """

    frame: jax.Array
    decay: jax.Array
    is_dense: jax.Array
    is_final: jax.Array


@dataclasses.dataclass(frozen=True, repr=False)
class NMConfig:
    """A pattern and the way to it; hashable, and static under jit.

    Attributes:
      pattern: the target.
      recipe: one of `RECIPES`.
      total_steps: length of the run; 0 where nothing is scheduled.
      dense_frac: fraction of the steps before the pattern applies.
      finetune_frac: fraction of the steps, at the end, with the binary target.
      beta_total: the decay's rate times the length of its phase, so that it means the same at any
        length of run: D ends at exp(-beta_total) or max(0, 1 - beta_total). None is 10 for the
        exponential decay and 1 for the linear one.
      lam: SR-STE's pull of pruned weights towards 0.
      grad_mode: of the mask decay: "ste" passes the gradient on unchanged, as the authors' code
        does; "masked" is the chain rule, as their text says.
      srste_mode: "grad" adds the pull to the gradient, before the optimizer; "decoupled" applies
        it like AdamW's decay.
      frames: for the recipe "custom": (start as a fraction of the steps, n, m) of each frame.
      mask_update_every: steps between two computations of the mask.
      freeze_mask_at: step from which the mask stays; None for never.
      include: patterns of the paths that `nm_prune` and `nm_finalize` apply it to.
      overrides: (pattern of a path, NMPattern) pairs; the first that matches wins.

    Raises:
      ValueError: a value is out of range; the message names it and what would be legal.
    """

    pattern: NMPattern
    recipe: str = "mdgf_exp"
    total_steps: int = 0
    dense_frac: float = 0.0
    finetune_frac: float = 0.1
    beta_total: float | None = None
    lam: float = 2e-4
    grad_mode: GradMode = "ste"
    srste_mode: SRSTEMode = "grad"
    frames: tuple[tuple[float, int, int], ...] = ()
    mask_update_every: int = 1
    freeze_mask_at: int | None = None
    include: tuple[str, ...] = (".*mlp.*/kernel",)
    overrides: tuple[tuple[str, NMPattern], ...] = ()

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise ValueError(f"nm: recipe={self.recipe!r}; {suggest(self.recipe, RECIPES)}")
        for name, modes in (("grad_mode", GradMode), ("srste_mode", SRSTEMode)):
            legal = get_args(modes)
            if getattr(self, name) not in legal:
                raise ValueError(f"nm: {name}={getattr(self, name)!r}; valid: {', '.join(legal)}")
        for name in ("dense_frac", "finetune_frac"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"nm: {name}={getattr(self, name)} must be in [0, 1)")
        if self.beta_total is not None and not 0 < self.beta_total < math.inf:
            raise ValueError(f"nm: beta_total={self.beta_total} must be positive and finite")
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"nm: lam={self.lam} must be 0 or more, and finite")
        _check_count("total_steps", self.total_steps, 0)
        _check_count("mask_update_every", self.mask_update_every, 1)
        if self.freeze_mask_at is not None:
            _check_count("freeze_mask_at", self.freeze_mask_at, 0)
        self._check_schedule()

    def _check_schedule(self):
        rule = RECIPES[self.recipe]
        ignored = {
            "beta_total": self.beta_total is not None and rule.beta_total is None,
            "frames": bool(self.frames) and not rule.takes_frames,
            "srste_mode": self.srste_mode != "grad" and not rule.pulls,
            "mask_update_every": self.mask_update_every > 1 and rule.fixed,
            "freeze_mask_at": self.freeze_mask_at is not None and rule.fixed,
        }
        for name in (name for name, is_ignored in ignored.items() if is_ignored):
            value = getattr(self, name)
            raise ValueError(f"nm: {name}={value!r} means nothing to recipe={self.recipe!r}")
        timed = self.dense_frac > 0 or self.mask_update_every > 1 or self.freeze_mask_at is not None
        if (rule.scheduled or timed) and self.total_steps <= 0:
            raise ValueError(
                f"nm: recipe={self.recipe!r} with this schedule needs total_steps, the length of "
                f"the run; it is {self.total_steps}"
            )
        if rule.has_decay_phase and self.decay_steps < 1:
            raise ValueError(
                f"nm: dense_frac={self.dense_frac} + finetune_frac={self.finetune_frac} leave no "
                f"step of total_steps={self.total_steps} to {self.recipe!r}; their sum must be "
                "below 1"
            )
        # Bad frames must be refused here and not inside a compiled step.
        last, _ = nm_frames(self)[-1]
        if self.freeze_mask_at is not None and self.freeze_mask_at < last:
            raise ValueError(
                f"nm: freeze_mask_at={self.freeze_mask_at} comes before the target's frame, which "
                f"begins at step {last}: the run would end in another pattern; nearest: {last}"
            )

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        parts = [f"{f.name}={getattr(self, f.name)!r}" for f in fields if not _is_default(self, f)]
        return f"NMConfig({', '.join(parts)})"

    @property
    def dense_steps(self) -> int:
        """Steps before the pattern applies."""
        return RECIPES[self.recipe].dense_steps(self)

    @property
    def final_step(self) -> int:
        """First step with the binary target."""
        return RECIPES[self.recipe].final_step(self)

    @property
    def decay_steps(self) -> int:
        """Length of the phase in which the pattern closes."""
        return self.final_step - self.dense_steps

    @property
    def keeps_mask(self) -> bool:
        """Whether the mask is more than a function of the present weight, and must be stored."""
        return (
            RECIPES[self.recipe].fixed
            or self.mask_update_every > 1
            or self.freeze_mask_at is not None
        )

    def patterns_of(self, paths: Iterable[str], *, owner: str) -> dict[str, NMPattern]:
        """The pattern of every path that `overrides` or `include` match; the first match wins."""
        rules = [*self.overrides, *((path, self.pattern) for path in self.include)]
        return first_match(rules, paths, owner=f"{owner}: include and overrides")

    def updates_mask(self, step: jax.Array) -> jax.Array:
        """Whether a stored mask is computed anew for a step."""
        if RECIPES[self.recipe].fixed:
            # Once. A mask without a schedule is that of the weights it was made from.
            return (step == self.dense_steps) & (self.dense_steps > 0)
        due = step % self.mask_update_every == 0
        for start in {self.dense_steps, *(start for start, _ in nm_frames(self))}:
            due |= step == start
        return due if self.freeze_mask_at is None else due & (step <= self.freeze_mask_at)


def nm_frames(cfg: NMConfig, length: int | None = None) -> Frames:
    """The patterns of a run and the steps from which they hold.

    Args:
      cfg: the schedule.
      length: of the axis that is grouped. Schedules that widen the groups widen them only to what
        divides it, and repeat that frame; None assumes that everything divides.

    Returns:
      (first step, pattern) pairs in order; the last pattern is the target.

    >>> cfg = NMConfig(NMPattern(1, 8), "sdgf_stepwise", 100, 0.1, 0.2)
    >>> [(start, f"{p.n}:{p.m}") for start, p in nm_frames(cfg)]
    [(10, '7:8'), (27, '4:8'), (45, '2:8'), (62, '1:8')]
    """
    return RECIPES[cfg.recipe].frames(cfg, length)


def nm_phase(cfg: NMConfig, step: jax.Array | int) -> Phase:
    """Where a step stands in its schedule: pure, and traceable in the step.

    Args:
      cfg: the schedule.
      step: integers of any shape; 0 is the first step.

    Returns:
      `Phase` of arrays of the step's shape.

    >>> cfg = NMConfig(NMPattern(1, 8), "mdgf_linear", 100, 0.1, 0.2)
    >>> nm_phase(cfg, jnp.array([0, 10, 45, 80])).decay.tolist()
    [1.0, 1.0, 0.5, 0.0]
    """
    step = jnp.asarray(step, jnp.int32)
    starts = jnp.array([start for start, _ in nm_frames(cfg)], jnp.int32)
    frame = jnp.searchsorted(starts, step, side="right").astype(jnp.int32) - 1
    is_dense, is_final = step < cfg.dense_steps, step >= cfg.final_step
    rule = RECIPES[cfg.recipe]
    beta_total = cfg.beta_total or rule.beta_total or 0.0
    passed = (step - cfg.dense_steps).astype(jnp.float32) / max(cfg.decay_steps, 1)
    decay = jnp.where(is_final, 0.0, rule.decay(beta_total * passed))
    return Phase(
        jnp.maximum(frame, 0), jnp.where(is_dense, 1.0, decay), is_dense, is_final & ~is_dense
    )


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"nm: {name}={value!r} must be a whole number, {least} or more")


def _is_default(cfg: NMConfig, field: dataclasses.Field) -> bool:
    return getattr(cfg, field.name) == field.default
