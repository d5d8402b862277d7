"""The product of activations with N:M sparse weights."""

import functools

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.nm_matmul.reference import xla
from jaxlab.kernels.nm_matmul.shapes import problem_of
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.packing_nm import NMPlanes
from jaxlab.kernels.plan import Config
from jaxlab.kernels.rules import with_rules


def nm_matmul(
    x: jax.Array,
    packed: NMPlanes,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`y = x @ W.T`, with W as the planes of `pack_nm`.

    Gradients go to x and to the kept values, by reverse mode; under `jax.vmap` over x alone it
    stays one product.

    Args:
      x: floating, (..., k).
      packed: (n_out, k).
      implementation: as `quantized_matmul` has it.
      config: likewise.
      interpret: likewise.

    Returns:
      (..., n_out), in x's dtype.

    Raises:
      TypeError: x or the values are not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> from jaxlab.kernels.packing_nm import pack_nm
    >>> w = jnp.array([[4.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    >>> nm_matmul(jnp.array([1.0, 1.0, 2.0, 3.0]), pack_nm(w, w > 0, 2, 4)).tolist()
    [8.0, 6.0]
    """
    dtypes = x.dtype, packed.values.dtype
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(f"nm_matmul: x and packed.values must be floating, not {dtypes}")
    if x.ndim < 1 or x.shape[-1] != packed.shape[1]:
        raise ValueError(f"nm_matmul: x of shape {x.shape} does not end in k={packed.shape[1]}")
    packed.code.check("nm_matmul")
    named = dispatch.asked("nm_matmul", implementation, interpret)
    rows = x.reshape((-1, x.shape[-1]))
    shape = (*x.shape[:-1], packed.shape[0])
    if rows.shape[0] == 0:
        return jnp.zeros(shape, x.dtype)
    product = _product((packed.m, packed.block), named, config, interpret)
    return product(rows, packed.code, packed.values).reshape(shape)


# Once for each setting: jax knows functions with rules of their own by identity.
@functools.cache
def _product(
    pattern: tuple[int, int], named: tuple[str, ...], config: Config | None, interpret: bool | None
) -> dispatch.Implementation:
    forward = functools.partial(_forward, pattern, named, config, interpret)
    return jax.jit(with_rules("nm_matmul", forward, functools.partial(xla, *pattern), named))


def _forward(
    pattern: tuple[int, int],
    named: tuple[str, ...],
    config: Config | None,
    interpret: bool | None,
    x: jax.Array,
    code: Planar,
    values: jax.Array,
) -> jax.Array:
    problem = problem_of(x.shape[0], code, values.shape[0], *pattern)
    chosen = dispatch.choice("nm_matmul", problem, config)
    kernel = functools.partial(dispatch.on_demand("nm_matmul", "mosaic_gpu"), *pattern)
    kernels = {
        "mosaic_gpu": functools.partial(kernel, config=chosen.config, interpret=interpret),
        "xla": functools.partial(xla, *pattern),
    }
    return dispatch.run("nm_matmul", kernels, x, code, values, named=named, chosen=chosen)
