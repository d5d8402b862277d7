"""What `kernels.py` measures of few rows times two thin factors."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from kernel_cell import Cell
from kernel_timing import copies_of

from jaxlab.kernels.low_rank_matmul import Problem
from jaxlab.kernels.low_rank_matmul.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.low_rank_matmul.reference import reference, xla


def _cell(rows: int, size: int, rank: int) -> Cell:
    problem = Problem(rows, size, rank, size, "bfloat16")
    nbytes = 4 * size * rank
    return Cell(
        problem=problem,
        nbytes=nbytes + 4 * rows * size,
        flops=4.0 * rows * size * rank,
        peak="bf16",
        calls=[
            (jax.random.normal(key, (rows, size), jnp.bfloat16), (), _factors(key, size, rank))
            for key in jax.random.split(jax.random.key(1), copies_of(nbytes))
        ],
        configs=problem.candidates(),
        kernel=lambda config: functools.partial(mosaic_gpu, config=config, interpret=None),
        reference=reference,
        xla={"xla": xla},
        torch={"torch bf16": functools.partial(_torch, rows, size, rank)},
        tolerance=2**-7,
    )


def _factors(key: jax.Array, size: int, rank: int) -> tuple[jax.Array, jax.Array]:
    down, up = jax.random.split(key)
    return (
        jax.random.normal(down, (size, rank), jnp.bfloat16),
        jax.random.normal(up, (rank, size), jnp.bfloat16),
    )


def _torch(rows: int, size: int, rank: int, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    shapes = (rows, size), (size, rank), (rank, size)
    calls = [
        tuple(torch.randn(*shape, **made) for shape in shapes)
        for _ in range(copies_of(4 * size * rank))
    ]
    return (lambda x, down, up: (x @ down) @ up), calls


CELLS: dict[str, Callable[[], Cell]] = {
    f"{size} r{rank} b{rows}": functools.partial(_cell, rows, size, rank)
    for rows, size, rank in (
        (16, 8192, 1024),
        (1, 8192, 1024),
        (16, 4096, 512),
        (1, 4096, 512),
        (64, 4096, 512),
        (16, 4096, 1024),
    )
}
