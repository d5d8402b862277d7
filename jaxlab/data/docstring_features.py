"""Sentence embeddings of the standard library's docstrings, labelled by their module."""

import hashlib
import platform
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxlab.core.registry import register
from jaxlab.data.batching import padded_batches
from jaxlab.data.docstrings import Pair, pairs_of
from jaxlab.data.features import StoredFeatures
from jaxlab.data.python_source import module_of, source_files
from jaxlab.data.text_tokenizer import TextTokenizer
from jaxlab.interop.bert import load_minilm, minilm_folder

_HELD_OUT = 0.3
_TEXTS_AT_ONCE = 32


@register("data", "docstring_features")
def docstring_features(
    *, modules: int = 10, per_module: int = 64, seq_len: int = 32, seed: int, batch_size: int
) -> StoredFeatures:
    """Embeddings by all-MiniLM-L6-v2 of docstrings' first sentences, 384 dimensions.

    The classes are the modules with the most documented functions; three functions in ten are held
    out. What comes from elsewhere are embeddings of the held-out functions' code. The content
    depends on the Python version; `info` records it with the docstrings' sha256.

    Args:
      modules: how many classes.
      per_module: at most so many docstrings of each, both parts together.
      seq_len: tokens of a text; longer ones are cut.
      seed: of the training order.
      batch_size: rows of every batch.

    Raises:
      FileNotFoundError: the encoder's files are missing; the message says what to install.
      ValueError: a number is out of range, or this Python came without its source.
    """
    for name, value, least in (("modules", modules, 2), ("per_module", per_module, 4)):
        if value < least:
            raise ValueError(f"docstring_features: {name}={value}; nearest: {least}")
    if seq_len < 3:
        raise ValueError(f"docstring_features: seq_len={seq_len} is too short; nearest: 3")
    folder = minilm_folder()
    root = Path(sysconfig.get_path("stdlib"))
    groups = by_module((name, (root / name).read_bytes()) for name in source_files(root))
    chosen = sorted(groups, key=lambda name: (-len(groups[name]), name))[:modules]
    if len(chosen) < modules:
        raise ValueError(
            f"docstring_features: modules={modules}, but {root} has {len(chosen)} with docstrings; "
            "this Python may have come without its source"
        )
    parts: list[list[tuple[int, Pair]]] = [[], []]
    for label, name in enumerate(chosen):
        pairs = groups[name][:per_module]
        cut = round(len(pairs) * _HELD_OUT)
        parts[1] += [(label, pair) for pair in pairs[:cut]]
        parts[0] += [(label, pair) for pair in pairs[cut:]]
    encode = _encoder(folder, seq_len)
    docs = [encode([pair.doc for _, pair in part]) for part in parts]
    labels = [np.array([label for label, _ in part]) for part in parts]
    texts = "\n".join(pair.doc for part in parts for _, pair in part)
    return StoredFeatures(
        "docstring_features",
        (docs[0], labels[0]),
        (docs[1], labels[1], encode([pair.code for _, pair in parts[1]])),
        num_classes=modules,
        seed=seed,
        batch_size=batch_size,
        info={
            "python": platform.python_version(),
            "modules": chosen,
            "sha256": hashlib.sha256(texts.encode()).hexdigest(),
        },
    )


def by_module(files: Iterable[tuple[str, bytes]]) -> dict[str, list[Pair]]:
    r"""Documented functions by top-level module, no docstring twice, in an order drawn by hash.

    Args:
      files: names relative to the library, and their content.

    >>> code = b"def f(x):\n    'Return what was given here.'\n    return x\n"
    >>> list(by_module([("a/b.py", code), ("c.py", code)]))
    ['a']
    """
    found: dict[str, dict[str, Pair]] = {}
    seen: set[str] = set()
    for name, source in files:
        for pair in pairs_of(source):
            if pair.doc not in seen:
                seen.add(pair.doc)
                found.setdefault(module_of(name), {})[pair.doc] = pair
    digest = lambda doc: hashlib.sha256(doc.encode()).digest()  # noqa: E731
    return {name: [docs[doc] for doc in sorted(docs, key=digest)] for name, docs in found.items()}


def _encoder(folder: Path, seq_len: int):
    # Imported here: looking up any data set imports this module, and flax takes a second.
    import jax

    from jaxlab.models.sentence_encoder import embed

    cfg, params = load_minilm(folder)
    tokenizer = TextTokenizer(folder)
    apply = jax.jit(lambda ids, mask: embed(params, ids, mask, cfg=cfg))

    def encode(texts: list[str]) -> np.ndarray:
        ids, mask = tokenizer(texts, seq_len, (seq_len,))
        with jax.default_matmul_precision("highest"):
            parts = [
                np.asarray(apply(ids[rows], mask[rows]))
                for rows, _ in padded_batches(len(texts), _TEXTS_AT_ONCE)
            ]
        return np.concatenate(parts)[: len(texts)]

    return encode
