"""`x @ W.T` with W as N:M sparse groups."""

from jaxlab.kernels.nm_matmul.api import nm_matmul
from jaxlab.kernels.nm_matmul.reference import dequantize_nm
from jaxlab.kernels.nm_matmul.shapes import Cut, Problem

__all__ = ["Cut", "Problem", "dequantize_nm", "nm_matmul"]
