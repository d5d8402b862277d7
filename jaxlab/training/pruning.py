"""The phase `prune`: drops weights by their saliency, and lets those that live make up for it.

Source: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
Second-Order Information", NeurIPS 2021. The target is approached in `recomputations` sub-steps of
equal ratio of densities, each with gradients at the weights that the one before it left. The cubic
schedule: M. Zhu and S. Gupta, "To prune, or not to prune", 2017.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.matrix import is_matrix
from jaxlab.core.registry import register, suggest
from jaxlab.core.selection import lowest
from jaxlab.methods.sparse import Sparse, check_sparsity
from jaxlab.optim.mfac.checks import check_damp
from jaxlab.optim.mfac.obs import check_groups, obs_prune_step
from jaxlab.training.kernel_gradients import (
    as_sparse,
    check_counts,
    draw_gradients,
    with_kernels,
)
from jaxlab.training.pruning_steps import pruned_in_steps
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
    stays so and counts as sparsity; its groups must be whole ones of this phase too.

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
    check_counts("prune", 1, gradients=gradients, group=group, recomputations=recomputations)
    check_counts("prune", 0, rows=rows, block=block)
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
    how: dict[str, Any] = {"group": group, "joint": joint, "update": update}
    by_loss = lambda w, mask, g, n: obs_prune_step(w, mask, g, n, damp, block, **how)  # noqa: E731
    by_size = lambda w, mask, g, n: magnitude_step(w, mask, n, group)  # noqa: E731
    methods = {"mfac": _Saliency(by_loss, True), "magnitude": _Saliency(by_size, False)}
    if saliency not in methods:
        raise ValueError(f"prune: saliency={saliency!r}; {suggest(saliency, methods)}")
    method = methods[saliency]
    # Sizes that nothing moves are ranked once.
    sub_steps = recomputations if method.reads else 1

    def transform(params, opt, key):
        leaves = leaf_paths(params, is_leaf=is_matrix)
        found: dict[str, int] = first_match(patterns, list(leaves), owner="prune")
        kernels = {p: as_sparse("prune", p, leaves[p], group) for p in found}
        members = [[p for p in found if found[p] == i] for i in range(len(pools))]

        def begin():
            plan = [
                living_counts(*_total_and_alive(kernels, mine), target, sub_steps, group)
                for mine, (_, target) in zip(members, pools, strict=True)
            ]
            return lambda w, mask, g, number, pool: method.step(
                w, mask, g, int(jnp.sum(mask)) - plan[pool][number]
            )

        draw = draw_gradients("prune", params, run, gradients, rows) if method.reads else None
        new = pruned_in_steps("prune", kernels, members, sub_steps, begin, draw, damp)
        return with_kernels(params, new), None

    return transform


def magnitude_step(
    w: jax.Array, mask: jax.Array, n_drop: int | jax.Array, group: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Drops the weights, or groups of them, of least size; the others stay as they are.

    Args:
      w: (d,), the weights.
      mask: (d,) booleans, what lives; of a group all or nothing, which is checked unless traced.
      n_drop: how many weights to drop, a multiple of `group`.
      group: consecutive weights that live or die together.

    Raises:
      ValueError: a group lives in part.

    >>> w, mask = magnitude_step(jnp.array([2.0, -1.0, 0.0]), jnp.array([True, True, False]), 1)
    >>> w.tolist(), mask.tolist()
    ([2.0, 0.0, 0.0], [True, False, False])
    """
    check_groups("magnitude_step: mask", mask, group)
    return _magnitude_step(w, mask, n_drop, group)


@partial(jax.jit, static_argnums=3)
def _magnitude_step(w, mask, n_drop, group):
    sizes = jnp.sum(jnp.square(w.astype(jnp.float32)).reshape(-1, group), axis=1)
    alive = jnp.any(mask.reshape(-1, group), axis=1)
    drop = lowest(jnp.where(alive, sizes, jnp.inf), jnp.asarray(n_drop, jnp.int32) // group)
    mask = mask & ~jnp.repeat(drop, group)
    return jnp.where(mask, w, jnp.zeros((), w.dtype)), mask


def _total_and_alive(kernels: dict[str, Sparse], paths: Sequence[str]) -> tuple[int, int]:
    masks = [kernels[p].mask for p in paths]
    return sum(mask.size for mask in masks), sum(int(jnp.sum(mask)) for mask in masks)
