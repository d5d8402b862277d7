"""What `kernels.py` measures: by op, kinds of weights at random, and who multiplies with them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from kernel_timing import copies_of

from jaxlab.kernels.layout_nm import LANES
from jaxlab.kernels.nm_matmul import pallas_mosaic_gpu as nm_kernel
from jaxlab.kernels.nm_matmul import reference as nm_reference
from jaxlab.kernels.nm_matmul import shapes as nm_shapes
from jaxlab.kernels.packing import FORMATS, Planar
from jaxlab.kernels.packing_nm import pack_nm
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


def sparse(
    n: int,
    m: int,
    rows: int,
    n_out: int,
    k: int,
    *,
    block: int = 1,
    kind: str | None = None,
    group: int = 128,
) -> Case:
    """N:M groups at random; integers have scales of a group of k, or of whole rows where it is 0 or
    does not fit.
    """
    problem = nm_shapes.Problem(rows, n_out, k, n, m, block)
    if kind:
        fits = group % (LANES * problem.layout.span) == 0
        problem = problem._replace(kind=kind, scaled=group if fits else 0)
    groups = k // problem.scaled if problem.scaled else 1

    @jax.jit
    def make(key: jax.Array) -> Any:
        drawn = jax.random.bits(key, (n_out, k // (m * block), m), jnp.uint8)
        mask = jnp.repeat((jnp.argsort(drawn, -1) < n).reshape(n_out, -1), block, 1)
        if kind:
            w = jax.random.randint(key, mask.shape, -8, 8, jnp.int8)
        else:
            w = jax.random.normal(key, mask.shape, jnp.bfloat16)
        packed = pack_nm(w, mask, n, m, block=block, kind=kind)
        codes = dataclasses.replace(packed, values=None)  # pyright: ignore[reportArgumentType]
        if kind is None:
            return (codes, None), (packed.values, None)
        scale = jax.random.uniform(key, (groups, n_out), jnp.bfloat16, 0.5, 1.5)
        return (codes, packed.values), (None, scale)

    weights = _copies(make, 2 * n_out * k * n // m)
    return Case(
        problem,
        sum(leaf.nbytes for leaf in jax.tree.leaves(weights[0])),
        weights,
        lambda c: functools.partial(nm_kernel.mosaic_gpu, config=c, interpret=None),
        nm_reference.xla,
        nm_reference.reference,
    )


def _copies(make: Callable[[jax.Array], Any], nbytes: int) -> list[Any]:
    return [make(key) for key in jax.random.split(jax.random.key(1), copies_of(nbytes))]


# By op and kind, the ways to store it that are tried: of the rows of x, the outputs and the inputs.
OPS: dict[str, dict[str, list[Callable[[int, int, int], Case]]]] = {
    "quantized_matmul": {
        "int4": [functools.partial(planar, "int4", 128, 64)],
        "int8": [functools.partial(planar, "int8", 0, 64)],
        "int8 groups of 128": [functools.partial(planar, "int8", 128, 64)],
    },
    "binary_matmul": {
        "binary": [functools.partial(planar, "binary", 0, width) for width in (64, 32)],
        "ternary": [functools.partial(planar, "ternary", 0, 64)],
    },
    "nm_matmul": {
        "2:4": [functools.partial(sparse, 2, 4)],
        "1:4": [functools.partial(sparse, 1, 4)],
        "1:8": [functools.partial(sparse, 1, 8)],
        "2:4 int4": [functools.partial(sparse, 2, 4, kind="int4")],
        "1:4 int4": [functools.partial(sparse, 1, 4, kind="int4")],
        "2:4 int4 rows": [functools.partial(sparse, 2, 4, kind="int4", group=0)],
        "2:4 block 4": [functools.partial(sparse, 2, 4, block=4)],
        "1:4 block 16": [functools.partial(sparse, 1, 4, block=16)],
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
