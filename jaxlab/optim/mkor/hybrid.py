"""MKOR-H: second order until it no longer pays, first order from there on.

The paper says that the hybrid falls back when the loss no longer falls faster, its code leaves it
out, and neither says by which measure. Here it is the gap between a fast and a slow average of the
loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.optim.mkor.checks import check_finite, check_share, check_whole


class Hybrid(NamedTuple):
    """When to fall back, for good.

    Attributes:
      tau: improvement (slow - fast) / |slow| of the averages below which a step counts.
      patience: steps with an update of the factors that count in a row.
      min_steps: before which none counts.
      fast: decay of one average.
      slow: decay of the other, above that of the first.
    """

    tau: float = 1e-3
    patience: int = 20
    min_steps: int = 100
    fast: float = 0.9
    slow: float = 0.99

    def check(self) -> None:
        """Raises a ValueError for numbers that make no rule.

        >>> Hybrid().check()
        """
        check_finite("hybrid.tau", self.tau)
        check_whole("hybrid.patience", self.patience, 1)
        check_whole("hybrid.min_steps", self.min_steps, 0)
        for name in ("fast", "slow"):
            check_share(f"hybrid.{name}", getattr(self, name), zero=True)
        if not self.fast < self.slow:
            raise ValueError(f"mkor: hybrid.fast={self.fast} must be below slow={self.slow}")


class HybridState(NamedTuple):
    """The averages, steps in a row without improvement, and whether the switch was made.

    seen: finite losses so far. switched_at: int32, the step, counted from 0, that was the first
    without factors; -1 before.
    """

    loss_fast: jax.Array
    loss_slow: jax.Array
    seen: jax.Array
    patience: jax.Array
    switched: jax.Array
    switched_at: jax.Array


def hybrid_init() -> HybridState:
    """Before the first loss."""
    # An array for each, as a training step donates them: none may be there twice.
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.int32, bool, jnp.int32)
    values = (0, 0, 0, 0, False, -1)
    return HybridState(*(jnp.full((), v, d) for v, d in zip(values, dtypes, strict=True)))


def hybrid_step(
    state: HybridState, value: jax.Array, count: jax.Array, due: jax.Array, how: Hybrid
) -> HybridState:
    """The state after a loss; one that is not finite changes nothing.

    Args:
      state: before.
      value: the loss, the same on every device.
      count: int32, steps so far.
      due: whether the factors are updated in this step.
      how: the rule.

    >>> state = hybrid_init()
    >>> for count in range(3):
    ...     state = hybrid_step(state, jnp.float32(1), count, True, Hybrid(patience=2, min_steps=1))
    >>> bool(state.switched), int(state.switched_at)
    (True, 2)
    """
    value = jnp.asarray(value, jnp.float32)
    finite = jnp.isfinite(value)
    value = jnp.where(finite, value, 0)
    seen = state.seen + finite.astype(jnp.int32)
    averages = []
    for old, decay in ((state.loss_fast, how.fast), (state.loss_slow, how.slow)):
        averages.append(jnp.where(finite, decay * old + (1 - decay) * value, old))
    whole = jnp.maximum(seen, 1).astype(jnp.float32)
    fast, slow = (
        average / (1 - decay**whole)
        for average, decay in zip(averages, (how.fast, how.slow), strict=True)
    )
    stalled = (slow - fast) / jnp.maximum(jnp.abs(slow), 1e-12) < how.tau
    counts = stalled & (count >= how.min_steps)
    patience = jnp.where(counts, state.patience + 1, 0)
    patience = jnp.where(finite & due, patience, state.patience)
    switched = state.switched | (patience >= how.patience)
    now = switched & ~state.switched
    switched_at = jnp.where(now, jnp.asarray(count, jnp.int32), state.switched_at)
    return HybridState(averages[0], averages[1], seen, patience, switched, switched_at)
