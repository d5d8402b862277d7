"""Kernels that are pruned together: as one vector, and its gradients over mini-batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.lifecycle import at
from jaxlab.core.match import path_str
from jaxlab.core.matrix import Matrix, check_dense, is_matrix, to_dense
from jaxlab.methods.sparse import Sparse
from jaxlab.optim.mfac.obs import check_groups
from jaxlab.training.surroundings import Surroundings


def check_counts(owner: str, least: int, **counts: int) -> None:
    """Raises a ValueError unless each argument is `least` or more."""
    for name, value in counts.items():
        if isinstance(value, bool) or value < least:
            raise ValueError(f"{owner}: {name}={value} must be {least} or more; nearest: {least}")


def draw_gradients(
    owner: str, params: Any, run: Surroundings, m: int, rows: int
) -> Callable[[dict[str, Sparse], Sequence[Sequence[str]], int], list[jax.Array]]:
    """A function that draws gradients of mini-batches' losses, at the run's present progress.

    Args:
      owner: the phase, for errors.
      params: all parameters.
      run: whose loss and batches it is.
      m: how many gradients.
      rows: of a mini-batch, part of a batch of the run; 0 for whole batches.

    Returns:
      A function of (kernels by path, pools of paths, number of the sub-step), to be called outside
      jit: for each pool float32 (m, d). Sub-steps go through the data one after another.

    Raises:
      ValueError: a batch has fewer rows.
    """

    def loss_fn(params, batch):
        return run.loss(at(params, jnp.float32(run.start / max(run.steps, 1))), batch)

    def of_part(params, kernels, pools, part):
        def loss(weights):
            now = {p: Sparse(w, kernels[p].mask) for p, w in weights.items()}
            return loss_fn(with_kernels(params, now), part)

        grads = jax.grad(loss)({p: w.weight for p, w in kernels.items()})
        return [flatten_kernels([grads[p].astype(jnp.float32) for p in mine]) for mine in pools]

    # Rows are written where they belong: a second copy of the gradients may not fit.
    @partial(jax.jit, static_argnums=3, donate_argnums=0)
    def fill(buffers, params, kernels, pools, parts, start):
        found = jax.lax.map(lambda part: of_part(params, kernels, pools, part), parts)
        # Past the end the start is moved back, so that the last parts fill up exactly m rows.
        write = lambda b, g: jax.lax.dynamic_update_slice(b, g[:m], (start, 0))  # noqa: E731
        return [write(b, g) for b, g in zip(buffers, found, strict=True)]

    def draw(kernels, pools, number):
        pools = tuple(tuple(mine) for mine in pools)
        sizes = [sum(kernels[p].weight.size for p in mine) for mine in pools]
        buffers = [jnp.zeros((m, size), jnp.float32) for size in sizes]
        filled, step = 0, None
        while filled < m:
            batch = run.batch(run.start if step is None else step)
            count, parts = _parts(owner, batch, rows)
            if step is None:
                # Every sub-step goes on where the one before it ended.
                step = run.start + number * math.ceil(m / count)
                if number:
                    count, parts = _parts(owner, run.batch(step), rows)
            buffers = fill(buffers, params, kernels, pools, parts, np.int32(filled))
            filled, step = filled + count, step + 1
        return buffers

    return draw


def _parts(owner: str, batch: Any, rows: int) -> tuple[int, Any]:
    """A batch as mini-batches of `rows`, along a new first axis, and how many; 0 for one."""
    length = jax.tree.leaves(batch)[0].shape[0]
    rows = rows or length
    if rows > length:
        raise ValueError(
            f"{owner}: rows={rows} is more than a batch of {length}; nearest: {length}"
        )
    count = length // rows
    split = lambda x: x[: count * rows].reshape(count, rows, *x.shape[1:])  # noqa: E731
    return count, jax.tree.map(split, batch)


def as_sparse(owner: str, path: str, w: Any, group: int, name: str = "group") -> Sparse:
    """A kernel as a master under a mask of what lives, all of it where it is an array.

    Raises:
      ValueError: it is another matrix, `group` (the argument `name`) does not divide its inputs, or
        a group of its mask lives in part.
    """
    if isinstance(w, Sparse):
        w = Sparse(w.weight, w.mask)
    elif is_matrix(w) and not w.is_array:
        raise ValueError(
            f"{owner}: {path!r} is a {type(w).__name__}; only arrays and sparse matrices can be "
            "pruned; make it dense first (the phase 'densify')"
        )
    else:
        w = to_dense(w)
        check_dense(f"{owner}: {path!r}", w)
        w = Sparse(w, jnp.ones(w.shape, bool))
    if w.shape[-2] % group:
        legal = [c for c in range(1, w.shape[-2] + 1) if w.shape[-2] % c == 0]
        raise ValueError(
            f"{owner}: {name}={group} must divide the inputs of {path!r} {w.shape}; nearest: "
            f"{min(legal, key=lambda c: abs(c - group))}"
        )
    check_groups(f"{owner}: {path!r}", flatten_kernels([w.mask]), group)
    return w


def with_kernels(params: Any, kernels: Mapping[str, Matrix]) -> Any:
    """The parameters with kernels in their places, by path."""
    put = lambda path, leaf: kernels.get(path_str(path), leaf)  # noqa: E731
    return jax.tree_util.tree_map_with_path(put, params, is_leaf=is_matrix)


@jax.jit
def flatten_kernels(arrays: Sequence[jax.Array]) -> jax.Array:
    """All entries of some kernels, output by output."""
    return jnp.concatenate([jnp.swapaxes(x, -1, -2).reshape(-1) for x in arrays])


def unflatten_kernels(kernels: Sequence[Sparse], w: jax.Array, mask: jax.Array) -> list[Sparse]:
    """Undoes `flatten_kernels` on weights and masks, in the kernels' shapes and dtypes."""
    ends = np.cumsum([k.weight.size for k in kernels])[:-1]
    made = []
    for old, *parts in zip(kernels, jnp.split(w, ends), jnp.split(mask, ends), strict=True):
        *stack, d_in, d_out = old.shape
        new = [jnp.swapaxes(x.reshape(*stack, d_out, d_in), -1, -2) for x in parts]
        made.append(Sparse(new[0].astype(old.weight.dtype), new[1]))
    return made
