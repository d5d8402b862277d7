"""What `kernels.py` measures of products of signs: large ones, and one of few rows."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from kernel_cell import Cell
from kernel_timing import copies_of

from jaxlab.kernels.packing import Planar, unpack
from jaxlab.kernels.sign_matmul import Problem
from jaxlab.kernels.sign_matmul import reference as signs
from jaxlab.kernels.sign_matmul.pallas_mosaic_gpu import mosaic_gpu

WIDTH = 64


def dense(dtype: Any, a: jax.Array, b: Planar, scale: Any, x: jax.Array, w: jax.Array) -> jax.Array:
    """The same numbers in bfloat16, twice eight bytes to a bit."""
    del a, b
    contract = (((1,), (1,)), ((), ()))
    product = lax.dot_general(x, w, contract, preferred_element_type=jnp.float32)
    return (product if scale is None else product * scale[None]).astype(dtype)


def _cell(m: int, n: int, k: int, packed: bool = True, dtype: str = "int32") -> Cell:
    """Signs with signs; or int8 with signs, scaled, as a layer has them."""
    problem = Problem(m, n, k, WIDTH, packed, dtype)
    nbytes = (m * (k // 8 if packed else k)) + n * k // 8 + m * n * jnp.dtype(dtype).itemsize

    @jax.jit
    def make(key: jax.Array) -> tuple[Any, ...]:
        left, right = (
            jax.random.bits(part, (size, k // 16), jnp.uint16)
            for part, size in zip(jax.random.split(key), (m, n), strict=True)
        )
        b = Planar(right, "binary", k, WIDTH)
        plain = unpack(Planar(left, "binary", k, WIDTH))
        scale = None if packed else jax.random.uniform(key, (n,), jnp.float32, 0.5, 1.5)
        x, w = plain.astype(jnp.bfloat16), unpack(b).astype(jnp.bfloat16)
        return left if packed else plain, b, scale, x, w

    def of(fn: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        return lambda a, b, scale, x, w: fn(a, b, scale, dtype=jnp.dtype(dtype), **settings)

    xla: dict[str, Callable[..., Any]] = {
        "xla": of(unpacked),
        "xla dense bf16": functools.partial(dense, jnp.dtype(dtype)),
    }
    # More than 5 ms, beyond.
    if packed and m * n * k <= 4096**3:
        xla["xla popcount"] = lambda a, b, scale, x, w: signs.popcount(a, b)
    peers: dict[str, Any] = {"torch bf16": functools.partial(_torch_dense, m, n, k)}
    if m > 16:
        peers["torch int8"] = functools.partial(_torch_int8, m, n, k)
    return Cell(
        problem=problem,
        nbytes=nbytes,
        flops=2.0 * m * n * k,
        peak="int8",
        calls=[make(key) for key in jax.random.split(jax.random.key(1), copies_of(nbytes))],
        configs=problem.stream.candidates(6) if problem.few else problem.candidates(),
        kernel=lambda config: of(mosaic_gpu, config=config, interpret=None),
        reference=of(unpacked),
        xla=xla,
        torch=peers,
        # Integers are exact, and a scaled sum is rounded once.
        tolerance=0.0 if dtype == "int32" else 2**-8,
    )


def unpacked(a: jax.Array, b: Planar, scale: Any, *, dtype: Any) -> jax.Array:
    """By int8 matrices."""
    return signs.scaled(signs.int8_product(a, b), scale, dtype)


def _torch_dense(m: int, n: int, k: int, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    copies = copies_of(2 * (m + n) * k)
    calls = [(torch.randn(m, k, **made), torch.randn(n, k, **made)) for _ in range(copies)]
    return (lambda x, w: x @ w.T), calls


def _torch_int8(m: int, n: int, k: int, torch: Any) -> tuple[Callable[..., Any], list[Any]]:
    def some(rows: int) -> Any:
        return 2 * torch.randint(0, 2, (rows, k), dtype=torch.int8, device="cuda") - 1

    calls = [(some(m), some(n)) for _ in range(copies_of((m + n) * k))]
    return (lambda x, w: torch._int_mm(x, w.T)), calls


CELLS: dict[str, Callable[[], Cell]] = {
    "signs 4096x4096 b4096": functools.partial(_cell, 4096, 4096, 4096),
    "int8 4096x4096 b4096": functools.partial(_cell, 4096, 4096, 4096, False, "bfloat16"),
    "signs 4096x4096 b16": functools.partial(_cell, 16, 4096, 4096),
    "signs 8192x8192 b8192": functools.partial(_cell, 8192, 8192, 8192),
    "signs 2048x2048 b2048": functools.partial(_cell, 2048, 2048, 2048),
}
