"""Products with packed weights: our kernels, XLA and torch, with a floor; and their best tiles.

    python benchmarks/kernels.py                       # on a GPU; the same again goes on
    python benchmarks/kernels.py --op=nm_matmul --redo
    python benchmarks/kernels.py --write_configs       # anywhere, from what is stored

The last writes which shapes the kernels take by themselves: those where they beat everything of XLA
by a tenth. The floor is reading the weights and x and writing y at the bandwidth of a copy.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants room, too

import jax
import jax.numpy as jnp
import kernel_timing
import records
from absl import app, flags
from claim import stored
from kernel_cases import OPS, Case, cases
from kernel_peers import peers

from jaxlab.kernels import dispatch
from jaxlab.kernels.packing import LAYOUT_VERSION
from jaxlab.kernels.plan import STEPS, Config

_OP = flags.DEFINE_enum("op", "", ["", *OPS], "Only this one.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store; benchmarks/results if empty.")
_SECONDS = flags.DEFINE_float("seconds", 500, "No cell is begun after these.")
_REDO = flags.DEFINE_bool("redo", False, "Forgets what is stored of the op.")
_WRITE = flags.DEFINE_bool("write_configs", False, "Stores which shapes the kernels take.")

NAME = "kernels"
# A bfloat16 result, with weights that XLA rounds to bfloat16 first.
TOLERANCE = 1e-2
MARGIN = 1.1
# Size and rows. At the first every configuration is tried that suits; elsewhere the best there.
CELLS = ((8192, 16), (8192, 1), (4096, 16), (8192, 64), (4096, 1), (8192, 8), (8192, 32))


def attempt(fn: Any, xs: Any, weights: Any, expected: jax.Array) -> dict[str, Any]:
    """The times of an implementation that is right; otherwise what is wrong with it."""
    try:
        off = kernel_timing.worst(jax.jit(fn)(xs[0], *weights[0]), expected)
        if not off <= TOLERANCE:
            return {"wrong": off}
        return {**kernel_timing.time_calls(fn, xs, weights).as_dict(), "off": round(off, 6)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}


def cost(timed: dict[str, Any]) -> float:
    """What is compared: time on the device, or where that is not known all of it."""
    return timed.get("device_us", timed.get("us", float("inf")))


def tried(case: Case, best: list[dict[str, Any]]) -> list[Config]:
    """All that suits where nothing is known; otherwise the winners, and the rule of thumb."""
    own = case.problem.plan.candidates(2 if best else 6)
    fitting = [c for c in (Config(**b) for b in best) if not case.problem.plan.refuse(c)]
    return list(dict.fromkeys([*fitting[:1], *own[: 1 if fitting else 6]]))


def ours(case: Case, xs: Any, expected: jax.Array, best: list[dict[str, Any]]) -> list[Any]:
    """Every configuration that is tried, with its times."""
    found: list[dict[str, Any]] = []

    def add(config: Config) -> None:
        got = attempt(case.kernel(config), xs, case.weights, expected)
        found.append({"key": case.problem.key, "config": vars(config), **got})
        print("   ", tuple(vars(config).values()), {k: v for k, v in got.items() if k != "off"})

    for config in tried(case, best):
        add(config)
    if not best and ranked(found):
        winner = ranked(found)[0]["config"]
        for change in ({"in_flight": 2}, {"in_flight": 8}, {"fast": False}):
            add(Config(**{**winner, **change}))
    return found


def cell(op: str, kind: str, size: int, rows: int, best: Any, bandwidth: float) -> Any:
    """All rows of the table for one kind, size and number of rows."""
    result: dict[str, Any] = {"op": op, "kind": kind, "size": size, "rows": rows, "ours": []}
    for case in cases(op, kind, rows, size):
        xs = kernel_timing.inputs(rows, size, len(case.weights))
        expected = jax.jit(case.reference)(xs[0], *case.weights[0])
        if "xla packed" not in result:
            result["floor"] = round((case.nbytes + 4 * rows * size) / bandwidth * 1e6, 2)
            result["xla packed"] = attempt(case.xla, xs, case.weights, expected)
        result["ours"] += ours(case, xs, expected, best)
    return result


def dense(size: int, rows: int) -> dict[str, Any]:
    """bfloat16 weights by XLA."""
    keys = jax.random.split(jax.random.key(2), kernel_timing.copies_of(2 * size * size))
    weights = [(jax.random.normal(key, (size, size), jnp.bfloat16),) for key in keys]
    xs = kernel_timing.inputs(rows, size, len(keys))

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        wide = jnp.matmul(x, w.T, preferred_element_type=jnp.float32)
        return wide.astype(x.dtype)

    return attempt(product, xs, weights, jax.jit(product)(xs[0], *weights[0]))


def ranked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Configurations that ran and were right, fastest first."""
    return sorted((o for o in found if "us" in o), key=cost)


def show(name: str, entry: dict[str, Any]) -> str:
    """One row of a cell's table, in short."""
    parts = [f"floor {entry['floor']}"]
    for peer in ("bf16", "xla packed", *entry["torch"]):
        got = entry["torch"].get(peer) or entry[peer]
        parts.append(f"{peer} {cost(got):.1f}")
    best = ranked(entry["ours"])
    mine = f"{cost(best[0]):.2f} ({best[0]['us']})" if best else str(entry["ours"])[:200]
    return f"{name}: " + " | ".join([*parts, f"OURS {mine}"])


def measure() -> None:
    """Measures what is not stored yet, most important cells first, until the time is up."""
    began = time.monotonic()
    result = records.load(NAME, _FOLDER.value) or {"cells": {}, "bf16": {}}
    ops = [_OP.value] if _OP.value else list(OPS)
    kinds = [(op, kind) for op in ops for kind in OPS[op]]
    if _REDO.value:
        result["cells"] = {k: c for k, c in result["cells"].items() if c["op"] not in ops}
    result["bandwidth"] = kernel_timing.copy_bandwidth()
    result["layout"] = LAYOUT_VERSION
    print(f"copy: {result['bandwidth'] / 1e12:.2f} TB/s")
    for size, rows in CELLS:
        for op, kind in kinds:
            key = f"{op} {kind} {size} b{rows}"
            if key in result["cells"]:
                continue
            if time.monotonic() - began > _SECONDS.value:
                print(f"time is up before {key}; run again to go on")
                return
            at = f"{size} b{rows}"
            if at not in result["bf16"]:
                result["bf16"][at] = dense(size, rows)
            first = result["cells"].get(f"{op} {kind} {CELLS[0][0]} b{CELLS[0][1]}", {})
            best = [o["config"] for o in ranked(first.get("ours", []))[:1]]
            entry = cell(op, kind, size, rows, best, result["bandwidth"])
            entry["bf16"] = result["bf16"][at]
            entry["torch"] = peers(kind, rows, size)
            result["cells"][key] = entry
            records.store(NAME, result, _FOLDER.value)
            print(f"[{time.monotonic() - began:.0f} s] {show(key, entry)}", flush=True)


def choices(record: dict[str, Any], op: str) -> dict[str, Any]:
    """What `dispatch` reads: by problem, and by family where the kernel won at every size."""
    entries: dict[str, Any] = {}
    measured: dict[str, list[tuple[int, int, int, bool]]] = {}
    for name, entry in record["result"]["cells"].items():
        best = ranked(entry["ours"])
        if entry["op"] != op or not best:
            continue
        others = min(cost(entry[p]) for p in ("bf16", "xla packed"))
        wins = cost(best[0]) * MARGIN <= others
        key = best[0]["key"]
        entries[key] = {
            "implementation": "mosaic_gpu" if wins else "xla",
            "config": best[0]["config"],
            "us": cost(best[0]),
            "xla_us": others,
        }
        if not wins:
            print(f"{name}: XLA stays")
        family, sizes, rows = key.rsplit("/", 2)
        n, k = map(int, sizes.split("x"))
        measured.setdefault(family, []).append((int(rows[1:]), n, k, wins))
    won = {
        family: {
            "implementation": "mosaic_gpu",
            # A measurement is that of every number of rows up to it that falls into its step.
            "rows": [_least(min(m[0] for m in cells)), max(m[0] for m in cells)],
            "n": [min(m[1] for m in cells), max(m[1] for m in cells)],
            "k": [min(m[2] for m in cells), max(m[2] for m in cells)],
        }
        for family, cells in measured.items()
        if all(wins for *_, wins in cells) and _is_grid(cells)
    }
    return {
        "device": record["device"].replace("-", " "),
        "jax": record["versions"]["jax"],
        "layout": record["result"]["layout"],
        "won": won,
        "entries": entries,
    }


def _is_grid(cells: list[tuple[int, int, int, bool]]) -> bool:
    """Whether all corners between the sizes were measured."""
    rows, n, k, _ = (set(values) for values in zip(*cells, strict=True))
    return len({cell[:3] for cell in cells}) == len(rows) * len(n) * len(k)


def _least(step: int) -> int:
    # Beyond the last step every number of rows is one of its own.
    return step if step > STEPS[-1] else max((s + 1 for s in STEPS if s < step), default=1)


def write_configs() -> None:
    """Stores the shapes at which the kernels run when nothing is asked for."""
    for record in stored(NAME):
        for op in OPS:
            table = choices(record, op)
            folder = Path(__file__).parents[1] / "jaxlab" / "kernels" / op / "configs"
            folder.mkdir(exist_ok=True)
            path = folder / dispatch.file_name(table["device"])
            path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
            print(f"{op}: {len(table['entries'])} shapes to {path.name}")


def main(argv: list[str]) -> None:
    """Measures, or writes what was measured."""
    del argv
    write_configs() if _WRITE.value else measure()


if __name__ == "__main__":
    app.run(main)
