"""The kernels for Hopper: a launch for each of the two block-diagonal products."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab.kernels import _compat
from jaxlab.kernels.monarch_matmul.reference import by_rank
from jaxlab.kernels.monarch_matmul.shapes import Config, problem_of, refuse
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
    plans = [Walk(problem, config, transpose, is_first) for is_first in (True, False)]
    middle = _launch(plans[0], x, first, plans[0].middle, bool(interpret))
    y = _launch(plans[1], middle, second, (x.shape[0], problem.sizes[0]), bool(interpret))[:rows]
    if not problem.blocked:
        y = y.reshape(rows, problem.out_blocks, problem.out_width).swapaxes(1, 2)
    return y.reshape(rows, -1)


def _launch(
    plan: Walk, x: jax.Array, w: jax.Array, shape: tuple[int, ...], interpret: bool
) -> jax.Array:
    """One stage, of whole tiles of rows."""
    config = plan.config
    groups = plan.stage.groups(plan.problem.tiles(config), config)

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
        grid=(plan.stage.parts(config), groups),
        grid_names=("part", "group"),
        num_threads=config.ways,
        thread_name="way",
        interpret=interpret,
    )(x, w)
