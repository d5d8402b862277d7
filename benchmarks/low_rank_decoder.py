"""The trained decoder of benchmarks/low_rank_language_model.py.

Quality is that of the kernels multiplied out, so that one compilation serves all methods.
Calibration sees training windows that are drawn after those of the training run, and never a
held-out byte.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiments import KEPT, config_of

from jaxlab.core.calibration import Gram, collect_grams
from jaxlab.core.collect import kernels
from jaxlab.core.compress import Rule, compress
from jaxlab.core.matrix import is_matrix, to_dense
from jaxlab.interop.pretrained import stack_layers
from jaxlab.training.experiment import Experiment, build_task
from jaxlab.training.run import Run

RATIOS = (0.9, 0.8, 0.6)
# Ranks are multiples of it: tensor cores multiply tiles of such widths.
ALIGN = 8
PATHS = tuple(f"layers/mlp/{name}/kernel" for name in ("gate", "up", "down"))
# Of the stacked layers and of numbered ones.
MLP = r"layers/(\d+/)?mlp/(gate|up|down)/kernel"
_SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "steps": 60,
        "recovery": 10,
        "batches": 2,
        "rounds": 3,
        "config": {"batch_size": 8},
        "data": {"seq_len": 64, "eval_bytes": 8192},
        "model": {"d_model": 64, "depth": 2, "heads": 2, "d_mlp": 192, "scan_layers": True},
    },
    "large": {
        "steps": 4000,
        "recovery": 200,
        "batches": 16,
        "rounds": 9,
        "config": {},
        "data": {},
        "model": {},
    },
}


class Decoder:
    """A trained dense decoder.

    Attributes:
      facts: what identifies it, and how it was trained.
      calibration: seconds and tokens of the one pass that most cells share; empty before it.
    """

    def __init__(self, size: str, folder: str, *, steps: int, recovery: int, batches: int):
        """Loads the decoder from the run folder, or trains it there; 0 means the size's number."""
        self.size = _SIZES[size]
        self.folder = Path(folder)
        self.recovery = recovery or self.size["recovery"]
        self.count = batches or self.size["batches"]
        self.config = self._config(size, steps or self.size["steps"])
        self.experiment = Experiment(self.config)
        summary = self.folder / "summary.json"
        if not summary.exists():
            Run(self.experiment).train()
        said = json.loads(summary.read_text(encoding="utf-8"))
        self.params = Experiment({**self.config, "init": folder}).initial_params()
        model = (self.folder / "model.safetensors").read_bytes()
        self.facts = {k: said[k] for k in KEPT} | {"sha256": hashlib.sha256(model).hexdigest()}
        self.calibration: dict[str, Any] = {}
        self._largest: dict[str, tuple[Any, float]] = {}
        self._sums = jax.jit(lambda params, batch: self.experiment.task.eval_sums(params, batch))

    def _config(self, size: str, steps: int) -> dict[str, Any]:
        c = config_of("monarch_python_source", f"dense,size={size}")
        c.update(self.size["config"])
        c.data.update(self.size["data"])
        c.model.update(self.size["model"])
        c.steps, c.workdir = steps, str(self.folder)
        c.eval.every = max(steps // 4, 1)
        # Of float32 products what the device finds fast: the model's own dtype decides the rest.
        c.matmul_precision = "default"
        return c.to_dict()

    @cached_property
    def batches(self) -> list[Any]:
        """The windows of calibration."""
        first = self.config["steps"]
        return [self.experiment.batch(first + i) for i in range(self.count)]

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """The statistics of the MLP kernels' inputs in the dense model."""
        began = time.perf_counter()
        with jax.default_matmul_precision("highest"):
            found = collect_grams(self.experiment.loss, self.params, self.batches, PATHS)
        jax.block_until_ready(found)
        self.calibration = {
            "seconds": round(time.perf_counter() - began, 2),
            "tokens": self.count * self.config["batch_size"] * self.config["data"]["seq_len"],
        }
        return found

    @cached_property
    def unrolled(self) -> Callable[[Any, Any], jax.Array]:
        """The loss of the model whose layers are numbered, which can be compressed one by one."""
        task = build_task({**self.config, "model": {**self.config["model"], "scan_layers": False}})
        return lambda params, batch: task.loss(params, batch, jax.random.key(0))[0]

    def largest(self, decomposition: str) -> tuple[Any, float]:
        """All layers at once at the largest kept fraction, and the seconds without calibration."""
        if decomposition not in self._largest:
            grams, chosen = self.grams, rules(decomposition, max(RATIOS))
            offered = lambda path: {"gram": grams[path]}  # noqa: E731
            made = timed(lambda: compress(self.params, chosen, offered=offered))
            self._largest[decomposition] = made
        return self._largest[decomposition]

    def quality(self, params: Any) -> dict[str, Any]:
        """Held-out bits per byte of parameters, in all and by batch."""
        task, rows = self.experiment.task, []
        for batch in task.eval_batches():
            rows.append({k: float(v) for k, v in self._sums(params, batch).items()})
        total = {k: sum(row[k] for row in rows) for k in rows[0]}
        by_batch = [round(task.eval_metrics(row)["bits_per_byte"], 6) for row in rows]
        return {"bits_per_byte": task.eval_metrics(total)["bits_per_byte"], "by_batch": by_batch}

    def dense(self) -> dict[str, Any]:
        """The cell of the model as it was trained."""
        return self.quality(self.params)

    def measured(self, made: Any) -> dict[str, Any]:
        """The cell of compressed parameters: quality and kept fraction."""
        multiplied_out = stack_layers(jax.tree.map(to_dense, made, is_leaf=is_matrix))
        return self.quality(multiplied_out) | {"kept": round(kept(made), 4)}


def rules(decomposition: str, ratio: float) -> list[Rule]:
    """The one rule for all MLP kernels."""
    hyper = {"decomposition": decomposition, "ratio": ratio, "align": ALIGN}
    return [(MLP, "low_rank", hyper)]


def kept(params: Any) -> float:
    """The fraction of the MLP kernels' numbers that is stored."""
    found = [w for path, w in kernels(params).items() if re.fullmatch(MLP, path)]
    numbers = sum(x.size for x in jax.tree.leaves(found))
    return numbers / sum(int(np.prod(w.shape)) for w in found)


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """What a function makes, under float32 products, and the seconds that it took."""
    began = time.perf_counter()
    with jax.default_matmul_precision("highest"):
        made = jax.block_until_ready(make())
    return made, time.perf_counter() - began
