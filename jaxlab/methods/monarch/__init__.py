"""Monarch matrices: two block-diagonal factors with a fixed permutation after each.

`matrix` has the kernel that rules make; `shape`, `initialise`, `product`, `slices` and `project`
are functions on the factors, `fourier` and `mmstar` the exact factorisations.

The functions have the papers' layout, W: (n_out, n_in) and y = W x; a kernel is its transpose.
"""

from jaxlab.methods.monarch.fourier import dft_monarch
from jaxlab.methods.monarch.initialise import init_monarch
from jaxlab.methods.monarch.matrix import Monarch
from jaxlab.methods.monarch.mmstar import factor_mmstar
from jaxlab.methods.monarch.product import (
    monarch_apply,
    monarch_apply_t,
    monarch_slogdet,
    monarch_solve,
)
from jaxlab.methods.monarch.project import project_to_monarch
from jaxlab.methods.monarch.shape import (
    MonarchShape,
    monarch_flops,
    monarch_lr_mults,
    monarch_param_count,
    monarch_shapes,
)
from jaxlab.methods.monarch.slices import monarch_to_dense
from jaxlab.optim.carry import densify_state

__all__ = [
    "Monarch",
    "MonarchShape",
    "densify_state",
    "dft_monarch",
    "factor_mmstar",
    "init_monarch",
    "monarch_apply",
    "monarch_apply_t",
    "monarch_flops",
    "monarch_lr_mults",
    "monarch_param_count",
    "monarch_shapes",
    "monarch_slogdet",
    "monarch_solve",
    "monarch_to_dense",
    "project_to_monarch",
]
