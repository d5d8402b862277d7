"""What `kernels.py` measures of a matrix and a vector: a product of M-FAC's window."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from kernel_cell import Cell
from kernel_timing import copies_of

from jaxlab.kernels.gemv import Problem
from jaxlab.kernels.gemv.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.gemv.reference import reference, xla

# Of a matrix of more bytes no cache keeps anything from one call to the next: one is enough.
_LARGE = 2**30
# Numbers of the largest matrix: ours and torch's find room beside what other processes have.
_MOST = 2**33


def _cell(m: int, n: int) -> Cell:
    # As the window has them: a gradient is stored before it is multiplied.
    problem = Problem(1, m, n, "bfloat16", "bfloat16")
    nbytes = 2 * m * n

    @jax.jit
    def make(key: jax.Array) -> Any:
        x, a = jax.random.split(key)
        draw = functools.partial(jax.random.normal, a, (m, n), jnp.bfloat16)
        return jax.random.normal(x, (1, n), jnp.bfloat16), (), (draw(),)

    copies = copies_of(nbytes) if nbytes < _LARGE else 1
    return Cell(
        problem=problem,
        nbytes=nbytes + 2 * n + 4 * m,
        flops=0,
        peak="bf16",
        calls=[make(key) for key in jax.random.split(jax.random.key(1), copies)],
        configs=problem.candidates(5),
        kernel=lambda config: functools.partial(mosaic_gpu, config=config, interpret=None),
        reference=reference,
        xla={"xla": xla, "xla sums": _sums},
        torch={"torch bf16": functools.partial(_torch, m, n, copies)},
        # Of the parts of a float32 vector nothing is lost; sums of millions of terms round.
        tolerance=2**-16,
    )


def _sums(x: jax.Array, packed: Any, floating: tuple[jax.Array]) -> jax.Array:
    """Without tensor cores."""
    (a,) = floating
    terms = a.astype(jnp.float32) * x.astype(jnp.float32)
    # By 256 columns first: all at once is slower.
    terms = jnp.sum(terms.reshape(a.shape[0], -1, 256), axis=2)
    return jnp.sum(jax.lax.optimization_barrier(terms), axis=1)[None]


def _torch(m: int, n: int, copies: int, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    return torch.mv, [(torch.randn(m, n, **made), torch.randn(n, **made)) for _ in range(copies)]


CELLS: dict[str, Callable[[], Cell]] = {
    f"m{m} n{n}": functools.partial(_cell, m, n)
    for n in (7813632, 2**16, 2**18, 2**20, 2**22, 2**24)
    for m in (512, 1024)
    if m * n <= _MOST
}
