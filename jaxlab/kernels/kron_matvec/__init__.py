"""Many small matrices times one pair of factors from both sides: `A X_s B.T`, in one kernel."""

from jaxlab.kernels.kron_matvec.api import kron_matvec
from jaxlab.kernels.kron_matvec.shapes import Config, Problem

__all__ = ["Config", "Problem", "kron_matvec"]
