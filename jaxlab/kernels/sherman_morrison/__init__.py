"""MKOR's update of inverse factors, each read once and written once by a cluster of blocks."""

from jaxlab.kernels.sherman_morrison.api import sherman_morrison_update, wins
from jaxlab.kernels.sherman_morrison.shapes import Config, Problem

__all__ = ["Config", "Problem", "sherman_morrison_update", "wins"]
