"""Docstrings and the functions they describe, from the running Python's standard library."""

import ast
import hashlib
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab.core.registry import register
from jaxlab.data.batching import check_context, epoch_indices, padded_batches
from jaxlab.data.python_source import source_files
from jaxlab.data.splits import split_by_hash
from jaxlab.data.text_tokenizer import TextTokenizer
from jaxlab.interop.bert import minilm_folder

_HELD_OUT = 0.3
# Of one file: large modules would otherwise be most of a sample.
_PER_FILE = 16
_CODE_LINES = 3
_WORDS = 4


class Pair(NamedTuple):
    """The first sentence of a docstring, and the start of its function without the docstring."""

    doc: str
    code: str


class Docstrings:
    """Tokenised pairs, in batches.

    A batch is "ids", "mask" (of the docstrings), "code_ids" and "code_mask", each int32
    (B, seq_len), and "row", int32 (B,), the pair's place in its part. A held-out batch has
    "weight", float32 (B,), too.

    Args:
      train: pairs to train and calibrate on.
      held_out: pairs to evaluate on.
      tokenizer: of the texts.
      seq_len: tokens of a text, padding included; longer ones are cut.
      seed: of the training order.
      batch_size: rows of every batch.
      info: further entries of `info`.

    Raises:
      ValueError: a part has no pair, or `seq_len` has no room for a token.

    Attributes:
      train: the training pairs as one batch, in order.
      held_out: the held-out pairs as one batch, in order, without "weight".
    """

    def __init__(
        self,
        train: list[Pair],
        held_out: list[Pair],
        *,
        tokenizer: TextTokenizer,
        seq_len: int,
        seed: int,
        batch_size: int,
        info: dict[str, Any] | None = None,
    ):
        check_context("docstrings", seed=seed, batch_size=batch_size)
        if not train or not held_out:
            raise ValueError(
                f"docstrings: {len(train)} pairs to train on and {len(held_out)} held out; each "
                "part needs one"
            )
        if seq_len < 3:
            raise ValueError(f"docstrings: seq_len={seq_len} is too short; nearest: 3")
        self.seq_len = seq_len
        self.vocab_size = tokenizer.vocab_size
        self._seed, self._batch_size = seed, batch_size
        self.train, self.held_out = (
            _tokenised(part, tokenizer, seq_len) for part in (train, held_out)
        )
        self.info: dict[str, Any] = {
            "name": "docstrings",
            "unit": "pairs",
            "train_items": len(train),
            "eval_items": len(held_out),
            "train_sha256": _digest(self.train),
            "eval_sha256": _digest(self.held_out),
            "seq_len": seq_len,
            **(info or {}),
        }

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The pairs of a training step, every pair once per epoch."""
        count = len(self.train["ids"])
        rows = epoch_indices(self._seed, step, batch_size=self._batch_size, count=count)
        return {name: x[rows] for name, x in self.train.items()}

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """The held-out pairs in order, the last batch padded."""
        for rows, weight in padded_batches(len(self.held_out["ids"]), self._batch_size):
            yield {**{name: x[rows] for name, x in self.held_out.items()}, "weight": weight}


@register("data", "docstrings")
def docstrings(
    *,
    seq_len: int = 64,
    max_pairs: int = 512,
    eval_pairs: int = 512,
    draw: int = 0,
    eval_draw: int = 0,
    tokenizer: str = "",
    seed: int,
    batch_size: int,
) -> Docstrings:
    """Pairs of a docstring and its function; three files in ten are held out whole.

    The content depends on the Python version; `info` records it with the sha256 of both parts.

    Args:
      seq_len: tokens of a text, padding included.
      max_pairs: at most so many to train on.
      eval_pairs: at most so many to evaluate on.
      draw: which sample of the pairs to train on; the files of the two parts are always the same.
      eval_draw: which sample of the pairs to evaluate on.
      tokenizer: `tokenizer.json`, or its folder; empty is that of all-MiniLM-L6-v2.
      seed: of the training order.
      batch_size: rows of every batch.

    Raises:
      FileNotFoundError: the tokenizer is missing; the message says what to install.
      ValueError: this Python came without its source, or a number is too small.
    """
    for name, value in (("max_pairs", max_pairs), ("eval_pairs", eval_pairs)):
        if value < 1:
            raise ValueError(f"docstrings: {name}={value} must be positive; nearest: 1")
    texts = TextTokenizer(tokenizer or minilm_folder())
    root = Path(sysconfig.get_path("stdlib"))
    train, held_out = split_by_hash(source_files(root), _HELD_OUT, salt="docstrings")
    evaluated = collect(root, held_out, eval_pairs, draw=eval_draw)
    known = {pair.doc for pair in evaluated}
    return Docstrings(
        collect(root, train, max_pairs, draw=draw, known=known),
        evaluated,
        tokenizer=texts,
        seq_len=seq_len,
        seed=seed,
        batch_size=batch_size,
        info={"python": platform.python_version(), "draw": draw, "eval_draw": eval_draw},
    )


def collect(
    root: Path, names: Iterable[str], count: int, *, draw: int = 0, known: Iterable[str] = ()
) -> list[Pair]:
    """The first `count` pairs of some files, a few of each file, in an order drawn by hash.

    Args:
      root: folder of the files.
      names: the files, relative to `root`.
      count: how many pairs at most; no file is read beyond those it takes.
      draw: another number is another order of files and functions.
      known: docstrings that are left out; of several equal ones the first stays.
    """
    seen, found = set(known), []
    for name in _shuffled(names, draw):
        pairs = {f"{name}/{pair.code}": pair for pair in pairs_of((root / name).read_bytes())}
        fresh: dict[str, Pair] = {}
        for key in _shuffled(pairs, draw):
            if pairs[key].doc not in seen:
                fresh.setdefault(pairs[key].doc, pairs[key])
        found += list(fresh.values())[:_PER_FILE]
        seen.update(fresh)
        if len(found) >= count:
            break
    return found[:count]


def pairs_of(source: bytes) -> list[Pair]:
    r'''The documented functions of a file, in its order; none if it is no Python.

    >>> pairs_of(b"""def half(x):
    ...     'Return one half of x. Floats stay floats.'
    ...     return x / 2
    ... """)
    [Pair(doc='Return one half of x.', code='def half(x):\n    return x / 2')]
    '''
    try:
        with warnings.catch_warnings():
            # What the library's own source is warned about (escapes, say) is not our matter.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        lines = source.decode().splitlines()
    except (SyntaxError, ValueError, RecursionError):
        return []
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        doc = first_sentence(ast.get_docstring(node) or "")
        if len(doc.split()) < _WORDS or node.body[0].lineno == node.lineno:
            continue
        # Decorators stand above `lineno`; the docstring is the first statement.
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        body = lines[node.body[0].end_lineno : node.end_lineno]
        body = [line for line in body if line.strip()][:_CODE_LINES]
        indent = len(head[0]) - len(head[0].lstrip())
        found.append((node.lineno, Pair(doc, "\n".join(line[indent:] for line in head + body))))
    return [pair for _, pair in sorted(found)]


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line.

    >>> first_sentence("Return the sum, e.g. of two. And more.")
    'Return the sum, e.g. of two.'
    """
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    for i, letter in enumerate(text[:-2]):
        if letter == "." and text[i + 1] == " " and text[i + 2].isupper():
            return text[: i + 1]
    return text


def _shuffled(names: Iterable[str], draw: int) -> list[str]:
    def digest(name: str) -> bytes:
        return hashlib.sha256(f"{draw}/{name}".encode(errors="surrogateescape")).digest()

    return sorted(names, key=digest)


def _tokenised(pairs: list[Pair], tokenizer: TextTokenizer, length: int) -> dict[str, np.ndarray]:
    ids, mask = tokenizer([p.doc for p in pairs], length, (length,))
    code_ids, code_mask = tokenizer([p.code for p in pairs], length, (length,))
    row = np.arange(len(pairs), dtype=np.int32)
    return {"ids": ids, "mask": mask, "code_ids": code_ids, "code_mask": code_mask, "row": row}


def _digest(part: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(part):
        digest.update(name.encode() + part[name].tobytes())
    return digest.hexdigest()
