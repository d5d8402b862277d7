"""`A @ x` and `A.T @ x` for a matrix of bfloat16 and a vector of bfloat16 or float32."""

from jaxlab.kernels.gemv.api import gemv, wins
from jaxlab.kernels.gemv.shapes import Config, Problem

__all__ = ["Config", "Problem", "gemv", "wins"]
