"""`x @ W.T` with W as N:M sparse planes."""

from jaxlab.kernels.nm_matmul.api import nm_matmul

__all__ = ["nm_matmul"]
