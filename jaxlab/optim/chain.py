"""The optimizer that a config section describes: clipping, the named rule, factors by path."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import registry
from jaxlab.core.match import first_match, leaf_paths, owner_path, path_str
from jaxlab.optim.cohorts import in_cohorts
from jaxlab.optim.observing import wrapped

Factors = Sequence[tuple[str, float]]


def make_optimizer(
    section: Mapping[str, Any], *, steps: int
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Builds an optax transformation from the `optim` section of a config.

    Args:
      section: `name` and the named optimizer's arguments; `lr`, the peak learning rate;
        `schedule`; `weight_decay` with `decay_paths`, (pattern, factor) pairs, 0 where none
        matches; `lr_paths`, likewise, 1 where none matches; `clip`, of the global norm. What a
        section of it under the name of an optimizer has is for that one alone.
      steps: length of the run, which schedules refer to.

    Returns:
      The transformation, and the learning rate as a function of the step.

    Raises:
      ValueError: a name, key or value is wrong; the message says which would be right.

    >>> import jax.numpy as jnp
    >>> tx, rate = make_optimizer({"name": "sgd", "lr": 0.1, "momentum": 0.0,
    ...                            "schedule": {"name": "constant"}}, steps=10)
    >>> params = {"kernel": jnp.ones(2)}
    >>> tx.update({"kernel": jnp.ones(2)}, tx.init(params), params)[0]["kernel"].tolist()
    [-0.10000000149011612, -0.10000000149011612]
    """
    name, arguments = registry.split_section("optimizer", section)
    own = {n: arguments.pop(n) for n in registry.names("optimizer") if n in arguments}
    for of, keys in own.items():
        if not isinstance(keys, Mapping):
            raise ValueError(f"optim: {of}={keys!r} must be a section of arguments of {of!r}")
    for of, keys in {**own, name: {**arguments, **own.get(name, {})}}.items():
        parameters = inspect.signature(registry.get("optimizer", of)).parameters
        legal = {*parameters, *_SHARED} - {"learning_rate", "mask"}
        for key in keys:
            if key not in legal:
                raise ValueError(f"optim: {of!r} takes no {key!r}; {registry.suggest(key, legal)}")
    arguments |= own.get(name, {})
    shared = {key: arguments.pop(key) for key in list(arguments) if key in _SHARED}
    settings = {**_SHARED, **shared}
    if "lr" not in shared:
        raise ValueError(f"optimizer {name!r} needs 'lr', the peak learning rate")
    for key in ("lr", "weight_decay", "clip"):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ValueError(f"optim: {key}={value!r} must be a number, 0 or more")
    rate = registry.build("schedule", settings["schedule"], peak=settings["lr"], steps=steps)
    decay_paths = settings["decay_paths"]
    first_match(decay_paths, (), owner="optim.decay_paths", strict=False)  # are they pairs?
    partial = {f for _, f in decay_paths} - {0, 1}
    if partial:
        raise ValueError(f"optim: decay_paths has factors {sorted(partial)}; valid: 0 and 1")
    rule = registry.build(
        "optimizer",
        {"name": name, **arguments},
        learning_rate=1.0,  # `scale_by_rate` follows
        weight_decay=settings["weight_decay"],
        mask=lambda tree: _tree_of(decay_paths, tree, 0.0, lambda factor: factor != 0),
    )
    parts = [optax.clip_by_global_norm(settings["clip"])] if settings["clip"] else []
    parts += [in_cohorts(rule), add_decoupled_decay(), scale_by_rate(rate)]
    if settings["lr_paths"]:
        parts.append(scale_by_path(settings["lr_paths"]))
    return wrapped(optax.with_extra_args_support(optax.chain(*parts)), rule), rate


def check_paths(section: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Checks the path patterns of an `optim` section.

    Args:
      section: the section.
      paths: of every parameter that is trained in some phase of the run.

    Raises:
      ValueError: a pattern matches none of them.
    """
    for key in ("decay_paths", "lr_paths"):
        rules = section.get(key, ())
        # The default need not match anything: nobody has written it.
        strict = rules != _SHARED[key]
        first_match(rules, paths, owner=f"optim.{key}", strict=strict)


class RateState(NamedTuple):
    """Where a run is in its learning-rate schedule: the only state that every phase keeps."""

    count: jax.Array


def scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies updates by the learning rate of the step.

    Every optimizer here is linear in its learning rate, and so is built with 1: its own counts may
    then start anew in a phase without the schedule doing so.
    """

    def update(updates, state, params=None):
        scale = rate(state.count)
        scaled = jax.tree.map(lambda u: u * jnp.asarray(scale, u.dtype), updates)
        return scaled, RateState(state.count + 1)

    return optax.GradientTransformation(lambda params: RateState(jnp.zeros((), jnp.int32)), update)


def add_decoupled_decay() -> optax.GradientTransformationExtraArgs:
    """Adds the decay that matrices ask for, `-coefficient * parameter`, before the learning rate.

    The extra argument `decay` has the coefficients by path; without it nothing changes.
    """

    def update(updates, state, params=None, *, decay=None, **extra):
        def add(path, u, p):
            coefficient = (decay or {}).get(path_str(path))
            return u if coefficient is None else u - coefficient * p

        return jax.tree_util.tree_map_with_path(add, updates, params) if decay else updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def hold_moments(opt: Any, supports: Mapping[str, jax.Array], params: Any) -> Any:
    """An optimizer state whose arrays of some parameters are 0 outside those parameters' support.

    Args:
      opt: the state; an array belongs to the parameter whose path its own ends in.
      supports: booleans by path of a parameter.
      params: all parameters that are trained.
    """
    paths = leaf_paths(params)

    def hold(key_path, x):
        alive = supports.get(owner_path(path_str(key_path), paths) or "")
        if alive is None or alive.shape != x.shape:
            return x
        return jnp.where(alive, x, jnp.zeros_like(x))

    return jax.tree_util.tree_map_with_path(hold, opt) if supports else opt


def hold_windows(opt: Any, supports: Mapping[str, jax.Array], params: Any) -> Any:
    """An optimizer state whose windows of gradients were 0 outside the parameters' support.

    For the change of a support, and not for every step: all of a window is read and written.

    Args:
      opt: the state; a node of it with the attribute `joint` (`jaxlab.optim.carry`) has a method
        `held` for this.
      supports: booleans by path of a parameter.
      params: all parameters that are trained.
    """
    paths = leaf_paths(params)
    alive_of = lambda path: supports.get(owner_path(path, paths) or "")  # noqa: E731
    is_joint = lambda x: getattr(x, "joint", False)  # noqa: E731
    hold = lambda x: x.held(alive_of) if is_joint(x) else x  # noqa: E731
    return jax.tree.map(hold, opt, is_leaf=is_joint) if supports else opt


def with_schedule_of(old: Any, new: Any) -> Any:
    """An optimizer state with the place in the schedule that an older one has."""
    is_rate = lambda x: isinstance(x, RateState)  # noqa: E731
    places = iter([x for x in jax.tree.leaves(old, is_leaf=is_rate) if is_rate(x)])
    return jax.tree.map(lambda x: next(places, x) if is_rate(x) else x, new, is_leaf=is_rate)


def scale_by_path(factors: Factors) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the first pattern that matches their path, or by 1."""

    def update(updates, state, params=None):
        scale = _tree_of(factors, updates, 1.0, float)
        return jax.tree.map(lambda u, s: u * s, updates, scale), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


_SHARED = {
    "lr": None,
    "schedule": {"name": "cosine"},
    "weight_decay": 0.0,
    "decay_paths": ((".*(kernel|embedding).*", 1.0),),
    "lr_paths": (),
    "clip": 0.0,
}


def _tree_of(factors: Factors, tree: Any, default: float, convert: Any) -> Any:
    # Not strict: optax also asks for the mask of subtrees. `check_paths` has seen the whole.
    found = first_match(factors, leaf_paths(tree), owner="optim", strict=False)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: convert(found.get(path_str(path), default)), tree
    )
