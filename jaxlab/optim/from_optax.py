"""Optax's own optimizers by name.

Each constructor takes the learning rate, the weight decay and its mask from the program, and its
own hyper-parameters, with optax's defaults, from the config.
"""

from collections.abc import Callable
from typing import Any

import optax
import optax.contrib

from jaxlab.core.registry import register

Mask = Callable[[Any], Any]


@register("optimizer", "sgd")
def sgd(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov),
    )


@register("optimizer", "adamw")
def adamw(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(
        learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask, nesterov=nesterov
    )


@register("optimizer", "lamb")
def lamb(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Adam with a trust ratio for each parameter."""
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)


@register("optimizer", "lion")
def lion(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    b1: float = 0.9,
    b2: float = 0.99,
) -> optax.GradientTransformation:
    """Sign of an interpolated momentum, with decoupled weight decay."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)


@register("optimizer", "muon")
def muon(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """Orthogonalised momentum for parameters of two axes, Adam for the others."""
    return optax.contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        nesterov=nesterov,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
    )
