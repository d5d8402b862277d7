"""`x @ W.T` with W as integers of 8 or 4 bits and a scale for each group."""

from jaxlab.kernels.quantized_matmul.api import quantized_matmul
from jaxlab.kernels.quantized_matmul.reference import dequantize
from jaxlab.kernels.quantized_matmul.shapes import Problem

__all__ = ["Problem", "dequantize", "quantized_matmul"]
