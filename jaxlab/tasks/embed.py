"""Sentence embeddings: fidelity to those of a dense model, and retrieval of code by docstring."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import registry
from jaxlab.data.batching import padded_batches
from jaxlab.interop.initial import load_init
from jaxlab.tasks.base import Batch, Metrics, NetworkTask, Quality

_RECALLS = (1, 10)
_TEXTS = ("ids", "mask")
_CODES = ("code_ids", "code_mask")
_SIDES = tuple(zip(_TEXTS, _CODES, strict=True))
_BAG_WIDTH = 384


@registry.register("task", "embed")
class Embed(NetworkTask):
    """A model of token ids and mask, (B, T) each, to embeddings (B, D) of length 1.

    A batch is that of the data "docstrings". With a teacher it has "target" too, float32 (B, D),
    the teacher's embeddings of the docstrings; the loss is their distance, 1 - cosine, and the
    quality the mean cosine. Without one, the loss tells a docstring's function from the others of
    the batch (cross-entropy over cosines), and the quality is `recall_at_10`.

    The held-out data are one batch, because similarities are between all pairs; the model sees it
    in parts of `batch_size`.

    Args:
      data: the config's data section; the dataset has `vocab_size`, `train` and `held_out`.
      model: the config's model section.
      seed: of the data's order.
      batch_size: pairs of a training batch, and texts that are evaluated at once.
      teacher: what `init` may be: an artefact, a run folder, a published checkpoint. Empty is none.
      temperature: cosines are divided by it where there is no teacher.

    Raises:
      FileNotFoundError: there is no such teacher.
      ValueError: the temperature is not positive.
    """

    context = ("vocab_size",)

    def __init__(
        self,
        *,
        data: Mapping[str, Any],
        model: Mapping[str, Any],
        seed: int,
        batch_size: int,
        teacher: str = "",
        temperature: float = 0.05,
    ):
        if teacher and not Path(teacher).exists():
            raise FileNotFoundError(f"embed: teacher={teacher!r} does not exist")
        if temperature <= 0:
            raise ValueError(f"embed: temperature={temperature} must be positive; nearest: 0.05")
        super().__init__(data=data, model=model, seed=seed, batch_size=batch_size)
        self._batch_size = batch_size
        self._teacher = teacher
        self._model = model
        self._temperature = temperature
        self.quality = Quality("mean_cosine" if teacher else "recall_at_10", "max")

    def prepare(self) -> None:
        """The teacher's embeddings, so that it is gone before there is a second model."""
        if self._teacher:
            _ = self._dense

    def batch(self, step: int) -> Batch:
        """The training batch of a step, with the teacher's embeddings of its docstrings."""
        batch = self._data.batch(step)
        return {**batch, "target": self._targets[0][batch["row"]]} if self._teacher else batch

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean of 1 - cosine, and that cosine; without a teacher, cross-entropy in nats."""
        if self._teacher:
            x = self.network.apply(params, *(jnp.asarray(batch[name]) for name in _TEXTS))
            cosine = jnp.mean(jnp.sum(x * jnp.asarray(batch["target"]), axis=-1))
            return 1 - cosine, {"cosine": cosine}
        x = self.network.apply(params, *(_both(batch, *names) for names in _SIDES))
        docs, codes = jnp.split(x, 2)
        logits = docs @ codes.T / self._temperature
        own = jnp.diagonal(logits)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == jnp.arange(len(own)))
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - own), {"accuracy": accuracy}

    def calibration_weight(self, batch: Batch) -> jax.Array:
        """What the tokens that `loss` feeds the model count in statistics of its layers' inputs.

        Returns:
          float32 (B, T), or (2 B, T) without a teacher: 0 for padding.
        """
        mask = batch["mask"] if self._teacher else _both(batch, "mask", "code_mask")
        return jnp.asarray(mask).astype(jnp.float32)

    def eval_batches(self) -> Iterator[Batch]:
        """All held-out pairs as one batch, with "weight"."""
        parts = list(self._data.eval_batches())
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        yield {**batch, "target": self._targets[1][batch["row"]]} if self._teacher else batch

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """The metrics times the weight, and the weight."""
        weight = jnp.asarray(batch["weight"])
        docs, codes = self._embed(params, batch)
        found = {f"recall_at_{k}": recall(docs, codes, weight, k) for k in _RECALLS}
        total = jnp.sum(weight)
        if self._teacher:
            target = jnp.asarray(batch["target"])
            cosine = jnp.sum(docs * target, axis=-1)
            found["mean_cosine"] = jnp.sum(cosine * weight) / total
            found["spearman"] = similarity_spearman(docs, target, weight)
        return {**{name: x * total for name, x in found.items()}, "weight": total}

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Cosine and Spearman correlation with the teacher, recalls, and others' recalls.

        `dense_recall_at_k` is the teacher's; `bag_recall_at_k` that of a bag of words, to which a
        model that lost everything would fall.
        """
        metrics = {k: v / sums["weight"] for k, v in sums.items() if k not in ("weight",)}
        return {**metrics, **self._others}

    def _embed(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        # Docstrings and code in one loop: its body is compiled once.
        texts = tuple(_both(batch, *names) for names in _SIDES)
        parts = tuple(x.reshape(-1, self._batch_size, x.shape[-1]) for x in texts)
        x = jax.lax.map(lambda part: self.network.apply(params, *part), parts)
        docs, codes = jnp.split(x.reshape(-1, x.shape[-1]), 2)
        return docs, codes

    @cached_property
    def _dense(self) -> dict[str, np.ndarray]:
        """The teacher's embeddings: of docstrings to train on, held-out docstrings and code."""
        shapes = jax.eval_shape(self.init, jax.eval_shape(lambda: jax.random.key(0)))
        # A phase asks for batches while it is traced for its shapes; these are numbers even then.
        with jax.ensure_compile_time_eval():
            return self._embed_all(shapes)

    def _embed_all(self, shapes: Any) -> dict[str, np.ndarray]:
        params = jax.tree.map(jnp.asarray, load_init(self._teacher, shapes, section=self._model))
        apply = jax.jit(self.network.apply)

        def embeddings(part: Batch, names: tuple[str, str]) -> np.ndarray:
            count = len(part[names[0]])
            # Placed here and not by the caller's mesh: every process computes them all.
            with jax.default_matmul_precision("highest"):
                found = [
                    np.asarray(apply(params, *(part[name][rows] for name in names)))
                    for rows, _ in padded_batches(count, self._batch_size)
                ]
            return np.concatenate(found)[:count]

        train, held_out = self._data.train, self._data.held_out
        return {
            "train": embeddings(train, _TEXTS),
            "docs": embeddings(held_out, _TEXTS),
            "codes": embeddings(held_out, _CODES),
        }

    @property
    def _targets(self) -> tuple[np.ndarray, np.ndarray]:
        return self._dense["train"], self._dense["docs"]

    @cached_property
    def _others(self) -> dict[str, float]:
        held_out = self._data.held_out
        tables = {"bag": bags_of_words(held_out, vocab_size=self._data.vocab_size)}
        if self._teacher:
            tables["dense"] = self._dense["docs"], self._dense["codes"]
        weight = jnp.ones(len(held_out["ids"]))
        return {
            f"{name}_recall_at_{k}": float(recall(jnp.asarray(a), jnp.asarray(b), weight, k))
            for name, (a, b) in tables.items()
            for k in _RECALLS
        }


def recall(docs: jax.Array, codes: jax.Array, weight: jax.Array, k: int) -> jax.Array:
    """How often a text's own code is among the `k` nearest.

    Args:
      docs: (N, D), of length 1.
      codes: (N, D), of length 1; row i belongs to row i of `docs`.
      weight: (N,), 0 for rows that are neither asked for nor found.
      k: a tie counts against the text's own code.

    Returns:
      A scalar in [0, 1].

    >>> docs = jnp.eye(4)
    >>> recall(docs, docs[jnp.array([0, 1, 3, 2])], jnp.ones(4), 1).item()
    0.5
    """
    similar = docs @ codes.T
    own = jnp.diagonal(similar)[:, None]
    before = jnp.sum((similar >= own) & (weight > 0)[None, :], axis=-1)
    found = (before <= k).astype(weight.dtype)
    return jnp.sum(found * weight) / jnp.sum(weight)


def similarity_spearman(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    """Spearman's correlation between the similarities of all pairs of rows, in a and in b.

    Args:
      a: (N, D).
      b: (N, E).
      weight: (N,), 0 for rows that are left out.

    Returns:
      A scalar in [-1, 1]; ties have the mean of their ranks.
    """
    i, j = np.triu_indices(len(a), 1)
    counts = (weight[i] * weight[j] > 0).astype(jnp.float32)
    total = jnp.sum(counts)

    def centred_ranks(x: jax.Array) -> jax.Array:
        pairs = jnp.where(counts > 0, (x @ x.T)[i, j], jnp.inf)
        ordered = jnp.sort(pairs)
        low = jnp.searchsorted(ordered, pairs, side="left", method="sort")
        high = jnp.searchsorted(ordered, pairs, side="right", method="sort")
        # In units of the largest rank: squares of whole ranks would use up float32.
        ranks = (low + high).astype(jnp.float32) / total * counts
        return (ranks - jnp.sum(ranks) / total) * counts

    x, y = centred_ranks(a), centred_ranks(b)
    return jnp.sum(x * y) / jnp.sqrt(jnp.sum(x * x) * jnp.sum(y * y))


def bags_of_words(part: Batch, *, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random projections of token counts: what retrieval reaches without a model.

    Args:
      part: pairs, as the data "docstrings" has them.
      vocab_size: tokens are in [0, vocab_size).

    Returns:
      Embeddings of docstrings and of code, float32 (N, 384), of length 1. Tokens that all texts
      have, such as the first and the last, count nothing.
    """
    rng = np.random.default_rng(0)
    table = rng.standard_normal((vocab_size, _BAG_WIDTH), dtype=np.float32)
    everywhere = set(range(vocab_size))
    for names in (_TEXTS, _CODES):
        for ids, mask in zip(*(part[name] for name in names), strict=True):
            everywhere &= set(ids[mask > 0].tolist())
    table[sorted(everywhere)] = 0

    def bag(names: tuple[str, str]) -> np.ndarray:
        # Text by text: the rows of all tokens of all texts are more than a model.
        pairs = zip(*(part[name] for name in names), strict=True)
        x = np.stack([mask.astype(np.float32) @ table[ids] for ids, mask in pairs])
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return bag(_TEXTS), bag(_CODES)


def _both(batch: Batch, doc: str, code: str) -> jax.Array:
    return jnp.concatenate([jnp.asarray(batch[doc]), jnp.asarray(batch[code])])
