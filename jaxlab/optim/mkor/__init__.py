"""MKOR: Kronecker factors whose inverses are updated by one vector, and Eva, which keeps vectors.

Source: M. Mozaffari, S. Li, Z. Zhang, M. Mehri Dehnavi, "MKOR: momentum-enabled Kronecker-factor
-based optimizer using rank-1 updates", NeurIPS 2023.
"""

from jaxlab.optim.mkor.eva import scale_by_eva
from jaxlab.optim.mkor.factors import precondition, sherman_morrison, stabilise
from jaxlab.optim.mkor.hybrid import Hybrid
from jaxlab.optim.mkor.tapped import Tap, tap, tapped_conv, tapped_dense
from jaxlab.optim.mkor.taps import (
    attach_taps,
    init_taps,
    merge_stats,
    second_order,
    stats_to_vectors,
    unused,
    value_grad_stats,
)
from jaxlab.optim.mkor.transform import MkorState, mkor, scale_by_mkor

__all__ = [
    "Hybrid",
    "MkorState",
    "Tap",
    "attach_taps",
    "init_taps",
    "merge_stats",
    "mkor",
    "precondition",
    "scale_by_eva",
    "scale_by_mkor",
    "second_order",
    "sherman_morrison",
    "stabilise",
    "stats_to_vectors",
    "tap",
    "tapped_conv",
    "tapped_dense",
    "unused",
    "value_grad_stats",
]
