"""`a @ b.T` of signs, exactly: b packed to bits, a packed too or int8."""

from jaxlab.kernels.sign_matmul.api import sign_matmul
from jaxlab.kernels.sign_matmul.shapes import Config, Problem

__all__ = ["Config", "Problem", "sign_matmul"]
