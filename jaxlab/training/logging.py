"""Records of a run: metrics as JSON lines, progress on the console, TensorBoard if asked for."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm


class Recorder:
    """Appends metrics to a file, in the order of the steps, and shows progress.

    The file holds nothing that depends on the clock, so that a resumed run writes the same bytes.

    Args:
      path: the JSON-lines file, or None to write none (every process but the first).
      start: lines of later steps are removed: the run goes on from this step.
      steps: length of the run.
      tensorboard: folder for TensorBoard's event files, or None.
      shown: names of metrics that progress shows after the loss.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        *,
        start: int = 0,
        steps: int = 0,
        tensorboard: str | os.PathLike | None = None,
        shown: Sequence[str] = (),
    ):
        self._file = None
        if path is not None:
            _truncate_after(Path(path), start)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._writer = _tensorboard_writer(tensorboard, start) if tensorboard else None
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._steps = steps
        self._names = ("loss", *shown)
        watched = path is not None
        self._bar = None
        if watched and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start, dynamic_ncols=True, unit="step")
        self._lines = watched and not self._bar
        self._shown_at = start

    def later(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes metrics that may still be computed, and writes those of the call before.

        So the host waits for a step that is long done, and the device never waits for the host.
        """
        self.flush()
        self._pending = (step, metrics)

    def now(self, step: int, metrics: Mapping[str, float], *, phase: str | None = None) -> None:
        """Writes metrics at once, after all that came before; `phase` if they are of its result."""
        self.flush()
        self._write(step, metrics, **({"phase": phase} if phase else {}))
        self.say(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))

    def flush(self) -> None:
        """Writes what `later` still holds back."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {k: float(v) for k, v in jax.device_get(dict(metrics)).items()}
        self._write(step, values)
        brief = ", ".join(f"{k} {values[k]:.4g}" for k in self._names if k in values)
        if self._bar is not None:
            self._bar.set_postfix_str(brief, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._lines and step - self._shown_at >= self._steps / 20:
            self._shown_at = step
            print(f"step {step}/{self._steps}: {brief}", flush=True)

    def say(self, text: str) -> None:
        """Prints a line without breaking the progress bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._lines:
            print(text, flush=True)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self.flush()
        if self._bar is not None:
            self._bar.close()
        for stream in (self._file, self._writer):
            if stream is not None:
                stream.close()

    def _write(self, step: int, metrics: Mapping[str, float], **labels: str) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step, **labels, **metrics}) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a killed run left unfinished is dropped."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    # Whatever follows the last newline was cut off in the middle.
    return [json.loads(line) for line in lines[:-1]]


def _truncate_after(path: Path, step: int) -> None:
    """Drops the lines of later steps, of phases that this run is to apply again, and cut ones."""
    if not path.exists():
        return
    lines = read_metrics(path)
    kept = [m for m in lines if m["step"] < step or (m["step"] == step and "phase" not in m)]
    # Whole or not at all: a run that is killed here keeps its history.
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
    temporary.replace(path)


def _tensorboard_writer(folder: str | os.PathLike, start: int) -> Any:
    from tensorboardX import SummaryWriter  # an extra, so that it is imported only when asked for

    # Events of steps that a resumed run does again are struck out.
    return SummaryWriter(str(folder), purge_step=start + 1)
