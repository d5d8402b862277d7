"""The kernels for Hopper: two launches, or one whose two halves hand tiles of rows to each other.

In one launch every block of threads is there at once, holds weights of both stages, and half of its
warpgroups work on either. The array between them has room for some tiles only and stays in the
cache; counters in global memory say which tiles are written and which are read.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels._compat import pl, plgpu
from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.monarch_matmul.reference import by_rank
from jaxlab.kernels.monarch_matmul.shapes import PROCESSORS, Config, Problem, problem_of, refuse
from jaxlab.kernels.monarch_matmul.walk import Hooks, Walk, walk


def mosaic_gpu(
    x: jax.Array,
    w1: jax.Array,
    w2: jax.Array,
    *,
    blocked: bool,
    transpose: bool,
    config: Config,
    interpret: bool | None,
) -> jax.Array:
    """The product by the kernel; outputs or inputs that are interleaved cost a pass of XLA's.

    Raises:
      NotImplementedError: no GPU, or sizes or dtypes that the kernel does not take.
    """
    _compat.require()
    require_hopper(interpret)
    problem = problem_of(x.shape[0], w1, w2, blocked=blocked, transpose=transpose)
    if x.dtype != jnp.bfloat16:
        raise NotImplementedError(f"mosaic_gpu: x is {x.dtype}; the kernel takes bfloat16")
    if reason := refuse(problem, config):
        raise NotImplementedError(f"mosaic_gpu: {reason}")
    rows, blocks = x.shape[0], (problem.blocks, problem.width)
    if not problem.blocked_inputs:
        x = x.reshape(rows, *blocks[::-1]).swapaxes(1, 2).reshape(x.shape)
    x = jnp.pad(x, ((0, problem.tiles(config) * config.batch_tile - rows), (0, 0)))
    w1 = by_rank(w1, w2.shape[0])
    first, second = (w.astype(x.dtype) for w in ((w2, w1) if transpose else (w1, w2)))
    product = _in_one_launch if config.fused else _in_two_launches
    y = product(problem, config, transpose, bool(interpret), x, first, second)[:rows]
    if not problem.blocked:
        y = y.reshape(rows, problem.out_blocks, problem.out_width).swapaxes(1, 2)
    return y.reshape(rows, -1)


def _in_two_launches(
    problem: Problem,
    config: Config,
    turned: bool,
    interpret: bool,
    x: jax.Array,
    first: jax.Array,
    second: jax.Array,
) -> jax.Array:
    """The middle is written once and read once; rows of x are whole tiles."""
    tiles = problem.tiles(config)
    plans = [Walk(problem, config, turned, is_first, tiles) for is_first in (True, False)]

    def launch(plan: Walk, x: jax.Array, w: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        groups = plan.stage.groups(tiles, config)

        def body(x_gmem: Any, w_gmem: Any, out_gmem: Any, **scratch: Any) -> None:
            nth_part, group, way = (lax.axis_index(name) for name in ("part", "group", "way"))
            walk(
                plan,
                (x_gmem, w_gmem, out_gmem),
                scratch,
                nth_part=nth_part,
                way=way,
                first=group * jnp.int32(config.ways) + way,
                stride=groups * config.ways,
                # What the first stage wrote last is what a cache still has.
                backwards=config.backwards and not plan.is_first,
            )

        return _compat.kernel(
            body,
            out=jax.ShapeDtypeStruct(shape, x.dtype),
            scratch=plan.scratch(x.dtype),
            grid=(plan.parts, groups),
            grid_names=("part", "group"),
            num_threads=config.ways,
            thread_name="way",
            interpret=interpret,
        )(x, w)

    middle = launch(plans[0], x, first, plans[0].middle)
    return launch(plans[1], middle, second, (x.shape[0], problem.sizes[0]))


def _in_one_launch(
    problem: Problem,
    config: Config,
    turned: bool,
    interpret: bool,
    x: jax.Array,
    first: jax.Array,
    second: jax.Array,
) -> jax.Array:
    """The middle stays in the cache."""
    if interpret:
        raise NotImplementedError("mosaic_gpu: fused=True cannot be interpreted; fused=False can")
    if (there := _processors()) < PROCESSORS:
        raise NotImplementedError(
            f"mosaic_gpu: fused=True needs {PROCESSORS} processors, not {there}"
        )
    tiles, ways, groups = problem.tiles(config), config.ways, problem.groups_of_one_launch(config)
    stride, slots = groups * ways, problem.slots(config)
    plans = [Walk(problem, config, turned, is_first, slots) for is_first in (True, False)]
    recycled = slots < tiles

    def body(x_gmem: Any, a_gmem: Any, b_gmem: Any, middle: Any, out_gmem: Any, **scratch: Any):
        nth_part, group, way = (lax.axis_index(name) for name in ("part", "group", "way"))
        written = pl.get_global(plgpu.SemaphoreType.REGULAR((tiles,)))
        read = pl.get_global(plgpu.SemaphoreType.REGULAR((tiles,)))
        way_of = lax.rem(way, jnp.int32(ways))
        settings: dict[str, Any] = {
            "nth_part": nth_part,
            "way": way_of,
            "first": group * jnp.int32(ways) + way_of,
            "stride": stride,
        }

        def signal(counters: Any, at: Any) -> None:
            plgpu.semaphore_signal(counters.at[at], memory_scope="gpu")

        def wait(counters: Any, at: Any, plan: Walk) -> None:
            # Every part of every block has one warpgroup for a tile.
            plgpu.semaphore_wait(
                counters.at[at], jnp.int32(plan.parts), decrement=False, memory_scope="gpu"
            )

        def wait_for_room(at: Any) -> None:
            @pl.when(at >= jnp.int32(slots))
            def _() -> None:
                wait(read, at - jnp.int32(slots), plans[1])

        @pl.when(way < ways)
        def _() -> None:
            hooks = Hooks(
                before_write=wait_for_room if recycled else None,
                after_write=lambda at: signal(written, at),
            )
            refs = (x_gmem, a_gmem, middle)
            walk(plans[0], refs, scratch["first"], hooks=hooks, **settings)

        @pl.when(way >= ways)
        def _() -> None:
            hooks = Hooks(
                before_read=lambda at: wait(written, at, plans[0]),
                after_read=(lambda at: signal(read, at)) if recycled else None,
            )
            refs = (middle, b_gmem, out_gmem)
            walk(plans[1], refs, scratch["second"], hooks=hooks, **settings)

    shapes = plans[0].middle, (x.shape[0], problem.sizes[0])
    _, y = _compat.kernel(
        body,
        out=[jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes],
        scratch={"first": plans[0].scratch(x.dtype), "second": plans[1].scratch(x.dtype)},
        grid=(plans[0].parts, groups),
        grid_names=("part", "group"),
        num_threads=2 * ways,
        thread_name="way",
        interpret=False,
    )(x, first, second)
    return y


def _processors() -> int:
    # All blocks of threads must be there at once, or those that are would wait for ever.
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    return abstract.num_cores if abstract is not None else jax.devices()[0].core_count
