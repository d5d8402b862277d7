"""What `kernels.py` measures: by op, kinds of weights at random, and who multiplies with them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from kernel_timing import copies_of

from jaxlab.kernels.nm_matmul import pallas_mosaic_gpu as nm_kernel
from jaxlab.kernels.nm_matmul import reference as nm_reference
from jaxlab.kernels.nm_matmul import shapes as nm_shapes
from jaxlab.kernels.packing import FORMATS, Planar, pack
from jaxlab.kernels.packing_nm import WIDTH, place_bits
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul import pallas_mosaic_gpu, reference, shapes

Product = Callable[..., jax.Array]


class Case(NamedTuple):
    """One kind of weights of one size.

    Attributes:
      problem: what the choice of an implementation looks at.
      nbytes: of the weights.
      weights: as many as take turns.
      kernel: of a `Config`, the product.
      xla: the product by XLA.
      reference: the product.
    """

    problem: Any
    nbytes: int
    weights: list[tuple[Any, Any]]
    kernel: Callable[[Config], Product]
    xla: Product
    reference: Product


def planar(kind: str, group: int, width: int, rows: int, n_out: int, k: int) -> Case:
    """Integers and scales; random bits are random weights, of any kind."""
    problem = shapes.Problem(rows, n_out, k, kind, group, width)
    columns, groups = k // FORMATS[kind].fields, k // group if group else 1

    @jax.jit
    def make(key: jax.Array) -> Any:
        scale = jax.random.uniform(key, (groups, n_out), jnp.bfloat16, 0.5, 1.5)
        return Planar(bits(key, (n_out, columns), kind), kind, k, width), (scale, None)

    return Case(
        problem,
        2 * n_out * (columns + groups),
        _copies(make, 2 * n_out * columns),
        lambda c: functools.partial(pallas_mosaic_gpu.mosaic_gpu, config=c, interpret=None),
        reference.xla,
        reference.reference,
    )


def bits(key: jax.Array, shape: tuple[int, int], kind: str) -> jax.Array:
    """Words whose fields are legal numbers."""
    words = jax.random.bits(key, shape, jnp.uint16)
    # The field 3 is not in the format: 3 becomes 2.
    return words & ~((words >> 1) & jnp.uint16(0x5555)) if kind == "ternary" else words


def sparse(n: int, m: int, rows: int, n_out: int, k: int) -> Case:
    """N:M planes, with places at random."""

    @jax.jit
    def make(key: jax.Array) -> Any:
        groups = (n_out, k // m)
        where = jnp.argsort(jax.random.bits(key, (*groups, m), jnp.uint8), -1)[..., :n]
        shift = jnp.arange(n, dtype=jnp.int32) * place_bits(m)
        code = jnp.sum(jnp.sort(where, -1).astype(jnp.int32) << shift, -1)
        kind = "uint4" if n * place_bits(m) > 2 else "uint2"
        return (
            pack(code, kind, width=WIDTH),
            jax.random.normal(key, (n, *groups), jnp.bfloat16),
        )

    nbytes = 2 * n_out * k * n // m
    weights = _copies(make, nbytes)
    code = weights[0][0]
    problem = nm_shapes.problem_of(rows, code, n, m, 1)
    kernel = functools.partial(nm_kernel.mosaic_gpu, m, 1)
    return Case(
        problem,
        nbytes + code.words.nbytes,
        weights,
        lambda c: functools.partial(kernel, config=c, interpret=None),
        functools.partial(nm_reference.xla, m, 1),
        functools.partial(nm_reference.reference, m, 1),
    )


def _copies(make: Callable[[jax.Array], Any], nbytes: int) -> list[Any]:
    return [make(key) for key in jax.random.split(jax.random.key(1), copies_of(nbytes))]


# By op and kind, the ways to store it that are tried: of the rows of x, the outputs and the inputs.
OPS: dict[str, dict[str, list[Callable[[int, int, int], Case]]]] = {
    "quantized_matmul": {
        "int4": [functools.partial(planar, "int4", 128, 64)],
        "int8": [functools.partial(planar, "int8", 0, 64)],
    },
    "binary_matmul": {
        "binary": [functools.partial(planar, "binary", 0, width) for width in (64, 32)],
        "ternary": [functools.partial(planar, "ternary", 0, 64)],
    },
    "nm_matmul": {
        f"{n}:{m}": [functools.partial(sparse, n, m)] for n, m in ((2, 4), (1, 4), (1, 8))
    },
}


def cases(op: str, kind: str, rows: int, n_out: int, k: int) -> Iterator[Case]:
    """One for each way to store it."""
    for way in range(len(OPS[op][kind])):
        case = _with_weights(op, kind, way, n_out, k)
        yield case._replace(problem=case.problem._replace(rows=rows))


@functools.cache
def _with_weights(op: str, kind: str, way: int, n_out: int, k: int) -> Case:
    # Weights are drawn once for all numbers of rows.
    return OPS[op][kind][way](1, n_out, k)
