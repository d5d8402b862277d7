"""The von Mises-Fisher distribution on the unit sphere, in any dimension.

`density` has the distribution, `estimation` what is fitted to points, `sampling` its draws and
`mixture` mixtures of it.
"""

from jaxlab.special.vmf.density import (
    vmf_entropy,
    vmf_kl_divergence,
    vmf_log_normalizer,
    vmf_log_prob,
    vmf_mean_resultant,
)
from jaxlab.special.vmf.estimation import vmf_fit, vmf_kappa_from_r
from jaxlab.special.vmf.mixture import (
    VmfMixture,
    vmf_mixture_fit,
    vmf_mixture_init,
    vmf_mixture_log_prob,
    vmf_mixture_responsibilities,
    vmf_mixture_step,
)
from jaxlab.special.vmf.sampling import vmf_sample

__all__ = [
    "VmfMixture",
    "vmf_entropy",
    "vmf_fit",
    "vmf_kappa_from_r",
    "vmf_kl_divergence",
    "vmf_log_normalizer",
    "vmf_log_prob",
    "vmf_mean_resultant",
    "vmf_mixture_fit",
    "vmf_mixture_init",
    "vmf_mixture_log_prob",
    "vmf_mixture_responsibilities",
    "vmf_mixture_step",
    "vmf_sample",
]
