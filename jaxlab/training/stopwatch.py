"""How fast a run trains, by the time that nothing but its steps take."""

import time
from typing import Any

import jax


class Stopwatch:
    """Steps per second, without compilation, phases, evaluation and checkpoints.

    It starts and stops when the device has nothing left to do, so that steps under way count whole.

    >>> watch, state = Stopwatch(), jax.numpy.ones(3)
    >>> watch.start(1, state)
    >>> watch.stop(1, state)
    >>> watch.rate is None
    True
    """

    def __init__(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self._mark: tuple[int, float] | None = None

    def start(self, step: int, state: Any) -> None:
        """Begins behind `step`, once the arrays of `state` are there."""
        jax.block_until_ready(state)
        self._mark = (step, time.perf_counter())

    def stop(self, step: int, state: Any) -> None:
        """Ends behind `step`, once the arrays of `state` are there; unless it runs, nothing."""
        if self._mark is not None:
            jax.block_until_ready(state)
            self._steps += step - self._mark[0]
            self._seconds += time.perf_counter() - self._mark[1]
            self._mark = None

    @property
    def rate(self) -> float | None:
        """To six digits; None if no step was measured."""
        return float(f"{self._steps / self._seconds:.6g}") if self._steps else None
