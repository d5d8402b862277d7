"""What `kernels.py` measures of Monarch products: both factors of as many blocks.

The floor reads x and writes y once. Two launches also write what is between the stages and read it
again, as far as the cache does not keep it. The dense matrix is another one of the same shape.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from kernel_cell import Cell
from kernel_timing import LEAST_CALLS, ROTATED_BYTES

from jaxlab.kernels.monarch_matmul.pallas_mosaic_gpu import mosaic_gpu
from jaxlab.kernels.monarch_matmul.reference import reference, xla
from jaxlab.kernels.monarch_matmul.shapes import problem_of
from jaxlab.methods.monarch import monarch_apply, monarch_apply_t

Product = Callable[..., jax.Array]


def _cell(n: int, blocks: int, rows: int, blocked: bool = True, transpose: bool = False) -> Cell:
    size = n // blocks
    shape, how = (blocks, size, size), {"blocked": blocked, "transpose": transpose}
    factor = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    problem = problem_of(rows, factor, factor, **how)
    weights, ends = 4 * n * size, 4 * rows * n
    key = jax.random.key(1)
    calls = _calls(rows, n, ends + weights)
    dense = jax.random.normal(key, (n, n), jnp.bfloat16) / n**0.5
    return Cell(
        problem=problem,
        nbytes=ends + weights,
        flops=4.0 * rows * n * size,
        peak="bf16",
        calls=[(*_operands(k, rows, n, shape), dense) for k in jax.random.split(key, calls)],
        configs=problem.candidates(),
        kernel=lambda config: _alone(
            functools.partial(mosaic_gpu, **how, config=config, interpret=None)
        ),
        reference=_alone(functools.partial(reference, **how)),
        xla={
            "xla": _alone(functools.partial(xla, **how)),
            "xla without kernels": _alone(functools.partial(_as_before, **how)),
            "dense": lambda x, w1, w2, dense: x @ dense,
        },
        torch={
            "torch bmm": functools.partial(_torch_bmm, rows, n, shape, calls, blocked, transpose),
            "torch dense": functools.partial(_torch_dense, rows, n, calls),
        },
        tolerance=2**-7,
    )


def _calls(rows: int, n: int, nbytes: int) -> int:
    # Arrays beyond every cache need not be many.
    return 4 if 4 * nbytes > ROTATED_BYTES else max(LEAST_CALLS, int(-(-ROTATED_BYTES // nbytes)))


def _operands(key: jax.Array, rows: int, n: int, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    shapes = (rows, n), shape, shape
    drawn = [
        jax.random.normal(k, s, jnp.bfloat16)
        for k, s in zip(jax.random.split(key, 3), shapes, strict=True)
    ]
    return drawn[0], *(w / shape[-1] ** 0.5 for w in drawn[1:])


def _alone(product: Product) -> Product:
    """Of the same arguments, without the dense matrix."""
    return lambda x, w1, w2, dense: product(x, w1, w2)


def _as_before(
    x: jax.Array, w1: jax.Array, w2: jax.Array, *, blocked: bool, transpose: bool
) -> jax.Array:
    apply = monarch_apply_t if transpose else monarch_apply
    return apply({"w1": w1, "w2": w2}, x, blocked=blocked)


def _torch_bmm(
    rows: int,
    n: int,
    shape: tuple[int, int, int],
    calls: int,
    blocked: bool,
    transpose: bool,
    torch: Any,
) -> tuple[Callable[..., Any], list[Any]]:
    k, size, _ = shape
    made = {"dtype": torch.bfloat16, "device": "cuda"}

    def product(x: Any, first: Any, second: Any) -> Any:
        # Rows of weights are in the order of the blocks that they feed.
        x = x.view(rows, k, size) if blocked or not transpose else x.view(rows, size, k).mT
        h = torch.bmm(x.transpose(0, 1), first if transpose else first.mT)
        u = h.view(k, rows, k, size // k).permute(2, 1, 0, 3).reshape(k, rows, size)
        y = torch.bmm(u, second if transpose else second.mT)
        return y.permute((1, 0, 2) if blocked or transpose else (1, 2, 0)).reshape(rows, n)

    operands = [
        (torch.randn(rows, n, **made), torch.randn(shape, **made), torch.randn(shape, **made))
        for _ in range(calls)
    ]
    return product, operands


def _torch_dense(rows: int, n: int, calls: int, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    dense = torch.randn(n, n, **made)
    return (lambda x, w: x @ w.T), [(torch.randn(rows, n, **made), dense) for _ in range(calls)]


CELLS: dict[str, Callable[[], Cell]] = {
    "n4096 b4096": functools.partial(_cell, 4096, 64, 4096),
    "n16384 b4096": functools.partial(_cell, 16384, 128, 4096),
    "n4096 b4096 gradient of x": functools.partial(_cell, 4096, 64, 4096, transpose=True),
    "n4096 b16": functools.partial(_cell, 4096, 64, 16),
    "n4096 b512": functools.partial(_cell, 4096, 64, 512),
    # Between these and 4096 rows it may be chosen, where it wins at both ends.
    "n4096 b1024": functools.partial(_cell, 4096, 64, 1024),
    "n4096 b16384": functools.partial(_cell, 4096, 64, 16384),
    "n16384 b4096 gradient of x": functools.partial(_cell, 16384, 128, 4096, transpose=True),
    "n4096 b4096 interleaved": functools.partial(_cell, 4096, 64, 4096, blocked=False),
    "n4096 in 16 blocks b4096": functools.partial(_cell, 4096, 16, 4096),
}
