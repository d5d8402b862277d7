"""AdamW whose second moment is frozen before masks are learned.

Source: Y. Lu, S. Agrawal, S. Subramanian, O. Rybakov, C. De Sa, A. Yazdanbakhsh, "STEP: Learning
N:M Structured Sparsity Masks from Scratch with Precondition", ICML 2023. Gradients through a mask
raise the second moment of pruned weights with noise. STEP therefore estimates it while training is
dense, and from then on uses that estimate as a fixed preconditioner.

Differs from the paper: the switch is at a given step, the last of the dense phase, and is not
found by watching how much the second moment still changes.
"""

import numbers

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxlab.core.registry import register
from jaxlab.optim.from_optax import Mask


def scale_by_frozen_nu(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    freeze_nu_at: int | jax.Array,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Adam up to and including update `freeze_nu_at`; after it nu no longer changes.

    The bias correction of nu is the one of its last change. The first moment and its own correction
    go on. Up to the freeze the updates are those of `optax.scale_by_adam`, and so is the state,
    whose moments have the dtypes of the parameters: an Adam run can be continued.

    Args:
      b1: decay of the first moment, mu.
      b2: decay of the second moment, nu.
      eps: added to the root of nu. A weight that has had no gradient before the freeze (a rare
        token's embedding) is divided by it alone ever after, so that 1e-8 is then too small.
      freeze_nu_at: the last update that changes nu, counted from 1 by this transformation's own
        state; one beyond the end of the run never freezes.
      mu_dtype: of the first moment; None is the parameters'.

    Raises:
      ValueError: `freeze_nu_at` is not a whole number of 1 or more: without any update nu is 0.

    >>> tx = scale_by_frozen_nu(freeze_nu_at=1)
    >>> state = tx.init(jnp.ones(()))
    >>> for gradient in (2.0, 200.0):
    ...     update, state = tx.update(jnp.array(gradient), state)
    >>> round(float(state.nu), 6), int(state.count)
    (0.004, 2)
    """
    last = _checked(freeze_nu_at)

    def init(params):
        return optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype).init(params)

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        moved = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        moves = jnp.less_equal(count, last)
        # A selection and no branch: under vmap each run may freeze at a step of its own.
        nu = jax.tree.map(
            lambda new, old: jnp.where(moves, new, old.astype(new.dtype)), moved, state.nu
        )
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, jnp.minimum(count, last))
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        kept_mu = optax.tree.cast(mu, mu_dtype)
        return scaled, optax.ScaleByAdamState(count, kept_mu, optax.tree.cast_like(nu, state.nu))

    return optax.GradientTransformation(init, update)


@register("optimizer", "step_adamw")
def step_adamw(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    freeze_nu_at: int,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay and a second moment that is frozen (STEP).

    Args:
      freeze_nu_at: the last optimizer step that changes the second moment, counted from 1. Where
        a phase of the run makes a new optimizer state, it counts from that phase's start.
    """
    return optax.chain(
        scale_by_frozen_nu(b1, b2, eps, freeze_nu_at=freeze_nu_at),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def _checked(freeze_nu_at: int | jax.Array) -> int | jax.Array:
    if isinstance(freeze_nu_at, jax.Array):  # as `inject_hyperparams` passes numbers
        whole = freeze_nu_at.ndim == 0 and jnp.issubdtype(freeze_nu_at.dtype, jnp.integer)
        known = not isinstance(freeze_nu_at, Tracer)
    else:
        whole = isinstance(freeze_nu_at, numbers.Integral) and not isinstance(freeze_nu_at, bool)
        known = True
    if not whole or (known and freeze_nu_at < 1):
        raise ValueError(
            f"step_adamw: freeze_nu_at={freeze_nu_at!r} must be a whole number of updates, 1 or "
            "more: before the first one nu is 0"
        )
    # Counts are int32 and stop at its largest value.
    largest = jnp.iinfo(jnp.int32).max
    return freeze_nu_at if isinstance(freeze_nu_at, jax.Array) else min(freeze_nu_at, largest)
