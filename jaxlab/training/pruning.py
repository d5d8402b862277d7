"""The phase `prune`: drops weights by their saliency, and lets those that live make up for it.

Source: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
Second-Order Information", NeurIPS 2021. The target is approached in `recomputations` sub-steps of
equal ratio of densities, each with gradients at the weights that the one before it left. The cubic
schedule: M. Zhu and S. Gupta, "To prune, or not to prune", 2017.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from tqdm import tqdm

from jaxlab.core.lifecycle import at
from jaxlab.core.match import first_match, leaf_paths, path_str
from jaxlab.core.matrix import check_dense, is_matrix, to_dense
from jaxlab.core.registry import register, suggest
from jaxlab.methods.sparse import Sparse, check_sparsity, lowest
from jaxlab.optim.mfac.factor import check_damp
from jaxlab.optim.mfac.obs import obs_prune_step
from jaxlab.training.surroundings import Surroundings, Transform


def cubic_sparsity(progress: float, final: float, initial: float = 0.0) -> float:
    """The sparsity at a point of a gradual schedule, which prunes most while most is left.

    Args:
      progress: in [0, 1].
      final: at the end.
      initial: at the beginning.

    >>> [round(cubic_sparsity(t / 4, 0.9), 4) for t in range(5)]
    [0.0, 0.5203, 0.7875, 0.8859, 0.9]
    """
    return final + (initial - final) * (1 - progress) ** 3


def living_counts(
    total: int, alive: int, sparsity: float, recomputations: int, group: int = 1
) -> list[int]:
    """How many weights live after each sub-step: densities fall by equal ratios.

    Args:
      total: all weights.
      alive: those that live before.
      sparsity: of all weights, at the end: round(total * sparsity) are 0, exactly.
      recomputations: how many sub-steps.
      group: weights that live or die together; counts are rounded to whole groups.

    Raises:
      ValueError: more weights are pruned already.

    >>> living_counts(1000, 1000, 0.9, 2)
    [316, 100]
    """
    total, alive = total // group, alive // group
    left = total - round(total * sparsity)
    if left > alive:
        raise ValueError(
            f"prune: sparsity={sparsity} is less than what {total * group} weights have already; "
            f"nearest: {1 - alive / total:.6g}"
        )
    ratio = left / alive if alive else 1.0
    steps = range(1, recomputations)
    counts = [round(alive * ratio ** (j / recomputations)) for j in steps] + [left]
    return [count * group for count in counts]


class _Saliency(NamedTuple):
    """How weights are chosen: a step (w, mask, gradients, n_drop), and whether it reads those."""

    step: Callable[[jax.Array, jax.Array, Any, int], tuple[jax.Array, jax.Array]]
    reads: bool


@register("phase", "prune")
def prune(
    *,
    run: Surroundings,
    path: str = ".*/kernel",
    sparsity: float = 0.5,
    targets: Sequence[tuple[str, float]] = (),
    gradients: int = 256,
    rows: int = 0,
    damp: float = 1e-5,
    block: int = 128,
    group: int = 1,
    recomputations: int = 16,
    saliency: Literal["mfac", "magnitude"] = "mfac",
    update: bool = True,
    joint: bool = False,
) -> Transform:
    """Prunes kernels without structure, and leaves `sparse` matrices that keep their masks.

    Kernels that one pattern matches are ranked together. Weights are taken output by output, the
    inputs of one next to each other, as groups and blocks see them. What an earlier phase pruned
    stays so and counts as sparsity.

    Args:
      run: the run; its loss and batches are what saliencies come from.
      path: pattern of the whole paths of the kernels, arrays or `sparse` already.
      sparsity: fraction of all their weights that is 0 after it.
      targets: (pattern, sparsity) pairs, in the place of `path` and `sparsity`; the first that
        matches a kernel counts, and each ranks its kernels by themselves.
      gradients: m, how many mini-batch gradients the Fisher matrix is made of.
      rows: of a mini-batch, which are parts of the run's batches; 0 for whole ones.
      damp: lambda.
      block: width of the Fisher matrix's blocks, of living weights; 0 for one block of everything.
      group: consecutive inputs that live or die together.
      recomputations: sub-steps.
      saliency: "mfac", or "magnitude", which needs no gradients and moves no weight.
      update: whether the weights that live make up for the others.
      joint: whether a block's dropped weights count as one set, and not one by one.

    Raises:
      ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("gradients", gradients, 1),
        ("rows", rows, 0),
        ("block", block, 0),
        ("group", group, 1),
        ("recomputations", recomputations, 1),
    ):
        if isinstance(value, bool) or value < least:
            raise ValueError(f"prune: {name}={value} must be {least} or more; nearest: {least}")
    if block % group:
        raise ValueError(
            f"prune: group={group} must divide block={block}; nearest block: "
            f"{max(round(block / group), 1) * group}"
        )
    check_damp("prune", damp)
    pools = list(targets) or [(path, sparsity)]
    for _, target in pools:
        check_sparsity("prune", target)
    patterns = [(pattern, number) for number, (pattern, _) in enumerate(pools)]
    steps = max(run.steps, 1)
    how: dict[str, Any] = {"group": group, "joint": joint, "update": update}
    by_loss = lambda w, mask, g, n: obs_prune_step(w, mask, g, n, damp, block, **how)  # noqa: E731
    by_size = lambda w, mask, g, n: magnitude_step(w, mask, n, group)  # noqa: E731
    methods = {"mfac": _Saliency(by_loss, True), "magnitude": _Saliency(by_size, False)}
    if saliency not in methods:
        raise ValueError(f"prune: saliency={saliency!r}; {suggest(saliency, methods)}")
    method = methods[saliency]
    # Sizes that nothing moves are ranked once.
    sub_steps = recomputations if method.reads else 1

    def loss_fn(params, batch):
        return run.loss(at(params, jnp.float32(run.start / steps)), batch)

    def transform(params, opt, key):
        leaves = leaf_paths(params, is_leaf=is_matrix)
        found: dict[str, int] = first_match(patterns, list(leaves), owner="prune")
        kernels = {p: _as_sparse(p, leaves[p], group) for p in found}
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(params)):
            # An experiment asks for shapes before it has any data.
            return _with(params, kernels), None
        members = [[p for p in found if found[p] == i] for i in range(len(pools))]
        plan = [
            living_counts(*_total_and_alive(kernels, mine), target, sub_steps, group)
            for mine, (_, target) in zip(members, pools, strict=True)
        ]
        draw = _gradients(loss_fn, params, run, gradients, rows)
        counts = list(zip(*plan, strict=True))
        # disable=None: no bar where nobody watches.
        for number, left in enumerate(tqdm(counts, "prune", leave=False, disable=None)):
            grads = draw(kernels, members, number) if method.reads else [None] * len(members)
            for mine, keep in zip(members, left, strict=True):
                old = [kernels[p] for p in mine]
                w, mask = _flat([k.weight for k in old]), _flat([k.mask for k in old])
                n_drop = int(jnp.sum(mask)) - keep
                # Popped, because gradients are the largest thing here and needed once.
                w, mask = method.step(w, mask, grads.pop(0), n_drop)
                if not bool(jnp.all(jnp.isfinite(w))):
                    raise ValueError(
                        f"prune: the weights of {', '.join(mine)} are not finite after sub-step "
                        f"{number + 1}: a gradient is not, or damp={damp} is too small"
                    )
                kernels |= dict(zip(mine, _unflat(old, w, mask), strict=True))
        return _with(params, kernels), None

    return transform


@partial(jax.jit, static_argnums=3)
def magnitude_step(
    w: jax.Array, mask: jax.Array, n_drop: int | jax.Array, group: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Drops the weights, or groups of them, of least size; the others stay as they are.

    Args:
      w: (d,), the weights.
      mask: (d,) booleans, what lives.
      n_drop: how many weights to drop, a multiple of `group`.
      group: consecutive weights that live or die together.

    >>> w, mask = magnitude_step(jnp.array([2.0, -1.0, 0.0]), jnp.array([True, True, False]), 1)
    >>> w.tolist(), mask.tolist()
    ([2.0, 0.0, 0.0], [True, False, False])
    """
    sizes = jnp.sum(jnp.square(w.astype(jnp.float32)).reshape(-1, group), axis=1)
    alive = jnp.any(mask.reshape(-1, group), axis=1)
    drop = lowest(jnp.where(alive, sizes, jnp.inf), jnp.asarray(n_drop, jnp.int32) // group)
    mask = mask & ~jnp.repeat(drop, group)
    return jnp.where(mask, w, jnp.zeros((), w.dtype)), mask


def _gradients(
    loss_fn: Callable[[Any, Any], jax.Array], params: Any, run: Surroundings, m: int, rows: int
) -> Callable[[dict[str, Sparse], list[list[str]], int], list[jax.Array]]:
    """A function that draws exactly m gradients for each pool of kernels: (m, d) float32."""

    def of_part(params, kernels, pools, part):
        def loss(weights):
            now = {p: Sparse(w, kernels[p].mask) for p, w in weights.items()}
            return loss_fn(_with(params, now), part)

        grads = jax.grad(loss)({p: w.weight for p, w in kernels.items()})
        return [_flat([grads[p].astype(jnp.float32) for p in mine]) for mine in pools]

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
            count, parts = _parts(batch, rows)
            if step is None:
                # Every sub-step goes on where the one before it ended.
                step = run.start + number * math.ceil(m / count)
                if number:
                    count, parts = _parts(run.batch(step), rows)
            buffers = fill(buffers, params, kernels, pools, parts, np.int32(filled))
            filled, step = filled + count, step + 1
        return buffers

    return draw


def _parts(batch: Any, rows: int) -> tuple[int, Any]:
    """A batch as mini-batches of `rows`, along a new first axis, and how many; 0 for one."""
    length = jax.tree.leaves(batch)[0].shape[0]
    rows = rows or length
    if rows > length:
        raise ValueError(f"prune: rows={rows} is more than a batch of {length}; nearest: {length}")
    count = length // rows
    split = lambda x: x[: count * rows].reshape(count, rows, *x.shape[1:])  # noqa: E731
    return count, jax.tree.map(split, batch)


def _total_and_alive(kernels: dict[str, Sparse], paths: Sequence[str]) -> tuple[int, int]:
    masks = [kernels[p].mask for p in paths]
    return sum(mask.size for mask in masks), sum(int(jnp.sum(mask)) for mask in masks)


def _as_sparse(path: str, w: Any, group: int) -> Sparse:
    if isinstance(w, Sparse):
        w = Sparse(w.weight, w.mask)
    elif is_matrix(w) and not w.is_array:
        raise ValueError(
            f"prune: {path!r} is a {type(w).__name__}; only arrays and sparse matrices can be "
            "pruned; make it dense first (the phase 'densify')"
        )
    else:
        w = to_dense(w)
        check_dense(f"prune: {path!r}", w)
        w = Sparse(w, jnp.ones(w.shape, bool))
    if w.shape[-2] % group:
        legal = [c for c in range(1, w.shape[-2] + 1) if w.shape[-2] % c == 0]
        raise ValueError(
            f"prune: group={group} must divide the inputs of {path!r} {w.shape}; nearest: "
            f"{min(legal, key=lambda c: abs(c - group))}"
        )
    return w


def _with(params: Any, kernels: dict[str, Sparse]) -> Any:
    put = lambda path, leaf: kernels.get(path_str(path), leaf)  # noqa: E731
    return jax.tree_util.tree_map_with_path(put, params, is_leaf=is_matrix)


@jax.jit
def _flat(arrays: Sequence[jax.Array]) -> jax.Array:
    """All entries of some kernels, output by output."""
    return jnp.concatenate([jnp.swapaxes(x, -1, -2).reshape(-1) for x in arrays])


def _unflat(kernels: Sequence[Sparse], w: jax.Array, mask: jax.Array) -> list[Sparse]:
    """Undoes `_flat` on weights and masks, in the kernels' shapes and dtypes."""
    ends = np.cumsum([k.weight.size for k in kernels])[:-1]
    made = []
    for old, *flat in zip(kernels, jnp.split(w, ends), jnp.split(mask, ends), strict=True):
        *stack, d_in, d_out = old.shape
        new = [jnp.swapaxes(x.reshape(*stack, d_out, d_in), -1, -2) for x in flat]
        made.append(Sparse(new[0].astype(old.weight.dtype), new[1]))
    return made
