"""The sentence encoder of the benchmark, and what draws of docstrings say about its kernels."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments import config_of
from tqdm import tqdm

from jaxlab.core.calibration import Gram, collect_gradient_grams, collect_grams
from jaxlab.interop.initial import load_init
from jaxlab.tasks.embed import recall, similarity_spearman
from jaxlab.training.experiment import build_task

PATHS = tuple(f"layers/mlp/{side}/kernel" for side in ("up", "down"))
_BUCKETS = (16, 32, 48, 64)
_ROWS = 32


class Encoder:
    """The dense model, compiled once for every length of text, and its held-out embeddings."""

    def __init__(self) -> None:
        self.config = config_of("minilm", "").to_dict()
        self.task = build_task(self.config)
        shapes = jax.eval_shape(self.task.init, jax.eval_shape(lambda: jax.random.key(0)))
        self.params = load_init(self.config["init"], shapes, section=self.config["model"])
        self.apply = jax.jit(self.task.network.apply)
        self._held_out: dict[int, dict[str, np.ndarray]] = {}

    def data(self, draw: int, eval_draw: int = 0) -> Any:
        """The pairs of a draw."""
        section = {**self.config["data"], "draw": draw, "eval_draw": eval_draw}
        return build_task({**self.config, "data": section})._data

    def held_out(self, eval_draw: int = 0) -> dict[str, np.ndarray]:
        """The held-out pairs."""
        if eval_draw not in self._held_out:
            self._held_out[eval_draw] = self.data(0, eval_draw).held_out
        return self._held_out[eval_draw]

    def embed(self, params: Any, part: dict[str, np.ndarray], side: str = "") -> np.ndarray:
        """Embeddings of the docstrings of a part, or of its "code_"."""
        out = np.zeros((len(part["ids"]), 384), np.float32)
        for batch in batches(part, side):
            found = np.asarray(self.apply(params, batch["ids"], batch["mask"]))
            out[batch["row"][batch["real"]]] = found[batch["real"]]
        return out

    @cached_property
    def target(self) -> np.ndarray:
        """The dense model's embeddings of the held-out docstrings."""
        return self.embed(self.params, self.held_out())

    def fidelity(self, params: Any, *, retrieval: bool) -> dict[str, float]:
        """Agreement with the dense model on the held-out docstrings, and what they find."""
        part = self.held_out()
        docs = self.embed(params, part)
        ones = jnp.ones(len(docs))
        found = {
            "mean_cosine": float(np.mean(np.sum(docs * self.target, -1, dtype=np.float64))),
            "spearman": float(_spearman(docs, self.target, ones)),
        }
        return found | (self.recalls(params, docs, part) if retrieval else {})

    def recalls(
        self, params: Any, docs: np.ndarray, part: dict[str, np.ndarray]
    ) -> dict[str, float]:
        """How often a docstring finds its function."""
        codes = self.embed(params, part, "code_")
        ones = jnp.ones(len(docs))
        at = {f"recall_at_{k}": recall(docs, codes, ones, k) for k in (1, 10)}  # pyright: ignore
        return {name: float(x) for name, x in at.items()}


_spearman = jax.jit(similarity_spearman)


def batches(part: dict[str, np.ndarray], side: str = "") -> Iterator[dict[str, np.ndarray]]:
    """Texts of about the same length together; rows that fill up a batch have an empty mask."""
    ids, mask = part[f"{side}ids"], part[f"{side}mask"]
    lengths, least = mask.sum(1), 0
    for bucket in _BUCKETS:
        rows = np.flatnonzero((lengths > least) & (lengths <= bucket))
        least = bucket
        for start in range(0, len(rows), _ROWS):
            taken = np.resize(rows[start : start + _ROWS], _ROWS)
            real = np.arange(_ROWS) < len(rows) - start
            cut = mask[taken, :bucket] * real[:, None]
            yield {"ids": ids[taken, :bucket], "mask": cut, "row": taken, "real": real}


class Statistics:
    """What one draw of docstrings says about the inputs of the kernels."""

    def __init__(self, encoder: Encoder, draw: int):
        self._encoder, self._draw = encoder, draw

    @cached_property
    def _data(self) -> list[dict[str, np.ndarray]]:
        # Docstrings alone: they are what the distillation task feeds the model.
        return list(batches(self._encoder.data(self._draw).train))

    @cached_property
    def grams(self) -> dict[str, Gram]:
        """Of the inputs, by path of a kernel."""
        return self._collect(collect_grams, self._embed)

    @cached_property
    def means(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The means of the inputs, which no compression changes here."""
        at = {path: g.mean + g.tail for path, g in self.grams.items()}
        return {path: (mean, mean) for path, mean in at.items()}

    @cached_property
    def slopes(self) -> dict[str, Gram]:
        """Of the embeddings' products with random vectors, whose mean is the Gauss-Newton matrix.

        The loss itself, a distance from the dense model's embeddings, has no gradient there.
        """

        def sampled(params: Any, batch: Any) -> jax.Array:
            x = self._embed(params, batch)
            key = jax.random.fold_in(jax.random.key(0), jnp.sum(batch["row"]))
            return jnp.sum(x * jax.random.normal(key, x.shape))

        return self._collect(collect_gradient_grams, sampled)

    def _embed(self, params: Any, batch: Any) -> jax.Array:
        return self._encoder.task.network.apply(params, batch["ids"], batch["mask"])

    def _collect(self, collect: Callable[..., Any], loss: Callable[..., Any]) -> dict[str, Gram]:
        weight = lambda batch: batch["mask"].astype(jnp.float32)  # noqa: E731
        how = {"weight": weight, "progress": _watched}
        return collect(loss, self._encoder.params, self._data, PATHS, **how)


def _watched(data: Any, label: str) -> Any:
    return tqdm(data, label, unit="batch", leave=False, disable=None)
