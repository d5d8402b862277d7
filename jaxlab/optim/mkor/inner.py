"""The optimizer behind a rule that preconditions gradients."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxlab.core import registry
from jaxlab.optim.from_optax import Mask
from jaxlab.optim.observing import Observing

# What to say where no statistics arrive.
UNTOLD = (
    "the statistics of the step, which jaxlab.optim.mkor.value_grad_stats returns, and train.py's "
    "loop passes where it sees that they are wanted: a wrapper of optax hides that, and "
    "jaxlab.optim.observing.wrapped(wrapper, rule) shows it again"
)


def followed(rule: Observing, inner: optax.GradientTransformation) -> Observing:
    """The rule, and then the optimizer: together they want what the rule wants.

    >>> from jaxlab.optim.mkor.eva import scale_by_eva
    >>> followed(scale_by_eva(), optax.sgd(0.1)).statistics.init({})
    {}
    """
    return Observing(*optax.with_extra_args_support(optax.chain(rule, inner)), rule.statistics)


def followed_by_name(
    rule: Observing,
    inner: str,
    settings: Mapping[str, Any],
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
) -> Observing:
    """The rule, and then the optimizer `inner` of the registry, which has the rate and the decay.

    Args:
      rule: the transformation in front.
      inner: name of an optimizer.
      settings: of that optimizer.
      learning_rate, weight_decay, mask: of every optimizer of a config.

    Raises:
      ValueError: there is no such optimizer, or it has no such setting.
    """
    context = {"learning_rate": learning_rate, "weight_decay": weight_decay, "mask": mask}
    return followed(rule, registry.build("optimizer", {"name": inner, **settings}, **context))
