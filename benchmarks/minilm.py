"""Every one-shot method on the MLP kernels of all-MiniLM-L6-v2, at equal kept parameters.

    python benchmarks/minilm.py             # 2 CPU cores, half an hour; goes on where it stopped
    python benchmarks/minilm.py --measure   # time and peak memory of the command of the config

The rules are those of configs/minilm.py; the statistics of the inputs are collected once for each
draw of 512 docstrings, and the 512 held-out pairs are the same for all draws. Compressed kernels
are multiplied as dense arrays here, so that one compilation serves all methods, and texts are
padded to few lengths; padding counts nothing. Retrieval, the dearer half of a measurement, is
measured on draw 0 at seven tenths and at 2:4.
"""

from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from minilm_encoder import Encoder, Statistics
from minilm_memory import measure
from minilm_methods import (
    CELLS,
    COMPARED,
    RETRIEVED,
    WITHOUT_DATA,
    by_rank,
    dense_tree,
    makers,
    sizes,
)
from records import load, store
from tqdm import tqdm

NAME = "minilm"
RANKS = (192, 96)
_MEASURE = flags.DEFINE_bool("measure", False, "Run the config's command and watch its memory.")
_DRAWS = flags.DEFINE_integer("draws", 3, "Draws of calibration docstrings.")


def run_cell(
    encoder: Encoder, key: str, draw: int, seen: Statistics, result: dict[str, Any]
) -> None:
    """One method at one size on one draw, unless it is stored or would be the same again."""
    cell = result["cells"].setdefault(key, {"draws": []})
    if draw in cell["draws"] or (draw and key in WITHOUT_DATA):
        return
    made = makers()[key](encoder, seen)
    cell |= sizes(made)
    figures = encoder.fidelity(dense_tree(made), retrieval=not draw and key in RETRIEVED)
    cell["draws"].append(draw)
    for name, value in figures.items():
        cell.setdefault(name, []).append(round(value, 6))
    store(NAME, result)


def run_ranks(encoder: Encoder, draw: int, seen: Statistics, result: dict[str, Any]) -> None:
    """Retrieval of the dense model and of two ranks, on held-out pairs that are drawn anew too."""
    if str(draw) in result["ranks"]:
        return
    part = encoder.held_out(draw)
    trees = {"dense": encoder.params}
    trees |= {str(rank): dense_tree(by_rank(encoder, seen, rank)) for rank in RANKS}
    result["ranks"][str(draw)] = {
        name: encoder.recalls(tree, encoder.embed(tree, part), part) for name, tree in trees.items()
    }
    store(NAME, result)


def main(argv: list[str]) -> None:
    """Runs what is missing and stores each cell."""
    del argv
    result = load(NAME) or {"cells": {}, "ranks": {}, "dense": {}}
    if _MEASURE.value:
        result["measured"] = measure()
        store(NAME, result)
        return
    with jax.default_matmul_precision("highest"):
        encoder = Encoder()
        if not result["dense"]:
            part = encoder.held_out()
            result["data"] = encoder.data(0).info
            result["dense"] = encoder.recalls(encoder.params, encoder.target, part)
            result["dense"] |= sizes(encoder.params)
        draws = range(_DRAWS.value)
        seen = {draw: Statistics(encoder, draw) for draw in draws}
        with tqdm(total=len(CELLS) * len(draws), unit="cell") as bar:

            def run(draw: int, keys: Sequence[str]) -> None:
                for key in keys:
                    bar.set_postfix_str(f"draw {draw}, {key}")
                    run_cell(encoder, key, draw, seen[draw], result)
                    bar.update()

            for draw in draws:
                run(draw, COMPARED)
            for draw in draws:
                run(draw, CELLS[len(COMPARED) :])
                run_ranks(encoder, draw, seen[draw], result)


if __name__ == "__main__":
    app.run(main)
