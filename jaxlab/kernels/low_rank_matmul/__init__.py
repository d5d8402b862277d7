"""`(x @ down) @ up` for few rows: the second product has its weights coming during the first."""

from jaxlab.kernels.low_rank_matmul.api import low_rank_matmul, wins
from jaxlab.kernels.low_rank_matmul.shapes import Config, Problem

__all__ = ["Config", "Problem", "low_rank_matmul", "wins"]
