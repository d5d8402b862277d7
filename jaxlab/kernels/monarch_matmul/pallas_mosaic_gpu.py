"""The kernels for Hopper: a launch for each of the two block-diagonal products."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels.monarch_matmul.reference import by_rank
from jaxlab.kernels.monarch_matmul.shapes import Config, Problem, problem_of, refuse
from jaxlab.kernels.monarch_matmul.walk import Walk, walk


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
    problem = problem_of(x.shape[0], w1, w2, blocked=blocked, transpose=transpose)
    _compat.require(interpret, _compat.not_bfloat16("x", x), refuse(problem, config))
    rows, blocks = x.shape[0], (problem.blocks, problem.width)
    if not problem.blocked_inputs:
        x = x.reshape(rows, *blocks[::-1]).swapaxes(1, 2).reshape(x.shape)
    x = jnp.pad(x, ((0, problem.tiles(config) * config.batch_tile - rows), (0, 0)))
    w1 = by_rank(w1, w2.shape[0])
    first, second = (w.astype(x.dtype) for w in ((w2, w1) if transpose else (w1, w2)))
    y = _stages(problem, config, x, (first, second), transpose, bool(interpret))[:rows]
    if not problem.blocked:
        y = y.reshape(rows, problem.out_blocks, problem.out_width).swapaxes(1, 2)
    return y.reshape(rows, -1)


def _stages(
    problem: Problem,
    config: Config,
    x: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    transpose: bool,
    interpret: bool,
) -> jax.Array:
    """Both, of x in whole tiles of rows: at once, or chunk by chunk."""
    result = jax.ShapeDtypeStruct((x.shape[0], problem.sizes[0]), x.dtype)

    def passed(chunk: Problem, x: jax.Array, *more: jax.Array) -> jax.Array:
        plans = [Walk(chunk, config, transpose, is_first) for is_first in (True, False)]
        between = jax.ShapeDtypeStruct(plans[0].middle, x.dtype)
        middle = _launch(plans[0], x, weights[0], list(more), between, interpret)
        if not more:
            return _launch(plans[1], middle, weights[1], [], result, interpret)
        ahead, y = more
        there = jax.new_ref(y)
        _launch(plans[1], middle, weights[1], [ahead], there, interpret)
        return jax.freeze(there)

    chunks = problem.chunks(config)
    if len(chunks) == 1:
        return passed(problem, x)
    # Chunks of as many rows are lowered and compiled once.
    made = {chunk: jax.jit(functools.partial(passed, chunk)) for chunk in chunks}
    y, before = jax.freeze(jax.empty_ref(result)), 0
    for chunk in chunks:
        # The first stage reads nothing of y but waits for it, so that what is between the stages
        # takes the same place again.
        y = made[chunk](x, jnp.array([before], jnp.int32), y)
        before += chunk.tiles(config)
    return y


def _launch(
    plan: Walk, x: jax.Array, w: jax.Array, more: list[jax.Array], out: Any, interpret: bool
) -> Any:
    """One stage, of whole tiles of rows.

    Args:
      plan: the stage.
      x: its operand.
      w: its weights.
      more: of a chunk, int32, (1,): the tiles of rows in x, or in the result, that stand before
        it; and what it waits for.
      out: what the result is like, or a reference that it is written into.
      interpret: on a CPU.
    """
    config = plan.config
    groups = plan.stage.groups(plan.problem.tiles(config), config)

    def body(x_gmem: Any, w_gmem: Any, *refs: Any, **scratch: Any) -> None:
        nth_part, group, way = (lax.axis_index(name) for name in ("part", "group", "way"))
        walk(
            plan,
            (x_gmem, w_gmem, refs[-1]),
            scratch,
            nth_part=nth_part,
            way=way,
            first=group * jnp.int32(config.ways) + way,
            stride=groups * config.ways,
            ahead=refs[0][0] if more else jnp.int32(0),
            # What the first stage wrote last is what a cache still has.
            backwards=config.backwards and not plan.is_first,
        )

    is_new = isinstance(out, jax.ShapeDtypeStruct)
    return _compat.kernel(
        body,
        out=out if is_new else (),
        scratch=plan.scratch(x.dtype),
        grid=(plan.stage.parts(config), groups),
        grid_names=("part", "group"),
        num_threads=config.ways,
        thread_name="way",
        interpret=interpret,
    )(x, w, *more, *([] if is_new else [out]))
