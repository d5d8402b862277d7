"""What distinguishes one N:M recipe from another: its frames, its decay, what it does to gradients.

Sources: as in `schedule`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxlab.methods.nm.mask import LARGEST_GROUP, NMPattern

# The first step of each pattern.
Frames = tuple[tuple[int, NMPattern], ...]


class Schedule(Protocol):
    """What recipes read of an `NMConfig`."""

    @property
    def pattern(self) -> NMPattern: ...
    @property
    def recipe(self) -> str: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def dense_frac(self) -> float: ...
    @property
    def finetune_frac(self) -> float: ...
    @property
    def frames(self) -> tuple[tuple[float, int, int], ...]: ...
    @property
    def dense_steps(self) -> int: ...
    @property
    def decay_steps(self) -> int: ...


def _at_target(cfg: Schedule) -> list[NMPattern]:
    return [cfg.pattern]


def _stepwise(cfg: Schedule) -> list[NMPattern]:
    n, m = cfg.pattern.n, cfg.pattern.m
    halvings = math.floor(math.log2(m / n))
    counts = [max(m - 1, n), *(m >> k for k in range(1, halvings + 1))]
    if counts[-1] != n:
        counts.append(n)
    return [dataclasses.replace(cfg.pattern, n=count) for count in counts]


def _geometric(cfg: Schedule) -> list[NMPattern]:
    return [_widened(cfg.pattern, k, k) for k in (8, 4, 2, 1)]


def _densify(cfg: Schedule) -> list[NMPattern]:
    return [_widened(cfg.pattern, 1, k) for k in (8, 4, 2, 1)]


def _widened(pattern: NMPattern, n_factor: int, m_factor: int) -> NMPattern:
    while pattern.m * m_factor > LARGEST_GROUP:
        n_factor, m_factor = max(n_factor // 2, 1), m_factor // 2
    return dataclasses.replace(pattern, n=pattern.n * n_factor, m=pattern.m * m_factor)


def _custom(cfg: Schedule) -> list[NMPattern]:
    are_triples = all(isinstance(f, tuple) and len(f) == 3 for f in cfg.frames)
    starts = [start for start, _, _ in cfg.frames] if are_triples else []
    if not starts or starts != sorted(starts) or not 0 <= starts[0] <= starts[-1] <= 1:
        raise ValueError(
            f"nm: frames={cfg.frames} must be (start, n, m) triples, starts ascending in [0, 1]"
        )
    patterns = [dataclasses.replace(cfg.pattern, n=n, m=m) for _, n, m in cfg.frames]
    if patterns[-1] != cfg.pattern:
        last, target = patterns[-1], cfg.pattern
        raise ValueError(
            f"nm: frames={cfg.frames} end at {last.n}:{last.m} and must end at the target, "
            f"{target.n}:{target.m}"
        )
    return patterns


def _spread(cfg: Schedule, length: int | None) -> Frames:
    """The recipe's patterns over the decay phase, evenly."""
    patterns = RECIPES[cfg.recipe].patterns(cfg)
    starts = [cfg.dense_steps + k * cfg.decay_steps // len(patterns) for k in range(len(patterns))]
    return tuple(zip(starts, _that_divide(patterns, length), strict=True))


def _given(cfg: Schedule, length: int | None) -> Frames:
    patterns = _custom(cfg)
    starts = [round(start * cfg.total_steps) for start, _, _ in cfg.frames]
    # As given: a frame that does not divide is refused with the kernel, and not replaced.
    return tuple(zip(starts, patterns, strict=True))


def _that_divide(patterns: list[NMPattern], length: int | None) -> list[NMPattern]:
    """Patterns whose groups do not divide the axis become the next one that does."""
    kept = []
    for pattern in reversed(patterns):
        fits = length is None or length % (pattern.m * pattern.block) == 0
        kept.append(pattern if fits or not kept else kept[-1])
    return kept[::-1]


def _from_dense_frac(cfg: Schedule) -> int:
    return round(cfg.dense_frac * cfg.total_steps)


def _before_finetuning(cfg: Schedule) -> int:
    return cfg.total_steps - round(cfg.finetune_frac * cfg.total_steps)


class Recipe(NamedTuple):
    """What distinguishes one recipe from another.

    Attributes:
      patterns: the patterns of its frames.
      frames: the frames, with their first steps.
      dense_steps: steps before the pattern applies.
      final_step: first step with the binary target.
      decay: D as a function of beta_total times the fraction of the decay phase that has passed.
      beta_total: its default, None where there is no such rate.
      scheduled: whether it needs the length of the run.
      has_decay_phase: whether the pattern closes gradually.
      takes_frames: whether the user gives the frames.
      pulls: whether pruned weights are pulled towards 0 (SR-STE).
      fixed: whether the mask stays once it applies, with pruned weights at 0.
      prunes: whether there is a pattern at all.
    """

    patterns: Callable[[Schedule], list[NMPattern]] = _at_target
    frames: Callable[[Schedule, int | None], Frames] = _spread
    dense_steps: Callable[[Schedule], int] = _from_dense_frac
    final_step: Callable[[Schedule], int] = lambda cfg: cfg.dense_steps
    decay: Callable[[jax.Array], jax.Array] = jnp.zeros_like
    beta_total: float | None = None
    scheduled: bool = False
    has_decay_phase: bool = False
    takes_frames: bool = False
    pulls: bool = False
    fixed: bool = False
    prunes: bool = True


_NEVER = 2**31 - 1
_GRADUAL = Recipe(final_step=_before_finetuning, scheduled=True, has_decay_phase=True)
RECIPES = {
    "dense": Recipe(dense_steps=lambda cfg: _NEVER, prunes=False),
    "one_shot": Recipe(dense_steps=lambda cfg: cfg.total_steps, scheduled=True),
    "asp": Recipe(fixed=True),
    "ste": Recipe(),
    "srste": Recipe(pulls=True),
    "mdgf_linear": _GRADUAL._replace(decay=lambda s: jnp.maximum(0.0, 1.0 - s), beta_total=1.0),
    "mdgf_exp": _GRADUAL._replace(decay=lambda s: jnp.exp(-s), beta_total=10.0),
    "sdgf_stepwise": _GRADUAL._replace(patterns=_stepwise),
    "sdgf_geometric": _GRADUAL._replace(patterns=_geometric),
    "sdgf_densify": _GRADUAL._replace(patterns=_densify),
    "custom": Recipe(
        patterns=_custom,
        frames=_given,
        dense_steps=lambda cfg: _given(cfg, None)[0][0],
        final_step=lambda cfg: _given(cfg, None)[-1][0],
        scheduled=True,
        takes_frames=True,
    ),
}
