"""Gaussian processes on grids: regression, and the solver of partial differential equations."""
