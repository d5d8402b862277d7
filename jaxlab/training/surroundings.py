"""What a phase is, and what a run offers it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# (params, optimizer state, key) -> (params, optimizer state or None)
Transform = Callable[[Any, Any, jax.Array], tuple[Any, Any]]


class Surroundings(NamedTuple):
    """What a run offers its phases; a constructor takes it by declaring `run`.

    Attributes:
      steps: length of the run.
      start: the step before which the phase is applied.
      loss: (params, batch) -> scalar, the task's loss.
      batch: step -> the training batch of that step, on its devices.
      weight: batch -> what its rows or tokens count in statistics of the layers' inputs.
    """

    steps: int
    start: int
    loss: Callable[[Any, Any], jax.Array]
    batch: Callable[[int], Any]
    weight: Callable[[Any], jax.Array]
