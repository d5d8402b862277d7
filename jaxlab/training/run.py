"""From a checked experiment to its run folder: train or continue, finalize, measure, record."""

import json
import platform
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlab.core.cost import nbytes
from jaxlab.core.lifecycle import at, finalize
from jaxlab.core.match import leaf_paths
from jaxlab.interop.artefact import save
from jaxlab.training.checkpoint import Checkpoints
from jaxlab.training.curves import plot_curves
from jaxlab.training.diagnostics import gradient_noise
from jaxlab.training.experiment import Experiment, result_part
from jaxlab.training.figures import chosen_step, save_figures
from jaxlab.training.forwarding import jit_forwarding
from jaxlab.training.logging import Recorder, read_metrics
from jaxlab.training.loop import compile_step, stream
from jaxlab.training.sharding import put_batch, put_tree, to_host
from jaxlab.training.state import TrainState
from jaxlab.training.stopwatch import Stopwatch

# Calls of the step that the host may be ahead of the device.
_UNDER_WAY = 4
# Minibatches that the variance of the gradient is taken over.
_NOISE_BATCHES = 8
# What a summary says of the processes that trained, which a later one must not say of itself.
_OF_TRAINING = ("compilations", "steps_per_second", "wall_seconds", "machine", "versions")


class Run:
    """One experiment in its run folder.

    Args:
      experiment: the checked experiment.

    Raises:
      ValueError: the folder holds a run with other settings.

    Attributes:
      folder: where everything is written.
      traces: how often the step was traced for each structure that was trained.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.config = experiment.config
        self.folder = Path(self.config["workdir"])
        self.traces: list[int] = []
        self._writes = jax.process_index() == 0
        # What `_measure` returned for the present state, or None.
        self._measured: tuple[Any, dict[str, dict[str, float]]] | None = None
        # By which metric a task would choose a step, where that is not its quality.
        self._choice = getattr(experiment.task, "choice", None)
        self._claim()

        def sums(params: Any, batch: Any) -> Any:
            return experiment.task.eval_sums(params, batch)

        self._eval_sums = jax.jit(sums)
        self._batch_loss = jax.jit(experiment.loss)
        self._noise = None
        if self.config["log"]["diagnostics"]:
            steps = max(experiment.steps, 1)
            self._noise = jax.jit(partial(gradient_noise, experiment.task.loss, steps=steps))
        self._at = jit_forwarding(at)
        self._finalize = jit_forwarding(finalize)

    def train(self) -> dict[str, Any]:
        """Trains or continues to the end; returns what it leaves in `summary.json`."""
        with self.experiment.precision():
            return self._train()

    def _train(self) -> dict[str, Any]:
        self._began, self._earlier = time.perf_counter(), 0.0
        keep = self.config["checkpoint"]["keep"]
        tensorboard = self._writes and self.config["log"]["tensorboard"]
        judged = self._choice or self.experiment.task.quality
        with closing(Checkpoints(self.folder / "checkpoints", judged, keep)) as checkpoints:
            latest = checkpoints.latest()
            start = latest or 0
            if start:
                self._earlier = checkpoints.seconds(start)
            recorder = Recorder(
                self.folder / "metrics.jsonl" if self._writes else None,
                start=start,
                steps=self.experiment.steps,
                tensorboard=self.folder / "tensorboard" if tensorboard else None,
                shown=getattr(self.experiment.task, "shown", ()),
            )
            with closing(recorder):
                state, rate = self._advance(start, checkpoints, recorder)
                params, metrics = self._measured or self._measure(state)
        host = to_host(params)
        summary = self._summary(state, params, metrics, rate)
        if self._writes:
            summary["bytes"]["file"] = save(self.folder / "model.safetensors", host)
            lines = read_metrics(self.folder / "metrics.jsonl")
            plot_curves(self.folder / "curves.png", lines, self.experiment.task.quality)
            if hasattr(self.experiment.task, "figures"):
                save_figures(self.folder, self.experiment.task.figures(host))
            if self._choice:
                summary["chosen"] = {"by": self._choice.name, **chosen_step(lines, self._choice)}
            seconds, file = self._seconds(), self.folder / "summary.json"
            summary["wall_seconds"] = None if seconds is None else round(seconds, 2)
            if latest == self.experiment.steps and file.exists():
                known = json.loads(file.read_text(encoding="utf-8"))
                summary |= {k: known[k] for k in _OF_TRAINING if k in known}
            _write_json(file, summary)
        return summary

    def _seconds(self) -> float | None:
        """Of the whole run: up to the checkpoint it goes on from, and since; None if unknown."""
        if self._earlier is None:
            return None
        return self._earlier + time.perf_counter() - self._began

    def evaluate(self, params: Any) -> dict[str, float]:
        """Metrics of parameters on the held-out data."""
        with self.experiment.precision():
            return self._evaluate(params)

    def _evaluate(self, params: Any) -> dict[str, float]:
        task, totals = self.experiment.task, {}
        for batch in task.eval_batches():
            sums = self._eval_sums(params, put_batch(batch, self.experiment.mesh))
            totals = sums if not totals else jax.tree.map(lambda a, b: a + b, totals, sums)
        return task.eval_metrics({k: float(v) for k, v in jax.device_get(totals).items()})

    def _advance(
        self, start: int, checkpoints: Checkpoints, recorder: Recorder
    ) -> tuple[TrainState, float | None]:
        """The steps from `start` on; returns the last state and the steps per second, if known."""
        experiment, config = self.experiment, self.config
        log_every, steps = config["log"]["every"], experiment.steps
        at_once = config["steps_per_call"]
        key = stream(config["seed"], "phases")
        done = sum(phase.step < start for phase in experiment.phases)
        # A teacher is in memory only as long as ours is not.
        if hasattr(experiment.task, "prepare"):
            experiment.task.prepare()
        state = self._restore(start, done, checkpoints) if start else self._init()
        watch, under_way = Stopwatch(), deque()
        step_fn = warm = None  # `warm` is the one that was called, and so compiled
        step = start
        while True:
            while done < len(experiment.phases) and experiment.phases[done].step == step:
                watch.stop(step, state)
                phase, inside = experiment.phases[done], 0 < step < steps
                jump = {"loss_before": self._loss(state)} if inside else {}
                state = experiment.phase_fn(phase)(state, jax.random.fold_in(key, done))
                state = put_tree(state, experiment.shardings(state))
                if step:
                    recorder.say(f"step {step}: phase {phase.label!r}")
                if inside:
                    jump["loss_after"] = self._loss(state)
                    recorder.now(step, jump, phase=phase.label)
                done, step_fn, self._measured = done + 1, None, None
                if step == steps:
                    self._record(step, state, recorder, phase=phase.label)
            if step == steps:
                break
            if step_fn is None:
                self.traces.append(0)
                shardings = experiment.shardings(state)
                step_fn = compile_step(experiment.train_step, shardings, self.traces, at_once)
            batch = experiment.batches(step, at_once)
            (state, metrics), self._measured = step_fn(state, batch), None
            step += at_once
            # Few calls may be under way at once: more gain nothing, hold their batches in memory,
            # and make the collectives of several CPU devices time out.
            under_way.append(metrics["loss"])
            if step_fn is not warm:
                watch.start(step, state)
                warm = step_fn
            if len(under_way) > _UNDER_WAY:
                jax.block_until_ready(under_way.popleft())
            if step % log_every == 0 or step == steps:
                recorder.later(step, metrics)
            due = {k: config[k]["every"] for k in ("eval", "checkpoint")}
            due = {k: step == steps or bool(v and step % v == 0) for k, v in due.items()}
            if any(due.values()):
                watch.stop(step, state)
                self._evaluate_and_save(step, state, checkpoints, recorder, **due)
                watch.start(step, state)
        return state, watch.rate

    def _loss(self, state: TrainState) -> float:
        """The loss of the batch that the next step is about to see."""
        step = int(state.step)
        now = self._at(state.params, np.float32(step / self.experiment.steps))
        return float(self._batch_loss(now, self.experiment.batch(step)))

    def _evaluate_and_save(
        self,
        step: int,
        state: TrainState,
        checkpoints: Checkpoints,
        recorder: Recorder,
        *,
        eval: bool,
        checkpoint: bool,
    ) -> None:
        quality = None
        if eval:
            quality = self._record(step, state, recorder)["finalized"]
        if checkpoint:
            # Lines up to this step must be on disk first: a resumed run begins after them.
            recorder.flush()
            checkpoints.save(step, state, quality, seconds=self._seconds())

    def _record(
        self, step: int, state: TrainState, recorder: Recorder, phase: str | None = None
    ) -> dict[str, dict[str, float]]:
        self._measured = self._measure(state)
        metrics = self._measured[1]
        flat = {f"{form}/{k}": v for form, m in metrics.items() for k, v in m.items()}
        recorder.now(step, flat, phase=phase)
        if self._noise is not None:
            batches = [self.experiment.batch(step + i) for i in range(_NOISE_BATCHES)]
            key = jax.random.fold_in(stream(self.config["seed"], "steps"), step)
            noise = self._noise(state, batches, key)
            recorder.later(step, {f"noise/{k}": v for k, v in noise.items()})
        return metrics

    def _measure(self, state: TrainState) -> tuple[Any, dict[str, dict[str, float]]]:
        """The finalized parameters, and the metrics with and without `finalize`."""
        progress = min(int(state.step) / max(self.experiment.steps, 1), 1.0)
        if not self.experiment.steps:
            progress = 1.0
        now = self._at(state.eval_params, np.float32(progress))
        # Again with values at hand: no trace knows how much a mask keeps, and so its packed size.
        final = finalize(self._finalize(now))
        return final, {"trained": self._evaluate(now), "finalized": self._evaluate(final)}

    def _init(self) -> TrainState:
        state = self.experiment.init_state(self.experiment.initial_params())
        return put_tree(state, self.experiment.shardings(state))

    def _restore(self, start: int, done: int, checkpoints: Checkpoints) -> TrainState:
        shapes = self.experiment.structures[done]
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.experiment.shardings(shapes),
        )
        return checkpoints.restore(start, like)

    def _claim(self) -> None:
        """Makes the folder, or checks that what is in it is this run."""
        file = self.folder / "config.json"
        # The data belong to the run: the same config may name a folder that has changed since.
        ours = json.loads(json.dumps({**self.config, "data_info": self.experiment.task.info}))
        if file.exists():
            theirs = json.loads(file.read_text(encoding="utf-8"))
            here, there = leaf_paths(result_part(ours)), leaf_paths(result_part(theirs))
            changed = [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]
            if changed:
                shown = ", ".join(
                    f"{k} is {there.get(k)} there, {here.get(k)} here" for k in changed
                )
                raise ValueError(
                    f"workdir={str(self.folder)!r} holds another run: {shown}. Choose another "
                    "--config.workdir, or remove that folder"
                )
        elif self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write_json(file, ours)

    def _summary(
        self, state: TrainState, params: Any, metrics: dict[str, Any], rate: float | None
    ) -> dict[str, Any]:
        experiment, config = self.experiment, self.config
        quality = experiment.task.quality
        return {
            "format": 1,
            "config": config["name"],
            "config_hash": experiment.fingerprint,
            "seed": config["seed"],
            "task": config["task"]["name"],
            "data": experiment.task.info,
            "model": config["model"]["name"],
            "methods": experiment.methods,
            "steps": experiment.steps,
            "quality": {
                "name": quality.name,
                "mode": quality.mode,
                **{form: values[quality.name] for form, values in metrics.items()},
            },
            "metrics": metrics,
            "bytes": {
                "dense": nbytes(experiment.dense),
                "trained": nbytes(state.eval_params),
                "finalized": nbytes(params),
                "file": None,
            },
            "compilations": self.traces,
            "steps_per_second": rate,
            "wall_seconds": None,
            "machine": _machine(),
            "versions": {p: metadata.version(p) for p in ("jax", "flax", "optax", "numpy")},
            "finished": True,
        }


def _machine() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "platform": devices[0].platform,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    # Whole or not at all: a run that is killed here leaves the old file.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
