"""Neural-network compression and numerics in JAX.

A compressed weight is a `Matrix` that stands where the array stood:

    >>> import jax.numpy as jnp
    >>> import jaxlab
    >>> params = {"up": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
    >>> params = jaxlab.compress(params, [(".*/kernel", "nm", {"n": 2, "m": 4})])
    >>> (jnp.ones((1, 8)) @ params["up"]["kernel"]).shape
    (1, 8)
    >>> jaxlab.finalize(params)["up"]["kernel"]
    NMPacked(values=float32[4, 8], index=uint8[1, 8], n=2, m=4, axis=-2, block=1)
"""

from jaxlab.core.compress import compress
from jaxlab.core.cost import nbytes, parameter_table
from jaxlab.core.lifecycle import advance, at, finalize
from jaxlab.core.matrix import (
    Cost,
    Example,
    Matrix,
    cite,
    matmul,
    matrix,
    static,
    to_dense,
)
from jaxlab.core.registry import build, names, register
from jaxlab.core.trainable import combine, partition, trainable_mask
from jaxlab.interop.artefact import load, save

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Example",
    "Matrix",
    "advance",
    "at",
    "build",
    "cite",
    "combine",
    "compress",
    "finalize",
    "load",
    "matmul",
    "matrix",
    "names",
    "nbytes",
    "parameter_table",
    "partition",
    "register",
    "save",
    "static",
    "to_dense",
    "trainable_mask",
]
