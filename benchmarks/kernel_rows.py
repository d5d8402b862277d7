"""The rows of a place in the kernels' tables: ours by configuration, XLA and torch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import kernel_timing
from kernel_cases import cases
from kernel_cell import Cell
from kernel_peers import dense_peers, packed_peers, time_peers
from kernel_places import floor, ranked
from kernel_timing import alone

# A bfloat16 result, with weights that XLA rounds to bfloat16 first.
TOLERANCE = 1e-2
# Of configurations: where nothing is known, and where winners are.
MOST, FEW = 6, 3
# What else is tried of the fastest, where its configuration has such a field.
CHANGES = ({"in_flight": 2},)


def measure(cells: Sequence[Cell], limits: dict[str, float]) -> dict[str, Any]:
    """All rows of a place.

    Args:
      cells: as many as there are ways to store the operands; XLA and torch are those of the first.
      limits: "bandwidth", and operations a second by `Cell.peak`.
    """
    first = cells[0]
    result: dict[str, Any] = {
        "sizes": list(first.problem.sizes),
        "rows": first.problem.rows,
        "layout": first.problem.layout_version,
        "bytes": first.nbytes,
        "flops": first.flops,
        "peak": first.peak,
    }
    result["floor"] = floor(result, limits)
    result["xla"] = _xla(first)
    result["ours"] = [row for cell in cells for row in ours(cell)]
    with alone():
        result["torch"] = time_peers(first.torch)
    return result


def ours(cell: Cell) -> list[dict[str, Any]]:
    """Every configuration that is tried, with its times; then changes of the fastest."""
    with alone():
        expected = jax.block_until_ready(jax.jit(cell.reference)(*cell.calls[0]))
    found = _tried(cell, cell.configs, expected)
    if len(cell.configs) > FEW and ranked(found):
        winner = type(cell.configs[0])(**ranked(found)[0]["config"])
        known = {f.name for f in dataclasses.fields(winner)}
        changed = [dataclasses.replace(winner, **c) for c in CHANGES if known.issuperset(c)]
        found += _tried(cell, [c for c in changed if c not in cell.configs], expected)
    return found


def _tried(cell: Cell, configs: Sequence[Any], expected: Any) -> list[dict[str, Any]]:
    # Compiled while another process may measure.
    programs = [_or_error(functools.partial(_of_config, cell, c)) for c in configs]
    rows = []
    with alone():
        for config, program in zip(configs, programs, strict=True):
            got = _timed(program, cell.calls, expected, cell.tolerance)
            about = {"family": cell.problem.family, "key": cell.problem.key, "config": vars(config)}
            rows.append({**about, **got})
            shown = {k: got[k] for k in ("us", "device_us", "wrong", "error") if k in got}
            print("   ", *(f"{k}={v}" for k, v in vars(config).items()), shown, flush=True)
    return rows


def _xla(cell: Cell) -> dict[str, Any]:
    rows = {}
    # XLA measures for itself while it compiles.
    with alone():
        for name, fn in cell.xla.items():
            program = _or_error(functools.partial(_compiled, fn, cell.calls))
            rows[name] = _timed(program, cell.calls, None, cell.tolerance)
    return rows


def _of_config(cell: Cell, config: Any) -> Callable[..., Any]:
    return _compiled(cell.kernel(config), cell.calls)


def _compiled(fn: Callable[..., Any], calls: kernel_timing.Calls) -> Callable[..., Any]:
    return kernel_timing.lowered(fn, calls).compile()


def _or_error(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}


def _timed(program: Any, calls: Any, expected: Any, tolerance: float) -> dict[str, Any]:
    """Of a program that is right; otherwise what is wrong with it."""
    if isinstance(program, dict):
        return program

    def times() -> dict[str, Any]:
        if expected is None:
            return kernel_timing.time_calls(program, calls).as_dict()
        off = kernel_timing.worst(program(calls)[0], expected)
        if not off <= tolerance:
            return {"wrong": off}
        return {**kernel_timing.time_calls(program, calls).as_dict(), "off": round(off, 6)}

    return _or_error(times)


def skinny(op: str, kind: str, rows: int, n: int, k: int, best: Sequence[Any]) -> list[Cell]:
    """Products of few rows with packed weights, (rows, k) with (n, k).

    Args:
      op: of `kernel_cases.OPS`.
      kind: of its weights.
      rows: of x.
      n: outputs.
      k: inputs.
      best: configurations that won elsewhere, as they are stored.
    """
    with alone():
        made = []
        for case in cases(op, kind, rows, n, k):
            xs = kernel_timing.inputs(rows, k, len(case.weights))
            made.append(
                Cell(
                    problem=case.problem,
                    nbytes=case.nbytes + 2 * rows * (n + k),
                    flops=0,
                    peak="bf16",
                    calls=[(x, *w) for x, w in zip(xs, case.weights, strict=True)],
                    configs=few(_candidates(case.problem, best), best),
                    kernel=case.kernel,
                    reference=case.reference,
                    xla={"packed": case.xla},
                    torch=packed_peers(kind, rows, n, k),
                    tolerance=TOLERANCE,
                )
            )
        return made


def _candidates(problem: Any, best: Sequence[dict[str, Any]]) -> list[Any]:
    own = problem.plan.candidates(MOST)
    known = {f.name for f in dataclasses.fields(own[0])} if own else set()
    winners = [type(own[0])(**b) for b in best if known.issuperset(b)]
    return [*own, *(c for c in winners if not problem.plan.refuse(c))]


def few(own: Sequence[Any], best: Sequence[dict[str, Any]]) -> list[Any]:
    """All that suits where no winner does; otherwise the first winner, two guesses for this place,
    and what is left of the winners.

    Args:
      own: configurations that suit, best guess first.
      best: those that won elsewhere, as they are stored.
    """
    winners = [c for b in best for c in own if vars(c) == b]
    if not winners:
        return list(own)
    return list(dict.fromkeys([*winners[:1], *own[:2], *winners[1:], *own]))[:FEW]


def dense(rows: int, n: int, k: int) -> dict[str, Any]:
    """bfloat16 weights, by XLA and by torch."""

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        wide = jnp.matmul(x, w.T, preferred_element_type=jnp.float32)
        return wide.astype(x.dtype)

    with alone():
        keys = jax.random.split(jax.random.key(2), kernel_timing.copies_of(2 * n * k))
        weights = [jax.random.normal(key, (n, k), jnp.bfloat16) for key in keys]
        calls = list(zip(kernel_timing.inputs(rows, k, len(keys)), weights, strict=True))
        program = _or_error(functools.partial(_compiled, product, calls))
        return {
            "xla": _timed(program, calls, None, 0.0),
            "torch": time_peers(dense_peers(rows, n, k)),
        }
