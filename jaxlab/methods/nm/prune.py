"""N:M pruning of plain parameter trees, for training loops other than this library's."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.matrix import check_dense
from jaxlab.methods.nm.mask import check_scores, nm_mask
from jaxlab.methods.nm.schedule import NMConfig


def nm_prune(params: Any, cfg: NMConfig) -> tuple[Any, Any]:
    """One-shot magnitude pruning of a plain tree, for a loop of one's own.

    Args:
      params: tree of arrays.
      cfg: `include` and `overrides` say which patterns apply to which paths.

    Returns:
      The tree with pruned weights exactly 0, and a tree of its structure with the masks, None
      where nothing was pruned.

    Raises:
      ValueError: a path pattern matches nothing, or an axis does not divide; the path is named.
      TypeError: a kernel is not floating.

    >>> from jaxlab.methods.nm import NMPattern
    >>> cfg = NMConfig(NMPattern(1, 4), "ste", include=("up",))
    >>> params, masks = nm_prune({"up": jnp.arange(4.0)[:, None], "down": jnp.ones(2)}, cfg)
    >>> params["up"].ravel().tolist(), masks["down"]
    ([0.0, 0.0, 0.0, 3.0], None)
    """
    patterns = cfg.patterns_of(leaf_paths(params), owner="nm")

    def mask_of(path, w):
        pattern = patterns.get(path_str(path))
        if pattern is None:
            return None
        try:
            check_dense("nm", w)
            check_scores(w)
            return nm_mask(jnp.abs(w), pattern)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path_str(path)!r} {tuple(w.shape)}: {error}") from error

    masks = jax.tree_util.tree_map_with_path(mask_of, params)
    pruned = jax.tree.map(
        lambda mask, w: w if mask is None else jnp.where(mask, w, jnp.zeros_like(w)),
        masks,
        params,
        is_leaf=lambda x: x is None,
    )
    return pruned, masks


def nm_finalize(params: Any, cfg: NMConfig) -> Any:
    """A plain tree with hard N:M zeros: `nm_prune` without the masks.

    A run whose decay has not reached 0 must be finalized before it is measured.
    """
    return nm_prune(params, cfg)[0]
