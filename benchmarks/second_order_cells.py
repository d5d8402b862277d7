"""Training runs of which the learning rate, the seed and the data are arguments of one program.

A benchmark of optimizers trains one model many times: with a rate compiled into it, every point of
a grid would be compiled anew.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.config import base_config
from jaxlab.optim.mkor.hybrid import HybridState
from jaxlab.training.experiment import Experiment, build_task
from jaxlab.training.loop import stream

Batches = Any


class Batching(NamedTuple):
    """The data of a model.

    Attributes:
      batches: by seed, the batches of all steps, stacked, on the device.
      held_out: the held-out batches, stacked, on the device.
      every: steps of one launch.
      info: what identifies the data.
      options: of the compiler, for all that is compiled with these shapes.
    """

    batches: Sequence[Batches]
    held_out: Batches
    every: int
    info: dict[str, Any]
    options: dict[str, Any]


class Model(NamedTuple):
    """What all optimizers on a model share, compiled.

    Attributes:
      data: its batches.
      init: key -> parameters.
      evaluate: (parameters, held-out batches) -> {metric: mean over them}.
    """

    data: Batching
    init: Callable[..., Any]
    evaluate: Callable[..., Any]


class Program(NamedTuple):
    """One optimizer on one model, compiled.

    Attributes:
      model: the model.
      init: parameters -> state.
      launch: (state, batches with a first axis over the steps, rate) -> (state, loss of each step);
        the state is donated.
    """

    model: Model
    init: Callable[..., Any]
    launch: Callable[..., Any]

    def start(self, seed: int) -> Any:
        """The state before the first step."""
        return self.init(self.model.init(stream(seed, "init")))

    def evaluate(self, state: Any, held_out: Batches) -> dict[str, float]:
        """The metrics of a state."""
        found = self.model.evaluate(state.eval_params, held_out)
        return {name: float(value) for name, value in found.items()}


def settings(
    name: str, sections: Mapping[str, Any], optim: Mapping[str, Any], *, steps: int, seed: int = 0
) -> dict[str, Any]:
    """The config of an experiment whose peak learning rate is 1, to be multiplied later."""
    c = base_config(name)
    c.update({"steps": steps, "seed": seed, "batch_size": sections["batch_size"]})
    for section in ("task", "data", "model"):
        c[section].update(sections[section])
    c.optim.update({"weight_decay": 0.0, "clip": 0.0, **optim, "lr": 1.0})
    return {**c.to_dict(), "matmul_precision": sections.get("matmul_precision", "highest")}


def batching(
    config: Mapping[str, Any], *, seeds: int, every: int, options: Mapping[str, Any] | None = None
) -> Batching:
    """The batches of every seed and the held-out ones, on the device."""

    def of_seed(seed: int) -> tuple[Any, Batches]:
        task = build_task({**config, "seed": seed})
        return task, stacked([task.batch(i) for i in range(config["steps"])])

    with ThreadPoolExecutor(seeds) as pool:
        tasks, batches = zip(*pool.map(of_seed, range(seeds)), strict=True)
    held_out = stacked(list(tasks[0].eval_batches()))
    return Batching(batches, held_out, every, tasks[0].info, dict(options or {}))


def model(config: Mapping[str, Any], data: Batching) -> Model:
    """Compiles a model; safe in several threads at once.

    Args:
      config: what `settings` returned, of any optimizer.
      data: of the model.
    """
    task = Experiment(config).task

    def evaluate(params: Any, held_out: Batches) -> Any:
        sums = jax.lax.map(lambda batch: task.eval_sums(params, batch), held_out)
        total = jax.tree.map(jnp.sum, sums)
        return {k: v / total["weight"] for k, v in total.items()}

    with jax.default_matmul_precision(config["matmul_precision"]):
        key = stream(0, "init")
        params = jax.eval_shape(task.init, key)
        return Model(
            data,
            jax.jit(task.init).lower(key).compile(data.options),
            jax.jit(evaluate).lower(params, data.held_out).compile(data.options),
        )


def program(config: Mapping[str, Any], of: Model) -> Program:
    """Compiles an optimizer on a model; safe in several threads at once.

    Args:
      config: what `settings` returned.
      of: the model.
    """
    experiment = Experiment(config)

    def launch(state: Any, batches: Batches, rate: jax.Array) -> Any:
        def body(state, batch):
            new, metrics = experiment.train_step(state, batch)
            # The step is one of rate 1, in which every optimizer here is linear.
            move = lambda old, new: old + rate.astype(old.dtype) * (new - old)  # noqa: E731
            trainable = jax.tree.map(move, state.trainable, new.trainable)
            return dataclasses.replace(new, trainable=trainable), metrics["loss"]

        return jax.lax.scan(body, state, batches)

    every = of.data.every
    shape = lambda x: jax.ShapeDtypeStruct((every, *x.shape[1:]), x.dtype)  # noqa: E731
    with jax.default_matmul_precision(config["matmul_precision"]):
        params = jax.eval_shape(experiment.task.init, stream(0, "init"))
        state = jax.eval_shape(experiment.init_state, params)
        batches = jax.tree.map(shape, of.data.batches[0])
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        return Program(
            of,
            jax.jit(experiment.init_state).lower(params).compile(of.data.options),
            jax.jit(launch, donate_argnums=0).lower(state, batches, rate).compile(of.data.options),
        )


def programs(configs: Mapping[str, Any], data: Mapping[str, Batching]) -> dict[str, Program]:
    """Compiles several at once; `data` has the model of each key, which begins with its name."""
    # Optimizers that want the model in another form have a model of their own.
    same = {key: f"{key.split(' ')[0]} {config['model']}" for key, config in configs.items()}
    first = {name: key for key, name in reversed(same.items())}
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(lambda key: model(configs[key], data[key.split(" ")[0]]), first.values())
        models = dict(zip(first, made, strict=True))
        found = pool.map(lambda key: program(configs[key], models[same[key]]), configs)
        return dict(zip(configs, found, strict=True))


def run(
    made: Program,
    *,
    rate: float,
    seed: int,
    stop: Callable[[Sequence[float]], bool] = lambda losses: False,
) -> dict[str, Any]:
    """One run, given up when the held-out loss is not finite.

    Args:
      made: the optimizer on a model.
      rate: the learning rate.
      seed: of the parameters and the batches.
      stop: held-out losses so far -> whether to end the run, which is then "stopped".

    Returns:
      "held_out", the held-out loss after every launch, "trained", the mean training loss of each,
      "seconds" of each and the last launch's "metrics"; of a hybrid optimizer "switched_at", the
      step that was the first without factors, or None if there was none.
    """
    data, state, scale = made.model.data, made.start(seed), jnp.float32(rate)
    batches = data.batches[seed]
    steps = len(jax.tree.leaves(batches)[0])
    held_out, trained, seconds, metrics, stopped = [], [], [], {}, False
    for start in range(0, steps - data.every + 1, data.every):
        part = {name: x[start : start + data.every] for name, x in batches.items()}
        jax.block_until_ready((state, part))
        began = time.perf_counter()
        state, losses = jax.block_until_ready(made.launch(state, part, scale))
        seconds.append(time.perf_counter() - began)
        metrics = made.evaluate(state, data.held_out)
        held_out.append(metrics["loss"])
        trained.append(float(np.mean(losses)))
        if not np.isfinite(held_out[-1]):
            break
        if stopped := stop(held_out):
            break
    return {
        **({"stopped": True} if stopped else {}),
        "held_out": [_number(x) for x in held_out],
        "trained": [_number(x) for x in trained],
        "seconds": [round(s, 6) for s in seconds],
        "metrics": {k: _number(v) for k, v in metrics.items()},
        **switches(state.opt),
    }


def switches(opt: Any) -> dict[str, int | None]:
    """When an optimizer fell back to first order, of those whose state says it."""
    is_hybrid = lambda x: isinstance(x, HybridState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt, is_leaf=is_hybrid) if is_hybrid(x)]
    steps = [int(x.switched_at) if x.switched else None for x in found]
    return {"switched_at": steps[0]} if steps else {}


def _number(x: float) -> float | None:
    return round(x, 6) if np.isfinite(x) else None


def stacked(batches: Sequence[Mapping[str, np.ndarray]]) -> Batches:
    """Batches along a new first axis, on the device."""
    return {k: jnp.asarray(np.stack([b[k] for b in batches])) for k in batches[0]}


def parameters(config: Mapping[str, Any]) -> int:
    """How many parameters a model has."""
    return sum(x.size for x in jax.tree.leaves(Experiment(config).dense))
