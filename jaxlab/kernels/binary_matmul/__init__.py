"""`x @ W.T` with W of signs, or of -1, 0 and 1, and a scale for each row."""

from jaxlab.kernels.binary_matmul.api import binary_matmul
from jaxlab.kernels.quantized_matmul.shapes import Problem

__all__ = ["Problem", "binary_matmul"]
