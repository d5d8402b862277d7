"""Matrix sensing: iterations of GD, ScaledGD and PrecGD by conditioning and by columns too many.

    python benchmarks/matrix_sensing.py          # run and store
    python benchmarks/matrix_sensing.py --page   # write the stored table into the page

Symmetric Gaussian measurements of a 20 x 20 matrix of rank 2 with singular values 1 and 1/kappa, in
float64, 12 n r of them, from a start of Gaussian entries. Counted is the first iteration with a
relative error below 1e-6. GD has the step 0.3, the others 0.5; ScaledGD is damped by a tenth of
1/kappa from the start of the others, and by 1/kappa from a much smaller one.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from claim import machine, stored
from numerics_page import rewrite, table
from records import store

from jaxlab.numerics.matrix_sensing import scaled_gd, sensing_loss

NAME = "matrix_sensing"
N, R = 20, 2
MEASUREMENTS = 12 * N * R
CONDITIONS = (1, 10, 100)
COLUMNS = (2, 4, 8)
SEEDS = 3
MOST = 1000
START = 1e-3
SMALL = 1e-8
SOLVED = 1e-6


def methods(condition: int) -> dict[str, tuple[optax.GradientTransformation, float]]:
    """Optimizers, and the size of the entries that each starts from."""
    return {
        f"GD from {START:g}": (optax.sgd(0.3), START),
        f"ScaledGD from {START:g}": (scaled_gd(0.5, 0.1 / condition), START),
        f"ScaledGD from {SMALL:g}": (scaled_gd(0.5, 1 / condition), SMALL),
        f"PrecGD from {START:g}": (scaled_gd(0.5, "sqrt_loss"), START),
    }


def errors(tx: Any, scale: float, condition: int, columns: int) -> jax.Array:
    """Relative errors after each iteration, a row for each seed."""

    def problem(seed: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(N, R)))
        truth = basis * np.array([1.0, 1 / condition]) @ basis.T
        a = rng.normal(size=(MEASUREMENTS, N, N))
        a = (a + a.transpose(0, 2, 1)) / 2
        start = scale * rng.normal(size=(N, columns))
        return start, a, np.einsum("mij,ij->m", a, truth), truth

    def run(x: Any, a: Any, y: Any, truth: Any) -> jax.Array:
        def step(carry: Any, _: None):
            x, state = carry
            value, grads = jax.value_and_grad(sensing_loss)(x, a, y)
            extra = optax.with_extra_args_support(tx)
            updates, state = extra.update(grads, state, x, value=value)
            x = x + updates
            return (x, state), jnp.linalg.norm(x @ x.T - truth) / jnp.linalg.norm(truth)

        return jax.lax.scan(step, (x, tx.init(x)), length=MOST)[1]

    stacked = [
        jnp.asarray(np.stack(parts)) for parts in zip(*map(problem, range(SEEDS)), strict=True)
    ]
    return jax.jit(jax.vmap(run))(*stacked)


def run_all() -> dict[str, Any]:
    """By conditioning and columns and method: iterations (None: not reached) and last errors."""
    cells = {}
    with jax.enable_x64(True):
        for condition in CONDITIONS:
            for columns in COLUMNS:
                cell = {}
                for name, (tx, scale) in methods(condition).items():
                    found = np.asarray(errors(tx, scale, condition, columns))
                    reached = found < SOLVED
                    counts = [int(np.argmax(r)) + 1 if r.any() else None for r in reached]
                    cell[name] = {"iterations": counts, "last": found[:, -1].tolist()}
                cells[f"{condition} {columns}"] = cell
                print(condition, columns, cell)
    return {
        "n": N,
        "r": R,
        "measurements": MEASUREMENTS,
        "most": MOST,
        "seeds": SEEDS,
        "cells": cells,
    }


def content() -> str:
    """The table of the page, of every device that results are stored of."""
    return "\n\n".join(_section(record) for record in stored(NAME)) or "Not run."


def _section(record: dict[str, Any]) -> str:
    result = record["result"]
    rows = []
    for key, cell in result["cells"].items():
        condition, columns = key.split()
        rows.append([condition, columns, *(_words(found) for found in cell.values())])
    names = list(next(iter(result["cells"].values())))
    return "\n\n".join(
        [
            f"Machine: {machine(record)}.",
            f"Iterations to a relative error of {SOLVED:g}, {result['seeds']} seeds, smallest to\n"
            f"largest; where one did not get there in {result['most']}, the largest last error:",
            table(["condition number", "columns k (rank 2)", *names], rows),
        ]
    )


def _words(found: dict[str, Any]) -> str:
    counts = [c for c in found["iterations"] if c is not None]
    if len(counts) < len(found["iterations"]):
        return f"not reached, {max(found['last']):.0e}"
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def main() -> None:
    """Runs and stores, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--folder", default="", help="where to store, instead of results/")
    arguments = parser.parse_args()
    if arguments.page:
        rewrite(NAME, content())
        return
    store(NAME, run_all(), arguments.folder)


if __name__ == "__main__":
    main()
