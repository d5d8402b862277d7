"""`x @ W` with W the product of two block-diagonal matrices and the permutations between."""

from jaxlab.kernels.monarch_matmul.api import monarch_matmul, takes_kernel
from jaxlab.kernels.monarch_matmul.shapes import Config, Problem

__all__ = ["Config", "Problem", "monarch_matmul", "takes_kernel"]
