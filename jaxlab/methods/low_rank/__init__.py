"""Low rank: a kernel as the product of two thin ones, nearest in weights, outputs or loss.

`matrix` has the form that models multiply with, `factors` and `lord` the decompositions as pure
functions, `rank` counts parameters, `allocate` shares them out between layers and `rules` turns
that into rules for `compress`.
"""

from jaxlab.core.collect import collect_grams
from jaxlab.core.gram import gram_allreduce, gram_init, gram_merge, gram_update
from jaxlab.methods.low_rank.allocate import allocate_ranks
from jaxlab.methods.low_rank.factors import (
    asvd_factorize,
    kfac_factorize,
    lowrank_apply,
    merge_lowrank,
    svd_factorize,
    truncated_svd,
    whiten_factorize,
)
from jaxlab.methods.low_rank.lord import drift_corrected, lord_factorize, lord_spectrum
from jaxlab.methods.low_rank.matrix import LowRank
from jaxlab.methods.low_rank.rank import breakeven_rank, rank_from_ratio
from jaxlab.methods.low_rank.rules import low_rank_rules

__all__ = [
    "LowRank",
    "allocate_ranks",
    "asvd_factorize",
    "breakeven_rank",
    "collect_grams",
    "drift_corrected",
    "gram_allreduce",
    "gram_init",
    "gram_merge",
    "gram_update",
    "kfac_factorize",
    "lord_factorize",
    "lord_spectrum",
    "low_rank_rules",
    "lowrank_apply",
    "merge_lowrank",
    "rank_from_ratio",
    "svd_factorize",
    "truncated_svd",
    "whiten_factorize",
]
