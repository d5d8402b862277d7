"""Phases: the only thing that changes the structure of the parameters during a run.

A phase's transform maps (params, optimizer state) to new ones outside jit; the step is compiled
once for each structure. Returning None for the optimizer state keeps what still fits.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from tqdm import tqdm

from jaxlab.core import compress as core_compress
from jaxlab.core import registry
from jaxlab.core.calibration import compress_calibrated
from jaxlab.core.lifecycle import at
from jaxlab.core.plan import Plan
from jaxlab.optim import carry
from jaxlab.training import pruning as pruning  # registers its phase
from jaxlab.training import pruning_nm as pruning_nm
from jaxlab.training.surroundings import Surroundings, Transform


class Phase(NamedTuple):
    """A transform, the step before which it is applied, and what the optimizer then begins with.

    `opt_state` is a policy of `jaxlab.optim.carry` for new parameters.
    """

    label: str
    step: int
    transform: Transform
    opt_state: str


@registry.register("phase", "compress")
def compress(
    *,
    run: Surroundings,
    rules: Sequence[tuple[str, str, Mapping[str, Any]]],
    batches: int = 0,
    sequential: bool = False,
    correct_bias: bool = True,
) -> Transform:
    """Applies compress rules, (pattern, method, hyper-parameters), to the parameters.

    Args:
      run: the run.
      rules: the rules.
      batches: how many training batches to calibrate methods on that want the statistics of their
        layers' inputs; 0 for none.
      sequential: whether a layer's inputs are those behind the layers compressed before it, in the
        order in which the model uses them, and not those of the whole uncompressed model.
      correct_bias: whether the biases of layers with known inputs take over what compression
        changes in the mean of their outputs.
    """
    if isinstance(batches, bool) or batches < 0:
        raise ValueError(f"compress: batches={batches!r} must be 0 or more")
    if sequential and not batches:
        raise ValueError("compress: sequential=True needs batches to calibrate on; nearest: 16")
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 3:
            raise ValueError(
                f"compress: rules are (pattern, method, hyper-parameters), not {rule!r}; a single "
                "rule needs a tuple around it"
            )
    rules = [(pattern, method, dict(hyper)) for pattern, method, hyper in rules]

    # Without a step there is still a schedule, of which only the end is seen.
    steps = max(run.steps, 1)

    def offered(path: str) -> dict[str, Any]:
        return {"total_steps": steps, "first_step": run.start}

    def loss_fn(params, batch):
        return run.loss(at(params, jnp.float32(run.start / steps)), batch)

    def shown(data, label):
        # disable=None: no bar where nobody watches.
        return tqdm(data, label, total=batches, unit="batch", leave=False, disable=None)

    def transform(params, opt, key):
        if not batches:
            return core_compress.compress(params, rules, key=key, offered=offered), None
        how: dict[str, Any] = {"sequential": sequential, "correct_bias": correct_bias}
        how |= {"key": key, "offered": offered}
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(params)):
            # An experiment asks for shapes before it has any data.
            shapes = Plan(params, rules, **how).shapes(params)
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), None
        data = lambda: (run.batch(step) for step in range(batches))  # noqa: E731
        how |= {"weight": run.weight, "progress": shown}
        return compress_calibrated(loss_fn, params, rules, data, **how), None

    return transform


@registry.register("phase", "densify")
def densify(*, run: Surroundings, path: str = ".*") -> Transform:
    """Puts the dense array in the place of every matrix whose whole path matches.

    Args:
      run: the run, which says where matrices are in their schedules.
      path: the pattern.
    """

    def transform(params, opt, key):
        # Without a step only the end of a schedule is seen, as in what a run measures.
        progress = jnp.float32(run.start / run.steps if run.steps else 1.0)
        return carry.densify(params, path, progress), None

    return transform


def make_phases(config: Mapping[str, Any], run: Surroundings) -> list[Phase]:
    """The phases of a run in order, the `compress` section of the config first among equals.

    Args:
      config: with `compress`, `compress_at`, `calibrate`, `phases` and `steps`.
      run: what phases may ask of the run.

    Raises:
      ValueError: a section is wrong, or a fraction is not in [0, 1].
    """
    sections = [(label, dict(section)) for label, section in config["phases"].items()]
    if config["compress"]:
        rules = [_rule(label, section) for label, section in config["compress"].items()]
        first = {"at": config["compress_at"], "name": "compress", "rules": rules}
        first |= config["calibrate"]
        sections.insert(0, ("compress", first))
    phases = []
    for label, section in sections:
        arguments = dict(section)
        policy = arguments.pop("opt_state", carry.POLICIES[0])
        carry.check_policy(f"phases: {label}", policy)
        when = arguments.pop("at", None)
        if isinstance(when, bool) or not isinstance(when, int | float) or not 0 <= when <= 1:
            raise ValueError(
                f"phases: {label}.at={when!r} must be a fraction of the steps, in [0, 1]"
            )
        start = round(when * config["steps"])
        run = run._replace(start=start)
        transform = registry.build("phase", arguments, offered={"run": run})
        # Before the first step there is nothing to keep.
        phases.append(Phase(label, start, transform, policy if start else "reset_all"))
    return sorted(phases, key=lambda phase: phase.step)


def _rule(label: str, section: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(section, Mapping):
        raise ValueError(f"compress: rule {label!r} is {section!r} and not a section of settings")
    hyper = dict(section)
    for key in ("path", "name"):
        if not isinstance(hyper.get(key), str):
            raise ValueError(f"compress: rule {label!r} {hyper} needs {key!r}, a string")
    return hyper.pop("path"), hyper.pop("name"), hyper
