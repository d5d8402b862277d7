"""Learning-rate schedules by name: pure functions of the step."""

import optax

from jaxlab.core.registry import register


@register("schedule", "constant")
def constant(*, peak: float, steps: int, warmup: float = 0.0) -> optax.Schedule:
    """Linear warm-up over a fraction `warmup` of the steps, then `peak`."""
    return _after_warmup(optax.constant_schedule(peak), peak, steps, warmup)


@register("schedule", "cosine")
def cosine(*, peak: float, steps: int, warmup: float = 0.05, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up, then half a cosine from `peak` to `final * peak`.

    >>> rate = cosine(peak=1.0, steps=100, warmup=0.1)
    >>> [round(float(rate(step)), 3) for step in (0, 10, 55, 100)]
    [0.0, 1.0, 0.5, 0.0]
    """
    _check_fraction("final", final)
    left = max(steps - _warmup_steps(steps, warmup), 1)
    return _after_warmup(optax.cosine_decay_schedule(peak, left, final), peak, steps, warmup)


@register("schedule", "linear")
def linear(*, peak: float, steps: int, warmup: float = 0.05, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up, then a straight line from `peak` to `final * peak`."""
    _check_fraction("final", final)
    left = max(steps - _warmup_steps(steps, warmup), 1)
    decay = optax.linear_schedule(peak, final * peak, left)
    return _after_warmup(decay, peak, steps, warmup)


def _after_warmup(
    schedule: optax.Schedule, peak: float, steps: int, warmup: float
) -> optax.Schedule:
    count = _warmup_steps(steps, warmup)
    if not count:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, count), schedule], [count])


def _warmup_steps(steps: int, warmup: float) -> int:
    _check_fraction("warmup", warmup)
    return int(warmup * steps)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"schedule: {name}={value} is a fraction and must be in [0, 1]")
