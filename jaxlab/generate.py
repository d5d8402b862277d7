r"""Text from a trained run or from a published checkpoint, compressed on the way if asked.

    python -m jaxlab.generate runs/python_source-0 --prompt="def main(" --length=200
    python -m jaxlab.generate some/llama --prompt="Once" --dtype=bfloat16 --repeat=3 \
        --compress='[[".*/(attn|mlp)/.*/kernel", "quantized", {"quant": "int4"}]]'

The folder is that of a run of the task language_model, whose finalized model is read, or one in
Llama's layout with a tokenizer.json. Speed is that of all tokens of the batch, after a call that
compiles.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.compress import compress
from jaxlab.core.cost import nbytes
from jaxlab.core.lifecycle import finalize
from jaxlab.interop.artefact import load
from jaxlab.interop.llama import load_llama
from jaxlab.interop.pretrained import is_published
from jaxlab.models.generation import generate
from jaxlab.tasks.base import Network
from jaxlab.training.experiment import build_task


class Writer(NamedTuple):
    """A language model, and how texts become its tokens.

    Attributes:
      network: the model.
      params: its parameters.
      encode: a text to tokens, int32 (T,).
      decode: tokens to a text.
    """

    network: Network
    params: Any
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]


def load_writer(folder: Path, *, dtype: str | None = None) -> Writer:
    """The model in a run folder or in a published checkpoint.

    Args:
      folder: of the files.
      dtype: of the activations, and of a published checkpoint's parameters; None is the run's, and
        float32 for a published one.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the run is of another task, or the checkpoint of another layout.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is no run and no checkpoint")
    if is_published(folder):
        from tokenizers import Tokenizer

        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json, which prompts are read by")
        dtype = dtype or "float32"
        section, params = load_llama(folder, dtype=jnp.dtype(dtype))
        tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return Writer(
            Network({**section, "dtype": dtype}),
            params,
            lambda text: np.asarray(tokenizer.encode(text).ids, np.int32),
            lambda tokens: tokenizer.decode(tokens.tolist()),
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dtype:
        config["model"]["dtype"] = dtype
    task = build_task(config)
    if not hasattr(task, "text"):
        raise ValueError(
            f"{folder} is a run of the task {config['task']['name']!r}; nearest: 'language_model'"
        )
    params = load(folder / "model.safetensors")
    return Writer(task.network, params, task.text.encode, task.text.decode)


def write(writer: Writer, options: argparse.Namespace) -> None:
    """Prints the continuations, and how fast they came."""
    params = writer.params
    if options.compress:
        rules = _rules(options.compress)
        params = finalize(compress(params, rules, key=jax.random.key(options.seed)))
    tokens = writer.encode(options.prompt)
    if not len(tokens):
        raise ValueError("--prompt is empty; nearest: one character")
    prompt = jnp.broadcast_to(jnp.asarray(tokens), (options.batch, len(tokens)))

    def call() -> np.ndarray:
        found = generate(
            writer.network.graph,
            params,
            prompt,
            length=options.length,
            temperature=options.temperature,
            key=jax.random.key(options.seed),
        )
        return np.asarray(found)

    began = time.perf_counter()
    rows = call()
    first = time.perf_counter() - began
    # Without a temperature all rows are the same.
    for row in rows if options.temperature else rows[:1]:
        # Whole: a text may be more than those of its parts.
        print(writer.decode(np.concatenate([tokens, row])))
    seconds = []
    for _ in range(options.repeat):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    said = f"{nbytes(params):,} bytes of parameters; first call {first:.1f} s"
    if seconds:
        rates = sorted(rows.size / s for s in seconds)
        said += (
            f"; {statistics.median(rates):.1f} tokens/s ({rates[0]:.1f} to {rates[-1]:.1f}), "
            f"batch {options.batch}"
        )
    print(said, file=sys.stderr)


def _rules(text: str) -> list[tuple]:
    """The rules of --compress; a ValueError that names it unless they are JSON lists in a list."""
    form = """is a list of rules as JSON, e.g. '[[".*/kernel", "quantized", {"quant": "int8"}]]'"""
    try:
        rules = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--compress={text!r} is no JSON ({error}); it {form}") from None
    if not isinstance(rules, list) or not all(isinstance(rule, list) for rule in rules):
        raise ValueError(f"--compress={text!r} {form}")
    return [tuple(rule) for rule in rules]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 where something is wrong with the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxlab.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a run folder, or a checkpoint's")
    parser.add_argument("--prompt", default="\n", help="what is continued (a line feed)")
    parser.add_argument("--length", type=int, default=100, help="tokens to add (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="texts at once (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the activations")
    parser.add_argument("--compress", default="", help="rules as JSON: [[path, method, settings]]")
    parser.add_argument("--repeat", type=int, default=1, help="timed calls (%(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.batch < 1:
            raise ValueError(f"--batch={options.batch} must be positive; nearest: 1")
        write(load_writer(options.folder, dtype=options.dtype), options)
    except (ValueError, TypeError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
