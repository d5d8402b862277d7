"""Matrix completion: how many entries recovery takes, and what the approximate solver saves.

    OPENBLAS_NUM_THREADS=1 python benchmarks/matrix_completion.py   # run and store
    python benchmarks/matrix_completion.py --page   # write the stored tables into the page

Recovery: Gaussian products of rank 5, 200 x 150, in float64; a run has recovered when its relative
error in the Frobenius norm is below 1e-5. Times: 600 x 500 in float32, 3 r (m + n) entries, the
median of the repeats after compilation. One thread of BLAS, because QR of narrow matrices is many
times slower where its threads wait for a processor that others use.
"""

import argparse
import functools
import os
import statistics
import time
from typing import Any

import jax
import numpy as np
from claim import machine, stored
from numerics_page import rewrite, table
from records import store

from jaxlab.numerics.matrix_completion import complete

NAME = "matrix_completion"
RATIOS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
RANKS = (4, 8, 16, 32)
SEEDS = 3
REPEATS = 5
SOLVERS = ("exact", "cg")
SOLVED = 1e-5


def sample(shape: tuple[int, int], rank: int, ratio: float, seed: int) -> tuple[Any, ...]:
    """A matrix of low rank, and `ratio` r (m + n) of its entries, or all."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    count = min(int(ratio * rank * sum(shape)), truth.size)
    rows, cols = np.divmod(rng.choice(truth.size, count, replace=False), shape[1])
    return truth, rows, cols, truth[rows, cols]


def error(factors: Any, truth: Any) -> float:
    """Relative, in the Frobenius norm."""
    u, v = (np.asarray(f, np.float64) for f in factors)
    return float(np.linalg.norm(u @ v.T - truth) / np.linalg.norm(truth))


def recovery() -> dict[str, Any]:
    """Errors by sampling ratio, solver and seed."""
    shape, rank, iters = (200, 150), 5, 50
    cells = {}
    with jax.enable_x64(True):
        for ratio in RATIOS:
            errors: dict[str, list[float]] = {s: [] for s in SOLVERS}
            for seed in range(SEEDS):
                truth, rows, cols, vals = sample(shape, rank, ratio, seed)
                for solver, found in errors.items():
                    factors = complete(rows, cols, vals, shape, rank, iters=iters, solver=solver)
                    found.append(error(factors, truth))
            cells[str(ratio)] = errors
            print(ratio, errors)
    return {"shape": shape, "rank": rank, "iters": iters, "seeds": SEEDS, "errors": cells}


def times() -> dict[str, Any]:
    """Seconds of five alternations by rank and solver, and the errors they leave."""
    shape, iters, cg_iters = (600, 500), 5, 10
    cells = {}
    for rank in RANKS:
        truth, rows, cols, vals = sample(shape, rank, 3.0, 0)
        run = functools.partial(
            complete,
            rows,
            cols,
            vals.astype(np.float32),
            shape,
            rank,
            iters=iters,
            cg_iters=cg_iters,
        )
        cell: dict[str, Any] = {"entries": len(vals)}
        cell |= {s: {"seconds": [], "error": error(run(solver=s), truth)} for s in SOLVERS}
        # In turns, so that what else the machine does falls on both.
        for solver in SOLVERS * REPEATS:
            began = time.perf_counter()
            jax.block_until_ready(run(solver=solver))
            cell[solver]["seconds"].append(time.perf_counter() - began)
        cells[str(rank)] = cell
        print(rank, cell)
    return {"shape": shape, "iters": iters, "cg_iters": cg_iters, "cells": cells}


def content() -> str:
    """The tables of the page, of every device that results are stored of."""
    return "\n\n".join(_section(record) for record in stored(NAME)) or "Not run."


def _section(record: dict[str, Any]) -> str:
    found, timed = record["result"]["recovery"], record["result"]["times"]
    rows = []
    for ratio, errors in found["errors"].items():
        cells = (
            f"{sum(e < SOLVED for e in errors[s])} of {len(errors[s])} ({max(errors[s]):.0e})"
            for s in SOLVERS
        )
        rows.append([ratio, *cells])
    recovered = table(["entries / r (m + n)", "exact", "CG"], rows)
    rows = []
    for rank, cell in timed["cells"].items():
        exact, cg = (statistics.median(cell[s]["seconds"]) for s in SOLVERS)
        numbers = f"{exact:.3f}", f"{cg:.3f}", f"{exact / cg:.2f}"
        errors = (f"{cell[s]['error']:.0e}" for s in SOLVERS)
        rows.append([rank, str(cell["entries"]), *numbers, *errors])
    head = ["rank", "entries", "exact, s", "CG, s", "exact / CG", "error, exact", "error, CG"]
    m, n = found["shape"]
    rows_timed, columns_timed = timed["shape"]
    return "\n\n".join(
        [
            f"Machine: {machine(record)}.",
            f"Recovered (relative error below {SOLVED:g}; in brackets the largest of the seeds), "
            f"rank {found['rank']}, {m} x {n}, {found['iters']} alternations, float64:",
            recovered,
            f"Time of {timed['iters']} alternations, {rows_timed} x {columns_timed}, float32, CG "
            f"with {timed['cg_iters']} steps:",
            table(head, rows),
        ]
    )


def main() -> None:
    """Runs and stores, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--folder", default="", help="where to store, instead of results/")
    arguments = parser.parse_args()
    if arguments.page:
        rewrite(NAME, content())
        return
    settings = [f"OPENBLAS_NUM_THREADS={os.environ.get('OPENBLAS_NUM_THREADS', '')}"]
    result = {"settings": settings, "recovery": recovery(), "times": times()}
    store(NAME, result, arguments.folder)


if __name__ == "__main__":
    main()
