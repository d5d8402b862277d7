"""The kernel for Hopper: a cluster of blocks holds a factor in its shared memory.

Each block has 64 rows. It reads them once, takes their product with v and their largest entries,
and shows both to the others; with those of the others it has the whole product, and writes its rows
anew. Vectors are wanted along rows and along columns, and numbers of which there is one likewise:
all of them are tiles of 64 x 64 in registers, as the rows of J are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu
from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.plan import TILE
from jaxlab.kernels.sherman_morrison.shapes import Config, Problem

SQUARE = (TILE, TILE)


def mosaic_gpu(
    j: jax.Array,
    v: jax.Array,
    scalars: jax.Array,
    *,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The update by the kernel.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    _compat.require()
    require_hopper(interpret)
    problem = Problem(j.shape[0], j.shape[-1], str(j.dtype))
    if reason := problem.refuse(config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    tiled = v.reshape((problem.rows, problem.blocks, TILE))
    # Each of the three as a vector, which is what can be read into registers.
    repeated = jnp.broadcast_to(scalars[:, None], (3, TILE))
    eye = jnp.eye(TILE, dtype=jnp.float32)
    return _build(problem, config, j.dtype, bool(interpret))(j, tiled, repeated, eye)


def together(parts: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """Of pairs, the sum of what is first and the largest of what is second."""
    first, second = zip(*parts, strict=True)
    return functools.reduce(jnp.add, first), functools.reduce(jnp.maximum, second)


def _build(
    problem: Problem, config: Config, dtype: Any, interpret: bool
) -> Callable[..., jax.Array]:
    ways, blocks = config.ways, problem.blocks
    each = blocks // ways
    bits = 32 if problem.dtype == "float32" else 16

    def body(j_gmem: Any, v_gmem: Any, s_gmem: Any, eye_gmem: Any, *refs: Any, **scratch: Any):
        # Interpreters read no shared memory of another block: there it is a second result.
        out_gmem, *spread = refs
        layout = plgpu.Layout.WGMMA
        along_rows, along_columns = layout.reduce(1), layout.reduce(0)
        factor, way = lax.axis_index("factor"), lax.axis_index("way")
        mine = lax.axis_index("block")
        rows = pl.ds(mine * TILE, TILE)

        def down(vector: jax.Array) -> jax.Array:
            return plgpu.layout_cast(lax.broadcast_in_dim(vector, SQUARE, (0,)), layout)

        def across(vector: jax.Array) -> jax.Array:
            return plgpu.layout_cast(lax.broadcast_in_dim(vector, SQUARE, (1,)), layout)

        def of_rows(reduce: Any, square: jax.Array) -> jax.Array:
            return plgpu.layout_cast(reduce(square, axis=1), along_rows)

        def total(square: jax.Array) -> jax.Array:
            return down(of_rows(jnp.sum, square))

        columns = [way * jnp.int32(each) + jnp.int32(c) for c in range(each)]
        for c in range(each):
            here = pl.ds(columns[c] * jnp.int32(TILE), TILE)
            arrived = scratch["arrived"].at[way]
            plgpu.copy_gmem_to_smem(
                j_gmem.at[factor, rows, here], scratch["j"].at[columns[c]], arrived
            )
        gamma, eps, zeta = (down(load(s_gmem.at[i], along_rows, optimized=False)) for i in range(3))

        def v_across(c: Any) -> jax.Array:
            return across(load(v_gmem.at[factor, c], along_columns, optimized=False))

        plgpu.barrier_wait(scratch["arrived"].at[way])
        found = []
        for c in columns:
            part = load(scratch["j"].at[c], layout).astype(jnp.float32)
            products, sizes = of_rows(jnp.sum, part * v_across(c)), of_rows(jnp.max, jnp.abs(part))
            found.append((products, sizes))
        product, largest = together(found)
        if ways > 1:
            dealt = scratch["dealt"]
            dealt[way, 0], dealt[way, 1] = product, largest
            plgpu.barrier_arrive(scratch["met"])
            plgpu.barrier_wait(scratch["met"])
            product, largest = together(
                [[load(dealt.at[w, i], along_rows) for i in (0, 1)] for w in range(ways)]
            )

        def of_block(other: Any, name: str) -> Any:
            if spread:
                return spread[0].at[factor, other, int(name == "largest")]
            return plgpu.cluster_ref(scratch[name], {"block": other})

        @pl.when(way == 0)
        def _() -> None:
            for name, vector in (("product", product), ("largest", largest)):
                target = of_block(mine, name) if spread else scratch[name]
                target[...] = vector

        plgpu.barrier_arrive(scratch["summed"])
        plgpu.barrier_wait(scratch["summed"])

        def seen(c: Any, name: str) -> jax.Array:
            return load(of_block(c, name), along_columns, optimized=False)

        most = seen(jnp.int32(0), "largest")
        for c in range(1, blocks):
            most = jnp.maximum(most, seen(jnp.int32(c), "largest"))
        fired = down(of_rows(jnp.max, across(most))) > eps
        a = jnp.where(fired, zeta, jnp.float32(1))
        b = jnp.where(fired, 1 - zeta, jnp.float32(0))

        def as_u(product: jax.Array, v: jax.Array) -> jax.Array:
            return gamma * (a * product + b * v) + (1 - gamma) * v

        def u_across(c: Any) -> jax.Array:
            return as_u(across(seen(c, "product")), v_across(c))

        dot = total(v_across(jnp.int32(0)) * u_across(jnp.int32(0)))
        for c in range(1, blocks):
            dot = dot + total(v_across(jnp.int32(c)) * u_across(jnp.int32(c)))
        own = down(load(v_gmem.at[factor, mine], along_rows, optimized=False))
        u_down = as_u(down(product), own)
        below = 1 + dot
        eye = load(eye_gmem, layout, optimized=False)
        shift = (gamma * b + (1 - gamma)) * eye
        for c in columns:
            part = load(scratch["j"].at[c], layout).astype(jnp.float32)
            on_diagonal = (c == mine).astype(jnp.float32)
            new = gamma * a * part + on_diagonal * shift - u_down * u_across(c) / below
            scratch["j"].at[c][...] = new.astype(dtype)
        plgpu.commit_smem()
        for c in columns:
            here = pl.ds(c * jnp.int32(TILE), TILE)
            plgpu.copy_smem_to_gmem(scratch["j"].at[c], out_gmem.at[factor, rows, here])
        plgpu.wait_smem_to_gmem(0)
        # Nobody leaves before what it shows was read.
        plgpu.barrier_arrive(scratch["read"])
        plgpu.barrier_wait(scratch["read"])

    scratch = {
        "j": plgpu.SMEM((blocks, *SQUARE), dtype, transforms=_compat.tiled(TILE, bits)),
        "product": plgpu.SMEM((TILE,), jnp.float32),
        "largest": plgpu.SMEM((TILE,), jnp.float32),
        "arrived": plgpu.Barrier(num_arrivals=each, num_barriers=ways),
    }
    if ways > 1:
        scratch["dealt"] = plgpu.SMEM((ways, 2, TILE), jnp.float32)
        scratch["met"] = plgpu.Barrier(num_arrivals=ways)
    for name in ("summed", "read"):
        scratch[name] = plgpu.ClusterBarrier(collective_axes=("block",), num_arrivals=ways)
    out = [jax.ShapeDtypeStruct((problem.rows, problem.n, problem.n), dtype)]
    if interpret:
        out.append(jax.ShapeDtypeStruct((problem.rows, blocks, 2, TILE), jnp.float32))
    call = _compat.kernel(
        body,
        out=out,
        scratch=scratch,
        grid=(problem.rows,),
        grid_names=("factor",),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
        cluster={"block": blocks},
    )
    return lambda *args: call(*args)[0]
