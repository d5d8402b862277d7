"""What `kernels.py` measures of a matrix and a vector: the products of M-FAC's window."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from kernel_cell import Cell
from kernel_timing import copies_of

from jaxlab.kernels.gemv import Problem
from jaxlab.kernels.gemv.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.gemv.reference import reference, sums, xla

# How many times as fast as XLA the kernel must be to be taken: these two products are nearly all
# that M-FAC's step does, and repeats of one that takes milliseconds differ by a few thousandths.
MARGIN = 1.02

# Of a matrix of more bytes no cache keeps anything from one call to the next: one is enough.
_LARGE = 2**30
# Numbers of the largest matrix: ours and torch's find room beside what other processes have.
_MOST = 2**33


def _cell(m: int, n: int, transposed: bool) -> Cell:
    # As the window has them: a gradient is stored before it is multiplied, weights are float32.
    dtype = jnp.float32 if transposed else jnp.bfloat16
    problem = Problem(1, m, n, "bfloat16", jnp.dtype(dtype).name, transposed)
    outputs, inputs = problem.sizes
    nbytes, how = 2 * m * n, {"transposed": transposed}

    @jax.jit
    def make(key: jax.Array) -> Any:
        x, a = jax.random.split(key)
        draw = functools.partial(jax.random.normal, a, (m, n), jnp.bfloat16)
        return jax.random.normal(x, (1, inputs), dtype), (), (draw(),)

    copies = copies_of(nbytes) if nbytes < _LARGE else 1
    return Cell(
        problem=problem,
        nbytes=nbytes + inputs * jnp.dtype(dtype).itemsize + 4 * outputs,
        flops=0,
        peak="bf16",
        calls=[make(key) for key in jax.random.split(jax.random.key(1), copies)],
        configs=problem.candidates(6),
        kernel=lambda config: functools.partial(mosaic_gpu, config=config, interpret=None, **how),
        reference=functools.partial(reference, **how),
        xla={"xla": functools.partial(xla, **how), "xla sums": functools.partial(_sums, **how)},
        torch={"torch bf16": functools.partial(_torch, m, n, transposed, copies)},
        # Of the parts of a float32 vector nothing is lost; sums of millions of terms round.
        tolerance=2**-16,
    )


def _sums(x: jax.Array, packed: Any, floating: tuple[jax.Array], *, transposed: bool) -> jax.Array:
    """Without tensor cores."""
    (a,) = floating
    if transposed:
        return sums(a, x[0], transposed=True)[None]
    terms = a.astype(jnp.float32) * x.astype(jnp.float32)
    # By 256 columns first: all at once is slower.
    terms = jnp.sum(terms.reshape(a.shape[0], -1, 256), axis=2)
    return jnp.sum(jax.lax.optimization_barrier(terms), axis=1)[None]


def _torch(
    m: int, n: int, transposed: bool, copies: int, torch: Any
) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    shapes = (m, n), (m if transposed else n,)
    calls = [tuple(torch.randn(*shape, **made) for shape in shapes) for _ in range(copies)]
    return (lambda a, x: torch.mv(a.T if transposed else a, x)), calls


CELLS: dict[str, Callable[[], Cell]] = {
    f"{'At ' if transposed else ''}m{m} n{n}": functools.partial(_cell, m, n, transposed)
    for transposed, columns in (
        (False, (7813632, 2**16, 2**18, 2**20, 2**22, 2**24)),
        (True, (7813632, 2**16, 2**18)),
    )
    for n in columns
    for m in (512, 1024)
    if m * n <= _MOST
}
