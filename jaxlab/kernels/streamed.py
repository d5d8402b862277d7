"""The part that Hopper's products with packed weights share: streaming, tensor cores, sums.

A block of threads computes 64 rows of W times all rows of x. Its warpgroups deal the blocks of k
among them, and each is its own producer: it has several blocks of packed weights, of scales and of
x on their way by TMA, unpacks one in registers, multiplies it on the tensor cores with W on the
rows and x on the columns, and asks for the next. The sums of the warpgroups meet in shared memory.
Where groups of k share a scale, what is packed is summed up by group as it is, and scaled in
float32.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import load, pl, plgpu, transposed

# Rows of W to a tensor-core product of a warpgroup, and columns in steps of which x is taken.
TILE = 64
ROWS_STEP = 8
MOST_ROWS = 64
MOST_WARPGROUPS = 8
SHARED_BYTES = 227 * 1024
# What an H100 has; only the order of candidates follows from it.
PROCESSORS = 132

# A column of the block of x, and what makes the (64, width) numbers that meet it and the next.
Piece = tuple[int, Callable[[], jax.Array]]
# Reads the references of a block's packed weights, (64, columns) each; pieces by group of scales.
Unpack = Callable[[Sequence[Any]], list[Piece]]


def steps_of(rows: int) -> int:
    """The step of rows that these fall into, which cost the same.

    >>> [steps_of(rows) for rows in (1, 3, 17, 100)]
    [1, 8, 32, 100]
    """
    return next((step for step in (1, 8, 16, 32, 64) if rows <= step), rows)


@dataclasses.dataclass(frozen=True)
class Config:
    """How a product is cut.

    Attributes:
      ways: warpgroups of a block of threads, among which k is dealt.
      stages: blocks of k in flight, for each warpgroup.
      split_k: blocks of threads among which k is dealt; XLA adds up what they give.
      in_flight: products that may be under way while the next piece is unpacked: few pieces hold
        few registers.
      fast: whether words are unpacked by hand-written instructions.
    """

    ways: int = 4
    stages: int = 3
    split_k: int = 1
    in_flight: int = 1
    fast: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """A product's sizes.

    Attributes:
      rows: of x.
      n: rows of W.
      blocks: of k.
      x_columns: columns of x to a block.
      width: columns of x to one piece of unpacked weights.
      w_columns: columns of each packed operand to a block.
      w_bits: bits of its entries.
      groups: of scales in a block; 0 where a whole row of W shares one.
    """

    rows: int
    n: int
    blocks: int
    x_columns: int
    width: int
    w_columns: tuple[int, ...]
    w_bits: tuple[int, ...]
    groups: int

    @property
    def padded_rows(self) -> int:
        """Rows of x as the kernel sees them."""
        return -(-self.rows // ROWS_STEP) * ROWS_STEP

    def steps(self, config: Config) -> int:
        """Blocks of k that one warpgroup takes."""
        return self.blocks // (config.ways * config.split_k)

    def shared_bytes(self, config: Config) -> int:
        """Shared memory that the kernel takes, a little overestimated."""
        weights = sum(c * b // 8 for c, b in zip(self.w_columns, self.w_bits, strict=True))
        step = TILE * weights + 2 * self.padded_rows * self.x_columns + 4 * TILE * self.groups
        ends = 4 * TILE * self.padded_rows * (config.ways + 1)
        return config.ways * step * min(config.stages, self.steps(config)) + ends + 2048

    def refuse(self, config: Config) -> str:
        """Why the kernel does not take this, or nothing."""
        if not 1 <= self.rows <= MOST_ROWS:
            return f"{self.rows} rows of x; it takes 1 to {MOST_ROWS}"
        if self.n % TILE:
            return f"n={self.n} is no multiple of {TILE}"
        if self.blocks % (config.ways * config.split_k):
            return f"{self.blocks} blocks of k do not split into {config.ways} x {config.split_k}"
        if config.ways > MOST_WARPGROUPS:
            return f"more than {MOST_WARPGROUPS} warpgroups"
        if self.shared_bytes(config) > SHARED_BYTES:
            return f"{self.shared_bytes(config)} bytes of shared memory"
        return ""

    def candidates(self, most: int = 8) -> list[Config]:
        """Configurations that suit, those that fill the machine evenly first.

        >>> Plan(16, 8192, 32, 256, 64, (64,), (16,), 2).candidates(1)
        [Config(ways=4, stages=3, split_k=1, in_flight=1, fast=True)]
        """

        def waste(config: Config) -> float:
            blocks = self.n // TILE * config.split_k
            filled = blocks / (-(-blocks // PROCESSORS) * PROCESSORS)
            # Few warpgroups hide no latency; a split costs a pass over the partial sums.
            return -filled * min(config.ways, 4) + 0.2 * (config.split_k - 1)

        return sorted(self._cuts(), key=waste)[:most]

    def _cuts(self) -> Iterator[Config]:
        for split in (1, 2, 4):
            for ways in (4, 8, 2, 1):
                fitting = [
                    config
                    for stages in (8, 6, 4, 3, 2, 1)
                    if not self.refuse(config := Config(ways, stages, split))
                ]
                # As deep as fits, and as deep as fits twice.
                halves = [c for c in fitting if 2 * self.shared_bytes(c) <= SHARED_BYTES]
                yield from dict.fromkeys([*fitting[:1], *halves[:1]])


def streamed(
    plan: Plan,
    config: Config,
    unpack: Unpack,
    x: jax.Array,
    weights: Sequence[jax.Array],
    scale: jax.Array | None,
    out_dtype: Any,
    interpret: bool,
) -> jax.Array:
    """The product: (rows, n), or (split_k, rows, n) of partial sums.

    Args:
      plan: the sizes.
      config: the cut.
      unpack: the weights of a block.
      x: bfloat16, (rows, blocks x_columns), ordered as `unpack` says.
      weights: the packed operands, (n, blocks columns).
      scale: (groups of all k, n), (1, n), or None.
      out_dtype: of the result.
      interpret: on a CPU.
    """
    padded = jnp.pad(x, ((0, plan.padded_rows - plan.rows), (0, 0)))
    scales = [] if scale is None else [scale]
    call = _build(plan, config, unpack, scale, [w.dtype for w in weights], out_dtype, interpret)
    return call(padded, *weights, *scales)[..., : plan.rows, :]


def _build(
    plan: Plan,
    config: Config,
    unpack: Unpack,
    scale: jax.Array | None,
    dtypes: Sequence[Any],
    out_dtype: Any,
    interpret: bool,
) -> Callable[..., jax.Array]:
    columns, ways, steps = plan.padded_rows, config.ways, plan.steps(config)
    stages = min(config.stages, steps)
    x_tiling = _compat.tiled(plan.width, 16)

    def body(x_gmem: Any, *refs: Any, **scratch: Any) -> None:
        *w_gmem, out_gmem = refs[: len(dtypes)] + refs[-1:]
        s_gmem: Any = None if scale is None else refs[len(dtypes)]
        layout = plgpu.Layout.WGMMA
        row, split, way = (lax.axis_index(name) for name in ("n", "k", "way"))
        rows = pl.ds(row * TILE, TILE)
        staging = scratch["staging"].at[way] if interpret else None

        def fetch(step: Any, slot: Any) -> None:
            at = (split * jnp.int32(steps) + step) * jnp.int32(ways) + way
            arrived = scratch["arrived"].at[way * stages + slot]

            def bring(source: Any, name: str) -> None:
                plgpu.copy_gmem_to_smem(source, scratch[name].at[way, slot], arrived)

            bring(x_gmem.at[:, pl.ds(at * plan.x_columns, plan.x_columns)], "x")
            for i, width in enumerate(plan.w_columns):
                bring(w_gmem[i].at[rows, pl.ds(at * width, width)], f"w{i}")
            if plan.groups:
                bring(s_gmem.at[pl.ds(at * plan.groups, plan.groups), rows], "scale")

        def broadcast(values: jax.Array) -> jax.Array:
            return lax.broadcast_in_dim(values.astype(jnp.float32), (TILE, columns), (0,))

        def multiply(acc: Any, pieces: list[Piece], x_smem: Any) -> None:
            for column, make in pieces:
                a = make()
                b = transposed(x_smem.at[:, pl.ds(column, plan.width)])
                _compat.accumulate(acc, a, b, staging)
                plgpu.wgmma_wait(config.in_flight)
            plgpu.wgmma_wait(0)

        def step(i: Any, consume: Callable[[Any, list[Piece], Any], Any], carry: Any) -> Any:
            slot = lax.rem(i, jnp.int32(stages))
            plgpu.barrier_wait(scratch["arrived"].at[way * stages + slot])
            blocks = [scratch[f"w{j}"].at[way, slot] for j in range(len(dtypes))]
            scales = scratch["scale"].at[way, slot] if plan.groups else None
            carry = consume(carry, unpack(blocks), (scratch["x"].at[way, slot], scales))

            @pl.when(i + stages < steps)
            def _() -> None:
                fetch(i + jnp.int32(stages), slot)

            return carry

        def loop(consume: Any, start: Any) -> Any:
            for slot in range(stages):
                fetch(jnp.int32(slot), jnp.int32(slot))
            return lax.fori_loop(0, steps, lambda i, c: step(i, consume, c), start)

        def by_group(total: jax.Array, pieces: list[Piece], smem: Any) -> jax.Array:
            x_smem, s_smem = smem
            each = len(pieces) // plan.groups
            for g in range(plan.groups):

                def product(acc: Any, g: int = g) -> jax.Array:
                    multiply(acc, pieces[g * each : (g + 1) * each], x_smem)
                    return acc[...]

                part = pl.run_scoped(product, _compat.sums(TILE, columns))
                total = total + part * broadcast(load(s_smem.at[g], layout.reduce(1)))
            return total

        def whole() -> jax.Array:
            # Asked for now, so that it is there at the end.
            by_row = None if s_gmem is None else s_gmem.at[0, rows]
            if by_row is not None:
                by_row = load(by_row, layout.reduce(1), optimized=False)

            def product(acc: Any) -> jax.Array:
                def consume(carry: Any, pieces: list[Piece], smem: Any) -> Any:
                    multiply(acc, pieces, smem[0])
                    return carry

                loop(consume, jnp.int32(0))
                return acc[...]

            total = pl.run_scoped(product, _compat.sums(TILE, columns))
            return total if by_row is None else total * broadcast(by_row)

        def finish(total: jax.Array) -> None:
            out_smem = scratch["out_smem"]
            turned = plgpu.layout_cast(total.astype(out_dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            transposed(out_smem)[...] = turned
            plgpu.commit_smem()
            target = out_gmem.at[split] if config.split_k > 1 else out_gmem
            plgpu.copy_smem_to_gmem(out_smem, target.at[:, rows])
            plgpu.wait_smem_to_gmem(0)

        if plan.groups:
            zeros = plgpu.layout_cast(jnp.zeros((TILE, columns), jnp.float32), layout)
            total = loop(by_group, zeros)
        else:
            total = whole()
        if ways == 1:
            finish(total)
            return
        partial, met = scratch["partial"], scratch["met"]
        partial[way] = total
        plgpu.barrier_arrive(met)
        plgpu.barrier_wait(met)

        @pl.when(way == 0)
        def _() -> None:
            summed = total
            for other in range(1, ways):
                summed = summed + load(partial.at[other], layout)
            finish(summed)

    held = (ways, stages)
    scratch = {
        "x": plgpu.SMEM((*held, columns, plan.x_columns), jnp.bfloat16, transforms=x_tiling),
        "out_smem": plgpu.SMEM((columns, TILE), out_dtype),
        "arrived": plgpu.Barrier(
            num_arrivals=1 + len(dtypes) + bool(plan.groups), num_barriers=ways * stages
        ),
    }
    for i, (width, bits, dtype) in enumerate(zip(plan.w_columns, plan.w_bits, dtypes, strict=True)):
        transforms = _compat.tiled(plan.width, bits)
        scratch[f"w{i}"] = plgpu.SMEM((*held, TILE, width), dtype, transforms=transforms)
    if scale is not None and plan.groups:
        scratch["scale"] = plgpu.SMEM((*held, plan.groups, TILE), scale.dtype)
    if ways > 1:
        scratch["partial"] = plgpu.SMEM((ways, TILE, columns), jnp.float32)
        scratch["met"] = plgpu.Barrier(num_arrivals=ways)
    if interpret:
        staged = (ways, TILE, plan.width)
        scratch["staging"] = plgpu.SMEM(staged, jnp.bfloat16, transforms=x_tiling)
    shape = (columns, plan.n)
    shape = (config.split_k, *shape) if config.split_k > 1 else shape
    return _compat.kernel(
        body,
        out=jax.ShapeDtypeStruct(shape, out_dtype),
        scratch=scratch,
        grid=(plan.n // TILE, config.split_k),
        grid_names=("n", "k"),
        num_threads=ways,
        thread_name="way",
        interpret=interpret,
    )
