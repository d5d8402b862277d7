"""Optimizers that are told statistics of the step, and not gradients alone.

Such a transformation says what it wants: `statistics` makes taps, arrays that are 0 and that no
value depends on, and puts them into the parameters. The loop differentiates the loss with respect
to the taps, too, and passes what comes out as the extra argument `stats`. It knows nothing else of
them: an optimizer of another kind brings other taps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax


class Statistics(NamedTuple):
    """What an optimizer measures in the model.

    Attributes:
      init: trained parameters -> taps, a tree of zeros.
      attach: (all parameters, taps) -> parameters with which the model computes the same, and
        whose gradient with respect to the taps is the statistics: sums over the rows of a batch.
        Where the batch has padding, `weight` is a third, named argument: what rows count.
    """

    init: Callable[[Any], Any]
    attach: Callable[..., Any]


class Observing(optax.GradientTransformationExtraArgs):
    """An optax transformation that wants the extra argument `stats`.

    >>> tx = Observing(*optax.sgd(0.1), Statistics(lambda params: {}, lambda params, taps: params))
    >>> statistics_of(tx).init({})
    {}
    """

    statistics: Statistics

    def __new__(cls, init: Any, update: Any, statistics: Statistics) -> "Observing":
        """The transformation (init, update), and what it wants."""
        made = super().__new__(cls, init, update)
        made.statistics = statistics
        return made


def statistics_of(tx: optax.GradientTransformation) -> Statistics | None:
    """What an optimizer wants to be told, or None."""
    return tx.statistics if isinstance(tx, Observing) else None


def wrapped(
    outer: optax.GradientTransformationExtraArgs | optax.MultiSteps,
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`outer`, a transformation with `inner` somewhere in it, wanting what `inner` wants.

    >>> empty = Statistics(lambda params: {}, lambda params, taps: params)
    >>> rule = Observing(*optax.sgd(0.1), empty)
    >>> outer = optax.chain(optax.clip(1.0), rule)
    >>> statistics_of(outer) is None, statistics_of(wrapped(outer, rule)) is empty
    (True, True)
    """
    statistics = statistics_of(inner)
    # As it is: MultiSteps hands extra arguments on, and its `gradient_transformation` hides that.
    update: Any = outer.update
    told = optax.GradientTransformationExtraArgs(outer.init, update)
    return told if statistics is None else Observing(*told, statistics)
