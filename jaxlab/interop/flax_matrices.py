"""Matrices in the layers of a user's own flax model, which stays as it is written.

Layers of this library multiply with `@`, and so does any code that has `x @ kernel`. Flax's own
layers call `dot_general` or a convolution, which take arrays only: here they multiply by the matrix
that stands where the kernel stood. It has two axes, (inputs, outputs); for kernels of more axes
these are flattened, as `kernel.reshape(-1, d_out)` does it for a convolution.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import meta
from flax.linen.linear import canonicalize_padding

from jaxlab.core.convolution import Convolution
from jaxlab.core.matrix import Matrix, matmul


def matrix_apply(apply_fn: Callable[..., Any]) -> Callable[..., Any]:
    """`apply_fn` of a Linen model, with Dense, DenseGeneral (hence attention) and Conv multiplying
    by the matrices among their parameters.

    Args:
      apply_fn: `model.apply`, or another function of variables first.

    Returns:
      A function of the arguments of `apply_fn`; parameters may hold a `Matrix` for any kernel of
      these layers. Arrays are multiplied as ever.

    Raises:
      ValueError: from that function; a layer does something that a matrix does not: batch axes,
        groups, dilation, masks, other than two spatial axes.

    >>> import jaxlab
    >>> model, x = nn.Dense(6), jnp.ones((3, 4))
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> params = jaxlab.compress(params, [("kernel", "low_rank", {"rank": 2})])
    >>> matrix_apply(model.apply)({"params": params}, x).shape
    (3, 6)
    """

    def applied(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(_intercept):
            return apply_fn(variables, *args, **kwargs)

    return applied


def matrix_model(model: nnx.Module) -> nnx.Module:
    """Lets the layers of an NNX model multiply by the matrices that stand for their kernels, in
    place: Linear, LinearGeneral (hence attention) and Conv.

    Call it inside the loss, on the model that `nnx.merge` has just made. Arrays, and layers that
    multiply with `@`, stay as they are.

    Args:
      model: with a `Matrix` where a layer has its kernel.

    Returns:
      The model.

    Raises:
      ValueError: a layer does something that a matrix does not, as of `matrix_apply`; here, or
        where the model is called.

    >>> import jaxlab
    >>> graph, state = nnx.split(nnx.Linear(4, 6, rngs=nnx.Rngs(0)))
    >>> rules = [("kernel", "low_rank", {"rank": 2})]
    >>> params = jaxlab.compress(nnx.to_pure_dict(state), rules)
    >>> matrix_model(nnx.merge(graph, params))(jnp.ones((3, 4))).shape
    (3, 6)
    """
    for path, module in list(nnx.iter_modules(model)):
        kernel = getattr(module, "kernel", None)
        w = kernel.get_value() if isinstance(kernel, nnx.Variable) else None
        if isinstance(w, Matrix):
            _put(module, w, "/".join(map(str, (*path, "kernel"))))
    return model


class MatrixProduct(nnx.Module):
    """A layer's product by a matrix, which is a variable: sliced with its layer, if that is."""

    def __init__(self, w: Matrix, product: Callable[..., jax.Array], path: str, kind: Any):
        """`product` has the matrix, the kernel's shape and its path behind the input."""
        self.w, self.product, self.path = kind(w), product, path

    def __call__(self, x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """What the layer's product computes."""
        return self.product(x, self.w.get_value(), kernel.shape, self.path, *args, **kwargs)


def _put(module: Any, w: Matrix, path: str) -> None:
    kind = next((kind for kind in _NNX if isinstance(module, kind)), None)
    if kind is None:  # it multiplies with `@`, or says itself that it cannot
        return
    if getattr(module, "mask", None) is not None:
        raise ValueError(f"flax_matrices: {path!r} has a mask, and a matrix has none")
    attribute, product, shape_of = _NNX[kind]
    variable = type(module.kernel)
    setattr(module, attribute, nnx.data(MatrixProduct(w, product, path, variable)))
    if getattr(module, f"{attribute}_cls", None) is not None:
        setattr(module, f"{attribute}_cls", None)
    # Layers cast and pass on their kernel; of this one nothing is read but the shape.
    module.kernel = variable(jnp.zeros((*w.shape[:-2], *shape_of(module)), w.dtype))


def _check(w: Matrix, needed: tuple[int, int], path: str) -> None:
    if w.shape != needed:
        raise ValueError(
            f"flax_matrices: the matrix of {path!r} is of {w.shape}, and its layer needs {needed}; "
            f"nearest: kernel.reshape{needed} before compress"
        )


def _dot(
    x: jax.Array, w: Matrix, shape: tuple[int, ...], path: str, dims: Any, **kwargs: Any
) -> jax.Array:
    (of_x, of_w), (batch, _) = dims
    if batch:
        raise ValueError(f"flax_matrices: {path!r} has batch axes, and a matrix has none")
    # What is summed over goes last, flattened, as the matrix has it.
    x = jnp.moveaxis(x, of_x, range(-len(of_x), 0))
    x = x.reshape(*x.shape[: x.ndim - len(of_x)], -1)
    outputs = shape[len(of_w) :]
    _check(w, (x.shape[-1], math.prod(outputs)), path)
    y = matmul(x, w).reshape(*x.shape[:-1], *outputs)
    return y.astype(kwargs.get("preferred_element_type") or y.dtype)


def _convolve(
    x: jax.Array,
    w: Matrix,
    shape: tuple[int, ...],
    path: str,
    strides: Any,
    padding: Any,
    **kwargs: Any,
) -> jax.Array:
    rates = (*(kwargs.get("lhs_dilation") or ()), *(kwargs.get("rhs_dilation") or ()))
    if kwargs.get("feature_group_count", 1) != 1 or set(rates) > {1} or len(shape) != 4:
        raise ValueError(
            f"flax_matrices: {path!r} has groups, dilation, or other than two axes of space, which "
            "a matrix's convolution has not"
        )
    _check(w, (math.prod(shape[:-1]), shape[-1]), path)
    return w.convolve(x, Convolution(shape[:2], tuple(strides), padding))


_NNX: dict[Any, tuple[str, Callable[..., jax.Array], Callable[[Any], tuple[int, ...]]]] = {
    nnx.Linear: ("dot_general", _dot, lambda m: (m.in_features, m.out_features)),
    nnx.LinearGeneral: ("dot_general", _dot, lambda m: (*m.in_features, *m.out_features)),
    nnx.Conv: ("conv_general_dilated", _convolve, lambda m: m.kernel_shape),
}


def _intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    own = context.method_name == "__call__" and module.scope is not None
    of_layer = next((f for kind, f in _LINEN.items() if own and isinstance(module, kind)), None)
    w = meta.unbox(module.get_variable("params", "kernel")) if of_layer else None
    if of_layer is None or not isinstance(w, Matrix):
        return call(*args, **kwargs)
    x = kwargs["inputs"] if "inputs" in kwargs else args[0]
    bias = meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None
    # As the layer promotes its operands: the matrix counts with the dtype of its numbers.
    x, _, bias = module.promote_dtype(x, jnp.zeros((), w.dtype), bias, dtype=module.dtype)
    y = of_layer(module, x, w, "/".join((*module.path, "kernel")))
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _dense(module: Any, x: jax.Array, w: Matrix, path: str) -> jax.Array:
    shape = x.shape[-1], module.features
    return _dot(x, w, shape, path, (((x.ndim - 1,), (0,)), ((), ())))


def _dense_general(module: Any, x: jax.Array, w: Matrix, path: str) -> jax.Array:
    several = lambda v: (v,) if isinstance(v, int) else tuple(v)  # noqa: E731
    axes = tuple(sorted(a % x.ndim for a in several(module.axis)))  # as flax contracts them
    shape = (*(x.shape[a] for a in axes), *several(module.features))
    batch = tuple(module.batch_dims)
    return _dot(x, w, shape, path, ((axes, tuple(range(len(axes)))), (batch, batch)))


def _conv(module: Any, x: jax.Array, w: Matrix, path: str) -> jax.Array:
    size = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    axes = len(size)
    several = lambda v: (v,) * axes if isinstance(v, int) or v is None else tuple(v)  # noqa: E731
    strides = tuple(s or 1 for s in several(module.strides))
    padding = canonicalize_padding(module.padding, axes)
    if module.mask is not None or padding in ("CIRCULAR", "REFLECT", "CAUSAL"):
        raise ValueError(
            f"flax_matrices: {path!r} has a mask or padding={padding!r}, which a matrix's "
            "convolution has not; nearest: 'SAME'"
        )
    shape = (*size, x.shape[-1] // module.feature_group_count, module.features)
    batched = x.reshape(-1, *x.shape[x.ndim - axes - 1 :])
    y = _convolve(
        batched,
        w,
        shape,
        path,
        strides,
        padding,
        lhs_dilation=several(module.input_dilation or 1),
        rhs_dilation=several(module.kernel_dilation or 1),
        feature_group_count=module.feature_group_count,
    )
    return y.reshape(*x.shape[: x.ndim - axes - 1], *y.shape[1:])


_LINEN: dict[Any, Callable[[Any, jax.Array, Matrix, str], jax.Array]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _dense_general,
    nn.Conv: _conv,
}
