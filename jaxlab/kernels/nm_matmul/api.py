"""The product of activations with N:M sparse weights."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxlab.kernels import dispatch
from jaxlab.kernels.layout_nm import PLANAR_WIDTH
from jaxlab.kernels.nm_matmul.reference import Floating, joined, xla
from jaxlab.kernels.nm_matmul.shapes import Problem, problem_of
from jaxlab.kernels.packing import Planar
from jaxlab.kernels.packing_nm import PackedNM
from jaxlab.kernels.plan import Config
from jaxlab.kernels.rules import check_scales, product

KINDS = ("int8", "int4", "uint4")


def nm_matmul(
    x: jax.Array,
    packed: PackedNM,
    scale: jax.Array | None = None,
    *,
    implementation: dispatch.Choice = None,
    config: Config | None = None,
    interpret: bool | None = None,
) -> jax.Array:
    """`y = x @ W.T`, with W the dense array of `pack_nm`, times its scales if it has integers.

    Gradients go to x, to floating values and to scales, by reverse mode; under `jax.vmap` over x
    alone it stays one product.

    Args:
      x: floating, (..., k).
      packed: (n_out, k), its values floating, or `Planar` integers of kind "int8", "int4", "uint4".
      scale: floating, (groups, n_out): k / groups consecutive k share one; None for floating
        values.
      implementation: as `quantized_matmul` has it.
      config: likewise.
      interpret: likewise.

    Returns:
      (..., n_out), in x's dtype.

    Raises:
      TypeError: x, the values or the scales are not floating.
      ValueError: shapes that do not fit, or an unknown name.
      NotImplementedError: the implementation that was named does not handle this.

    >>> from jaxlab.kernels.packing_nm import pack_nm
    >>> w = jnp.array([[4.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 1.0]])
    >>> nm_matmul(jnp.array([1.0, 1.0, 2.0, 3.0]), pack_nm(w, w > 0, 2, 4)).tolist()
    [8.0, 6.0]
    """
    _check(x, packed, scale)
    named = dispatch.asked("nm_matmul", implementation, interpret, config)
    rows = x.reshape((-1, x.shape[-1]))
    shape = (*x.shape[:-1], packed.shape[0])
    if rows.shape[0] == 0:
        return jnp.zeros(shape, x.dtype)
    integers = packed.values if isinstance(packed.values, Planar) else None
    values = None if integers is packed.values else packed.values
    # What gets no gradient apart from what does.
    codes = dataclasses.replace(packed, values=None)  # pyright: ignore[reportArgumentType]
    matmul = product("nm_matmul", "nm_matmul", _problem, xla, named, config, interpret)
    return matmul(rows, (codes, integers), (values, scale)).reshape(shape)


def _check(x: jax.Array, packed: PackedNM, scale: jax.Array | None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"nm_matmul: x must be floating, not {x.dtype}")
    if not isinstance(packed, PackedNM):
        raise TypeError(
            f"nm_matmul: packed must be a PackedNM, from `pack_nm`, not {type(packed).__name__}"
        )
    values, k = packed.values, packed.shape[-1]
    if len(packed.shape) != 2:
        raise ValueError(f"nm_matmul: packed of shape {packed.shape} must have two axes")
    if x.ndim < 1 or x.shape[-1] != k:
        raise ValueError(f"nm_matmul: x of shape {x.shape} does not end in k={k}")
    packed.check("nm_matmul")
    if not isinstance(values, Planar):
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"nm_matmul: packed.values must be floating, not {values.dtype}")
        if scale is not None:
            raise ValueError("nm_matmul: floating packed.values take no scale; nearest: scale=None")
        return
    if values.kind not in KINDS:
        raise ValueError(
            f"nm_matmul: packed.values are of kind {values.kind!r}; valid: {', '.join(KINDS)}"
        )
    if values.width != PLANAR_WIDTH:
        raise ValueError(
            f"nm_matmul: packed.values in blocks of width={values.width}; nearest: {PLANAR_WIDTH}, "
            "as `pack_nm` makes them"
        )
    if scale is None:
        raise ValueError(f"nm_matmul: scale must be (groups, {packed.shape[0]}), not None")
    check_scales("nm_matmul", packed.shape, scale)


def _problem(x: jax.Array, packed: tuple[PackedNM, Planar | None], floating: Floating) -> Problem:
    groups = 1 if floating[1] is None else floating[1].shape[0]
    return problem_of(x.shape[0], joined(*packed, floating[0]), groups)
