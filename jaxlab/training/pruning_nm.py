"""The phase `prune_nm`: N:M sparsity by what the loss misses least, and the others make up for it.

Sources: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of
Second-Order Information", NeurIPS 2021; E. Kurtic et al., "The Optimal BERT Surgeon", EMNLP 2022,
for sets of weights that are chosen and dropped as one.
"""

from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.matrix import is_matrix
from jaxlab.core.registry import register
from jaxlab.methods.nm import NM, NMConfig, NMPattern
from jaxlab.methods.nm.matrix import check_store
from jaxlab.methods.sparse import Sparse
from jaxlab.optim.mfac.checks import check_damp
from jaxlab.optim.mfac.obs_nm import check_nm_sets, obs_nm_step
from jaxlab.training.kernel_gradients import (
    as_sparse,
    check_counts,
    draw_gradients,
    with_kernels,
)
from jaxlab.training.pruning_steps import pruned_in_steps
from jaxlab.training.surroundings import Surroundings, Transform


def living_of_group(n: int, m: int, recomputations: int) -> list[int]:
    """How many of every m live after each sub-step: by about equal ratios, at least one less.

    >>> living_of_group(2, 8, 16), living_of_group(2, 8, 2), living_of_group(2, 4, 1)
    ([7, 6, 5, 4, 3, 2], [4, 2], [2])
    """
    steps = min(recomputations, m - n)
    ratio = n / m
    counts, before = [], m
    for j in range(1, steps + 1):
        left = steps - j
        before = min(max(round(m * ratio ** (j / steps)), n + left), before - 1)
        counts.append(before)
    return counts


@register("phase", "prune_nm")
def prune_nm(
    *,
    run: Surroundings,
    n: int,
    m: int,
    path: str = ".*/kernel",
    gradients: int = 256,
    rows: int = 0,
    damp: float = 1e-5,
    block: int = 128,
    recomputations: int = 16,
    update: bool = True,
    store: str = "packed",
) -> Transform:
    """Prunes kernels to n of every m consecutive inputs; leaves `nm` matrices that keep their mask.

    Args:
      run: the run; its loss and batches are what saliencies come from.
      n: kept of every group.
      m: size of a group; divides the kernels' inputs.
      path: pattern of the whole paths of the kernels, arrays.
      gradients: how many mini-batch gradients the Fisher matrix is made of.
      rows: of a mini-batch, which are parts of the run's batches; 0 for whole ones.
      damp: lambda.
      block: width of the Fisher matrix's blocks, a multiple of m; 0 for one block of everything.
      recomputations: sub-steps, of which each drops one weight of a group or more.
      update: whether the weights that live make up for the others.
      store: what `finalize` makes of them, "packed" or "planes", as `NM.from_dense` has it.

    Raises:
      ValueError: an argument is out of range.
    """
    check_counts("prune_nm", 1, gradients=gradients, recomputations=recomputations)
    check_counts("prune_nm", 0, rows=rows, block=block)
    pattern = NMPattern(n, m)
    check_store("prune_nm", store, pattern)
    if n == m:
        raise ValueError(f"prune_nm: n={n} must be less than m={m}; nearest: {max(m - 1, 1)}")
    if block % m:
        raise ValueError(
            f"prune_nm: m={m} must divide block={block}; nearest block: "
            f"{max(round(block / m), 1) * m}"
        )
    check_damp("prune_nm", damp)
    counts = living_of_group(n, m, recomputations)
    for before, left in zip([m, *counts], counts, strict=False):
        check_nm_sets("prune_nm", m, before - left)
    config = NMConfig(pattern, "asp", total_steps=run.steps)

    def transform(params, opt, key):
        leaves = leaf_paths(params, is_leaf=is_matrix)
        paths = list(first_match([(path, True)], list(leaves), owner="prune_nm"))
        kernels = {p: _whole(p, leaves[p], m) for p in paths}

        def step(w, mask, g, number, pool):
            how = {"mask": mask, "living": [m, *counts][number], "update": update}
            return obs_nm_step(w, g, counts[number], m, damp, block, **how)

        draw = draw_gradients("prune_nm", params, run, gradients, rows)
        new = pruned_in_steps("prune_nm", kernels, [paths], len(counts), lambda: step, draw, damp)
        made = {p: NM(w.weight, w.mask, config, store) for p, w in new.items()}
        return with_kernels(params, made), None

    return transform


def _whole(path: str, w: object, m: int) -> Sparse:
    if isinstance(w, Sparse):
        raise ValueError(
            f"prune_nm: {path!r} is a Sparse, whose mask need not leave {m} weights to choose from "
            "in a group; make it dense first (the phase 'densify')"
        )
    return as_sparse("prune_nm", path, w, m, name="m")
