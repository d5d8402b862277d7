"""An experiment checked whole, and every structure of its state, before anything is compiled."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxlab.core import registry
from jaxlab.core.cost import ParameterTable, parameter_table
from jaxlab.core.lifecycle import finalize, matrices
from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.registry import suggest
from jaxlab.core.trainable import freezable_paths
from jaxlab.interop.initial import load_init
from jaxlab.optim.chain import check_paths, make_optimizer
from jaxlab.training.loop import StepFn, make_train_step, stream
from jaxlab.training.phases import Phase, Surroundings, make_phases
from jaxlab.training.sharding import make_mesh, param_specs, put_batch, state_shardings
from jaxlab.training.state import TrainState, init_state, restructure

_PRECISIONS = ("default", "high", "highest")
# Sections that say how often something is done.
_EVERY = ("log", "eval", "checkpoint")
# Settings that may differ when a run is continued: they change what is written down and where, or
# (mesh) only the order of floating-point sums.
_FREE = ("workdir", "name", "log", "checkpoint", "mesh")


class Experiment:
    """The parts that a config names, and the shapes of the state in every phase.

    Args:
      config: a plain dict, as `jaxlab.config.base_config(...).to_dict()` gives.

    Raises:
      ValueError: a name, key, value, pattern or shape is wrong; the message says what would be
        right. Nothing has been compiled by then.

    Attributes:
      task: model, data, loss and metrics.
      tx: the optimizer.
      rate: the learning rate as a function of the step.
      mesh: the devices.
      phases: the changes of structure, in order.
      dense: shapes of the model's own parameters.
      structures: shapes of the state before the first phase and after each.
    """

    def __init__(self, config: Mapping[str, Any]):
        workdir = config["workdir"] or f"runs/{config['name']}-{config['seed']}"
        self.config = {**config, "workdir": workdir}
        self._check_numbers()
        with self.precision():
            self._build()

    def _build(self) -> None:
        config = self.config
        self.task = build_task(config)
        self.tx, self.rate = make_optimizer(config["optim"], steps=max(self.steps, 1))
        around = Surroundings(self.steps, 0, self.loss, self.batch, self.task.calibration_weight)
        self.phases = make_phases(config, around)
        self._check_calls()
        key = jax.eval_shape(lambda: jax.random.key(0))
        self.dense = jax.eval_shape(self.task.init, key)
        # Read for its shapes, which a compressed start has of its own, and let go.
        start = self._load() if config["init"] else self.dense
        self.structures: list[TrainState] = [jax.eval_shape(self.init_state, start)]
        for phase in self.phases:
            restructured = jax.eval_shape(self.phase_fn(phase), self.structures[-1], key)
            self.structures.append(restructured)
        self._check_patterns()

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The context of everything that is computed: `x64` and `matmul_precision` of the config.

        The constructor and `Run` enter it by themselves; whoever calls the parts of an experiment
        does so inside it.
        """
        # Not enable_x64(False): a caller's own context is not ours to leave.
        wide = jax.enable_x64(True) if self.config["x64"] else nullcontext()
        with wide, jax.default_matmul_precision(self.config["matmul_precision"]):
            yield

    def initial_params(self) -> Any:
        """Parameters before the first step and any phase."""
        if self.config["init"]:
            return self._load()
        return jax.jit(self.task.init)(stream(self.config["seed"], "init"))

    def init_state(self, params: Any) -> TrainState:
        """The state before the first step and before any phase."""
        return init_state(
            params, self.tx, freeze=tuple(self.config["freeze"]), ema=self.config["ema"]
        )

    def phase_fn(self, phase: Phase) -> Any:
        """A phase as a function (state, key) -> state."""

        def apply(state: TrainState, key: jax.Array) -> TrainState:
            freeze = tuple(self.config["freeze"])
            return restructure(
                state,
                phase.transform,
                self.tx,
                freeze=freeze,
                key=key,
                policy=phase.opt_state,
                progress=phase.step / max(self.steps, 1),
            )

        return apply

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """The task's loss of a batch, with the randomness of phases."""
        return self.task.loss(params, batch, stream(self.config["seed"], "phases"))[0]

    def batch(self, step: int) -> Any:
        """The training batch of a step, on its devices."""
        return put_batch(self.task.batch(step), self.mesh)

    def batches(self, step: int, count: int) -> Any:
        """The training batches of some steps, stacked along a new first axis; one is not."""
        if count == 1:
            return self.batch(step)
        parts = [self.task.batch(step + i) for i in range(count)]
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *parts)
        return put_batch(stacked, self.mesh, stacked=True)

    def shardings(self, state: TrainState) -> TrainState:
        """The sharding of every leaf of a state, or of its shapes."""
        specs = param_specs(state.params, self.config["mesh"]["rules"], self.mesh)
        return state_shardings(state, specs, self.mesh)

    @cached_property
    def train_step(self) -> StepFn:
        """The pure step."""
        return make_train_step(
            self.task.loss,
            self.tx,
            steps=max(self.steps, 1),
            seed=self.config["seed"],
            accumulate=self.config["accumulate"],
            ema=self.config["ema"],
            rate=self.rate,
            diagnostics=self.config["log"]["diagnostics"],
            weight=self.task.calibration_weight,
        )

    @property
    def table_before(self) -> ParameterTable:
        """The parameters as the model has them."""
        return parameter_table(self.dense)

    @property
    def table_after(self) -> ParameterTable:
        """The parameters after all phases, finalized."""
        with self.precision():
            return parameter_table(jax.eval_shape(finalize, self.structures[-1].params))

    @property
    def methods(self) -> list[str]:
        """Names of the methods in the last structure, sorted."""
        return sorted({w.name for w in matrices(self.structures[-1].params).values()})

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and data that the result depends on, whatever the seed.

        Parameters to start from count by whether there are any: every seed may have its own.
        """
        part = {k: v for k, v in result_part(self.config).items() if k != "seed"}
        part |= {"init": bool(part["init"]), "data_info": self.task.info}
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]

    def _load(self) -> Any:
        return load_init(self.config["init"], self.dense, section=self.config["model"])

    def _check_numbers(self) -> None:
        config = self.config
        self.steps = _at_least(config, "steps", 0)
        self.mesh = make_mesh(config["mesh"]["data"], config["mesh"]["model"])
        batch = _at_least(config, "batch_size", 1)
        parts = self.mesh.shape["data"] * _at_least(config, "accumulate", 1)
        if batch % parts:
            raise ValueError(
                f"batch_size={batch} must be a multiple of mesh.data x accumulate = {parts}; "
                f"nearest: {max(round(batch / parts), 1) * parts}"
            )
        precision = config["matmul_precision"]
        if precision not in _PRECISIONS:
            raise ValueError(f"matmul_precision={precision!r}: {suggest(precision, _PRECISIONS)}")
        if not isinstance(config["x64"], bool):
            raise ValueError(f"x64={config['x64']!r} must be True or False")
        if not 0 <= config["ema"] < 1:
            raise ValueError(f"ema={config['ema']} must be in [0, 1)")
        _at_least(config, "eval.every", 0)
        _at_least(config, "checkpoint.every", 0)
        _at_least(config, "checkpoint.keep", 1)
        _at_least(config, "log.every", 1)
        if config["log"]["tensorboard"] and not importlib.util.find_spec("tensorboardX"):
            raise ValueError(
                "log.tensorboard=True needs the extra: pip install 'jaxlab[tensorboard]'"
            )

    def _check_calls(self) -> None:
        """A call of several steps ends where something is due, and so must begin there."""
        config, count = self.config, _at_least(self.config, "steps_per_call", 1)
        due = {"steps": self.steps, **{f"{k}.every": config[k]["every"] for k in _EVERY}}
        due |= {f"the step of phase {phase.label!r}": phase.step for phase in self.phases}
        for name, number in due.items():
            if number % count:
                common = math.gcd(*due.values())
                nearest = max(d for d in range(1, count) if common % d == 0)
                raise ValueError(
                    f"steps_per_call={count} must divide {name} = {number}; nearest that divides "
                    f"all that it must: {nearest}"
                )

    def _check_patterns(self) -> None:
        # A pattern may be meant for the parameters of a later phase, so all of them count.
        trained = {path for state in self.structures for path in leaf_paths(state.trainable)}
        check_paths(self.config["optim"], sorted(trained))
        freezable = {path for state in self.structures for path in freezable_paths(state.params)}
        freeze = [(pattern, True) for pattern in self.config["freeze"]]
        first_match(freeze, sorted(freezable), owner="freeze")
        for state in self.structures:
            self.shardings(state)


def build_task(config: Mapping[str, Any]) -> Any:
    """The task of a config, with the data and model sections that the config names."""
    sections = {k: config[k] for k in ("data", "model") if config[k]["name"]}
    return registry.build(
        "task",
        config["task"],
        seed=config["seed"],
        batch_size=config["batch_size"],
        **sections,
    )


def result_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the result of a run depends on."""
    part = {k: v for k, v in config.items() if k not in _FREE}
    # As a list: the order of rules decides which one wins.
    return {**part, "compress": [[label, rule] for label, rule in config["compress"].items()]}


def _at_least(section: Mapping[str, Any], key: str, least: int) -> int:
    value: Any = section
    for part in key.split("."):
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{key}={value!r} must be a whole number, {least} or more")
    return value
