"""Products with packed weights: our kernels, XLA and torch, with a floor; and their best tiles.

    PYTHONPATH=. python benchmarks/kernels.py --op=quantized_matmul --tune --folder=F
    PYTHONPATH=. python benchmarks/kernels.py --op=quantized_matmul --write-configs=F/NAME.json

The first continues what is stored, cell by cell, and stops in time. The second, on any machine,
writes which shapes the kernel takes by itself: those where it beat everything of XLA by a tenth.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants room, too

import jax
import jax.numpy as jnp

from benchmarks import kernel_timing, records
from benchmarks.kernel_peers import peers
from jaxlab.kernels import dispatch
from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, Planar
from jaxlab.kernels.quantized_matmul import Config, Problem, candidates
from jaxlab.kernels.quantized_matmul.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.quantized_matmul.pallas_triton import triton
from jaxlab.kernels.quantized_matmul.reference import reference, xla
from jaxlab.kernels.quantized_matmul.shapes import refuse

# A bfloat16 result, with weights that XLA rounds to bfloat16 first.
TOLERANCE = 1e-2
MARGIN = 1.1


class Case(NamedTuple):
    """A kind of weights, its group of a scale (0: a row) and the widths of a block to try."""

    kind: str
    group: int
    widths: tuple[int, ...]


OPS = {
    "quantized_matmul": (Case("int4", 128, (64,)), Case("int8", 0, (64,))),
    "binary_matmul": (Case("binary", 0, (64, 32)), Case("ternary", 0, (64,))),
}
# The first is tuned; the others take what was best there, and what suits them.
CELLS = [(8192, 16), (8192, 1), (8192, 8), (4096, 16), (4096, 1)]
CELLS += [(8192, 32), (8192, 64), (4096, 8), (4096, 32), (4096, 64)]


class Weights(NamedTuple):
    """Copies that take turns, and what they weigh."""

    each: list[tuple[Planar, tuple[jax.Array, None]]]
    nbytes: int


def random_weights(problem: Problem) -> Weights:
    """Random bits are random weights, of any kind."""
    fields = FORMATS[problem.kind].fields
    groups = problem.k // problem.group if problem.group else 1
    nbytes = 2 * problem.n * problem.k // fields + 2 * groups * problem.n

    @jax.jit
    def make(key: jax.Array) -> tuple[Planar, tuple[jax.Array, None]]:
        words = jax.random.bits(key, (problem.n, problem.k // fields), jnp.uint16)
        scale = jax.random.uniform(key, (groups, problem.n), jnp.bfloat16, 0.5, 1.5)
        return Planar(words, problem.kind, problem.k, problem.width), (scale, None)

    keys = jax.random.split(jax.random.key(1), kernel_timing.copies_of(nbytes))
    return Weights([make(key) for key in keys], nbytes)


def attempt(fn: Any, xs: Any, weights: Any, expected: jax.Array) -> dict[str, Any]:
    """The times of an implementation that is right; otherwise what is wrong with it."""
    try:
        off = kernel_timing.worst(jax.jit(fn)(xs[0], *weights[0]), expected)
        if not off <= TOLERANCE:
            return {"wrong": off}
        return {**kernel_timing.time_calls(fn, xs, weights).as_dict(), "off": round(off, 6)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}


def tries(problem: Problem, tune: bool, best: list[dict[str, Any]]) -> list[Config]:
    """Configurations for a cell: all that are worth it, or the winners elsewhere and the rule's."""
    own = candidates(problem, 10 if tune else 2)
    if tune:
        return [*own, *(Config(**{**vars(c), "fast": False}) for c in own[:1])]
    fitting = [Config(**b) for b in best if not refuse(problem, Config(**b))]
    return list(dict.fromkeys([*fitting[:1], *own[: 1 if fitting else 2]]))


def cell(case: Case, size: int, rows: int, tune: bool, best: list[Any], bandwidth: float) -> Any:
    """All rows of the table for one kind, size and number of rows."""
    result: dict[str, Any] = {"kind": case.kind, "size": size, "rows": rows, "ours": []}
    known = {b["width"] for b in best}
    suiting = [
        w for w in case.widths if candidates(Problem(rows, size, size, case.kind, case.group, w))
    ]
    for width in [w for w in suiting if w in known and not tune] or suiting:
        problem = Problem(rows, size, size, case.kind, case.group, width)
        weights = random_weights(problem)
        calls = max(kernel_timing.LEAST_CALLS, len(weights.each))
        xs = kernel_timing.inputs(rows, size, calls)
        expected = jax.jit(reference)(xs[0], *weights.each[0])
        if "xla packed" not in result:
            result["floor"] = round((weights.nbytes + 4 * rows * size) / bandwidth * 1e6, 2)
            result["xla packed"] = attempt(xla, xs, weights.each, expected)
            fn = functools.partial(triton, interpret=None)
            result["triton"] = attempt(fn, xs, weights.each, expected)
        elsewhere = [{k: v for k, v in b.items() if k != "width"} for b in best]
        for config in tries(problem, tune, elsewhere):
            fn = functools.partial(mosaic_gpu, config=config, interpret=None)
            got = attempt(fn, xs, weights.each, expected)
            result["ours"].append(
                {"key": problem.key, "width": width, "config": vars(config), **got}
            )
            print("   ", vars(config), width, {k: v for k, v in got.items() if k != "off"})
    return result


def dense(size: int, rows: int) -> dict[str, Any]:
    """bfloat16 weights by XLA."""
    copies = kernel_timing.copies_of(2 * size * size)
    keys = jax.random.split(jax.random.key(2), copies)
    weights = [(jax.random.normal(key, (size, size), jnp.bfloat16),) for key in keys]
    xs = kernel_timing.inputs(rows, size, max(kernel_timing.LEAST_CALLS, copies))

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        wide = jnp.matmul(x, w.T, preferred_element_type=jnp.float32)
        return wide.astype(x.dtype)

    return attempt(product, xs, weights, jax.jit(product)(xs[0], *weights[0]))


def ranked(ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Configurations that ran and were right, fastest first."""
    return sorted((o for o in ours if "us" in o), key=lambda o: o["us"])


def show(name: str, entry: dict[str, Any]) -> str:
    """One row of a cell's table, in short."""
    timed = ranked(entry["ours"])
    parts = [f"floor {entry['floor']}"]
    for peer in ("bf16", "xla packed", "triton", *entry.get("torch", {})):
        got = entry.get("torch", {}).get(peer) or entry.get(peer, {})
        parts.append(f"{peer} {got.get('us', str(next(iter(got.values()), 'none'))[:60])}")
    best = f"{timed[0]['us']} ({timed[0]['low']}-{timed[0]['high']})" if timed else "none"
    return f"{name}: " + " | ".join([*parts, f"OURS {best}"])


def measure(op: str, folder: str, tune: bool, seconds: float, redo: bool) -> None:
    """Measures what is not stored yet, most important cells first, until the time is up."""
    began = time.monotonic()
    name = f"kernels_{op}"
    result = (None if redo else records.load(name, folder)) or {"cells": {}, "bf16": {}}
    result["bandwidth"] = kernel_timing.copy_bandwidth()
    result["layout"] = LAYOUT_VERSION
    print(f"copy: {result['bandwidth'] / 1e12:.2f} TB/s")
    for size, rows in CELLS:
        for case in OPS[op]:
            key = f"{case.kind} {size} b{rows}"
            if key in result["cells"]:
                continue
            if time.monotonic() - began > seconds:
                print(f"time is up before {key}; run again to go on")
                return
            at = f"{size} b{rows}"
            if at not in result["bf16"]:
                result["bf16"][at] = dense(size, rows)
            first = result["cells"].get(f"{case.kind} {CELLS[0][0]} b{CELLS[0][1]}", {})
            best = [{**o["config"], "width": o["width"]} for o in ranked(first.get("ours", []))[:3]]
            tuned = tune and (size, rows) == CELLS[0]
            entry = cell(case, size, rows, tuned, best[:1], result["bandwidth"])
            entry["bf16"] = result["bf16"][at]
            entry["torch"] = peers(case.kind, rows, size)
            result["cells"][key] = entry
            records.store(name, result, folder)
            print(show(key, entry), flush=True)


def write_configs(op: str, file: str) -> None:
    """Stores the shapes at which the kernel runs when nothing is asked for."""
    record = json.loads(Path(file).read_text(encoding="utf-8"))
    entries = {}
    for name, entry in record["result"]["cells"].items():
        timed = ranked(entry["ours"])
        others = [entry[p]["us"] for p in ("bf16", "xla packed") if "us" in entry[p]]
        if not timed or not others or timed[0]["us"] * MARGIN > min(others):
            print(f"{name}: XLA stays")
            continue
        best = timed[0]
        entries[best["key"]] = {
            "implementation": "mosaic_gpu",
            "config": best["config"],
            "us": best["us"],
            "xla_us": min(others),
        }
    kind = record["device"].replace("-", " ")
    folder = Path(__file__).parents[1] / "jaxlab" / "kernels" / op / "configs"
    folder.mkdir(exist_ok=True)
    table = {
        "device": kind,
        "jax": record["versions"]["jax"],
        "layout": record["result"]["layout"],
        "entries": entries,
    }
    path = folder / dispatch.file_name(kind)
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(f"{len(entries)} shapes to {path.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--op", choices=sorted(OPS), required=True)
    parser.add_argument("--folder", default="", help="results go there, not beside the others")
    parser.add_argument("--tune", action="store_true", help="tries every configuration that suits")
    parser.add_argument("--seconds", type=float, default=130, help="starts no cell after these")
    parser.add_argument("--redo", action="store_true", help="forgets what is stored")
    parser.add_argument("--write-configs", default="", metavar="FILE", help="a stored result")
    args = parser.parse_args()
    if args.write_configs:
        write_configs(args.op, args.write_configs)
    else:
        measure(args.op, args.folder, args.tune, args.seconds, args.redo)
