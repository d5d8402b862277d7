"""What `kernels.py` measures of many small Kronecker products with shared factors."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from kernel_cell import Cell
from kernel_rows import TOLERANCE
from kernel_timing import copies_of

from jaxlab.kernels.kron_matvec import Problem
from jaxlab.kernels.kron_matvec.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.kron_matvec.reference import grids, reference, xla


def einsum(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """In one line, as one would write it."""
    a, b = floating
    y = jnp.einsum("pi,sij,qj->spq", a, grids(x, a, b), b, precision=lax.Precision.HIGHEST)
    return y.reshape((x.shape[0], -1))


def left_first(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """With A first: each product leaves its own axis last, and none has to be moved."""
    a, b = floating
    exact, contract = lax.Precision.HIGHEST, (((1,), (1,)), ((), ()))
    between = lax.dot_general(grids(x, a, b), a, contract, precision=exact)
    y = lax.dot_general(between, b, contract, precision=exact)
    return y.reshape((x.shape[0], -1))


def batched(x: jax.Array, packed: Any, floating: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The second as a product for each sample, whose factor is repeated."""
    a, b = floating
    between = jnp.matmul(grids(x, a, b), b.T, precision=lax.Precision.HIGHEST)
    repeated = jnp.broadcast_to(a, (x.shape[0], *a.shape))
    y = jnp.matmul(repeated, between, precision=lax.Precision.HIGHEST)
    return y.reshape((x.shape[0], -1))


def _cell(samples: int, side: int, dtype: str) -> Cell:
    problem = Problem(samples, side, side, side, side, dtype)
    nbytes = 2 * samples * side**2 * jnp.dtype(dtype).itemsize
    calls = []
    for key in jax.random.split(jax.random.key(1), copies_of(nbytes)):
        x = jax.random.normal(key, (samples, side**2), jnp.dtype(dtype))
        a, b = jax.random.normal(key, (2, side, side), jnp.dtype(dtype))
        calls.append((x, (), (a, b)))
    return Cell(
        problem=problem,
        nbytes=nbytes,
        # A float32 product is six of its pieces on the tensor cores: less than one without them.
        flops=(6.0 if dtype == "float32" else 1.0) * 4 * samples * side**3,
        peak="bf16",
        calls=calls,
        configs=problem.candidates(11),
        kernel=lambda config: functools.partial(mosaic_gpu, config=config, interpret=None),
        reference=reference,
        xla={
            "xla": xla,
            "xla einsum": einsum,
            "xla left first": left_first,
            "xla batched": batched,
        },
        torch={"torch matmul": functools.partial(_torch, samples, side, dtype)},
        tolerance=1e-5 if dtype == "float32" else TOLERANCE,
    )


def _torch(samples: int, side: int, dtype: str, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": getattr(torch, dtype), "device": "cuda"}
    copies = copies_of(2 * samples * side**2 * jnp.dtype(dtype).itemsize)
    calls = [
        (torch.randn(samples, side, side, **made), *torch.randn(2, side, side, **made))
        for _ in range(copies)
    ]
    return (lambda x, a, b: torch.matmul(a, torch.matmul(x, b.T))), calls


CELLS: dict[str, Callable[[], Cell]] = {
    f"{dtype} {side}x{side} s{samples}": functools.partial(_cell, samples, side, dtype)
    for dtype, side, samples in (
        ("float32", 32, 16384),
        ("bfloat16", 32, 16384),
        ("float32", 16, 65536),
        ("float32", 64, 4096),
        ("float32", 32, 1024),
    )
}
