"""The one abstraction: a compressed weight is a matrix that stands where the array stood.

`Matrix` defines the operators once. A method's class gives the primitives `shape`, `to_dense`,
`from_dense` and, where it can do better than the dense product, `rmatmul` and `tmatmul`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp

from jaxlab.core import registry
from jaxlab.core.convolution import Convolution
from jaxlab.core.dense import check_dense as check_dense  # beside what a method's file imports
from jaxlab.core.dense import check_weights as check_weights


class Cost(NamedTuple):
    """What one product `x @ W` takes: floating point operations, and bytes read and written."""

    flops: int
    bytes: int


class Example(NamedTuple):
    """Smallest valid use of a method, for the conformance tests.

    Attributes:
      shape: of a dense kernel.
      hyper: hyper-parameters of `from_dense` that suit it.
      bad: hyper-parameters that it must refuse, one dict for each reason.
    """

    shape: tuple[int, int]
    hyper: dict[str, Any]
    bad: tuple[dict[str, Any], ...] = ()


def static(**kwargs: Any) -> Any:
    """A dataclass field that is part of the tree's structure: hashable, one compilation each."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


class Matrix:
    """A matrix of shape (..., d_in, d_out) in some other form than a dense array.

    Leading axes, where there are any, are a stack (of layers, of seeds); products are defined for
    one matrix and reach a stack through `jax.vmap` or `jax.lax.scan`.

    A product is computed in the dtype of the array operand and has that dtype, whatever dtype the
    children are stored in.

    Attributes that a subclass may set:
      factors: names of children that may themselves be matrices.
      frozen: names of floating children that are never trained.
      axes: for each child, what its trailing axes run along ("in", "out" or None). The sharding of
        a child follows from it and from the sharding of the dense matrix.
      is_array: whether it is nothing but its dense array, which rules may then replace.
      dense_product: whether `x @ W` is the product with `to_dense()`, so that a convolution may
        convolve with that instead of multiplying patches.
      CITE: BibTeX of the method's source.
      EXAMPLE: smallest valid arguments, which the conformance tests run.
    """

    name: ClassVar[str] = ""
    factors: ClassVar[tuple[str, ...]] = ()
    frozen: ClassVar[tuple[str, ...]] = ()
    axes: ClassVar[dict[str, tuple[str | None, ...]]] = {}
    is_array: ClassVar[bool] = False
    dense_product: ClassVar[bool] = False
    CITE: ClassVar[str] = ""
    EXAMPLE: ClassVar[Example]

    # NumPy's `x @ W` must reach __rmatmul__. JAX's must too: __jax_array__ is left undefined on
    # purpose, because with it `x @ W` would silently make W dense.
    __array_ufunc__ = None

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refuses: NumPy would make an array of one object."""
        raise TypeError(
            f"{type(self).__name__} is no array: multiply with x @ W, or take W.to_dense(); in "
            "flax's own layers jaxlab.interop.flax_matrices multiplies"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out) of the dense matrix."""
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """Dtype of the dense matrix: that of the first floating child."""
        leaves = jax.tree.leaves(self)
        return next(x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

    @property
    def ndim(self) -> int:
        """Number of axes of the dense matrix."""
        return len(self.shape)

    @classmethod
    def from_dense(cls, w: jax.Array, *, key: jax.Array | None = None) -> Self:
        """The matrix in this form that is nearest to `w`, in the sense that the method defines."""
        raise NotImplementedError

    @classmethod
    def needs(cls, hyper: dict[str, Any]) -> frozenset[str]:
        """Costly statistics that `from_dense` asks of calibration: "gradient_gram", "cross"."""
        return frozenset()

    def to_dense(self) -> jax.Array:
        """The dense array (..., d_in, d_out), accumulated in float32 or better and cast once."""
        raise NotImplementedError

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W` for x: (..., d_in), in x's dtype."""
        return x @ self.to_dense().astype(x.dtype)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ W.T` for x: (..., d_out), in x's dtype."""
        return x @ self.to_dense().astype(x.dtype).T

    def convolve(self, x: jax.Array, how: Convolution) -> jax.Array:
        """`x`, (B, H, W, d_in), convolved with W as the kernel, in x's dtype."""
        if self.dense_product:
            return how.dense(x, self.to_dense())
        return how.patches(x) @ self

    def at(self, progress: jax.Array) -> Self:
        """The matrix at `progress` in [0, 1] of the training schedule; traced."""
        return self.map_factors(lambda factor: factor.at(progress))

    def advance(self, progress: jax.Array) -> Self:
        """What an optimizer step leaves to the matrix, at the `progress` of the step to come.

        Children that are not trained by gradients (masks, ranges) move on here, and trained ones
        may be put back where they belong.
        """
        return self.map_factors(lambda factor: factor.advance(progress))

    def support(self, progress: jax.Array) -> dict[str, jax.Array]:
        """By child, booleans of its shape: where the optimizer's moments are not held at 0."""
        return {}

    def weight_decay(self, progress: jax.Array) -> dict[str, jax.Array]:
        """By child, coefficients of its shape for a decoupled decay of the matrix's own."""
        return {}

    def diagnose(
        self,
        quantities: dict[str, dict[str, jax.Array]],
        after: Self,
        progress: jax.Array,
        later: jax.Array,
    ) -> dict[str, jax.Array]:
        """Scalars to watch during training.

        Args:
          quantities: by name ("grad_abs", "nu", ...) and child, arrays of the child's shape.
          after: this matrix after the step.
          progress: of the step.
          later: of the next step.
        """
        return {}

    def finalize(self) -> "Matrix":
        """The smallest form for inference that multiplies like this one does."""
        return self.map_factors(lambda factor: factor.finalize())

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers that are stored."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

    def cost(self, rows: int) -> Cost:
        """FLOPs and bytes moved of a product with (rows, d_in); dense unless overridden."""
        d_in, d_out = self.shape[-2:]
        moved = self.nbytes + rows * (d_in + d_out) * jnp.dtype(self.dtype).itemsize
        return Cost(flops=2 * rows * d_in * d_out, bytes=moved)

    @property
    def tile(self) -> tuple[int, int]:
        """Smallest block (rows, columns) of the dense matrix that a shard may hold."""
        return 1, 1

    def map_factors(self, fn: Callable[["Matrix"], "Matrix"]) -> Self:
        """This matrix with `fn` applied to those of its factors that are matrices themselves."""
        nested = {n: getattr(self, n) for n in self.factors}
        changed = {n: fn(w) for n, w in nested.items() if isinstance(w, Matrix)}
        return dataclasses.replace(self, **changed) if changed else self  # pyright: ignore

    def take(self, indices: jax.Array) -> jax.Array:
        """Rows of the dense matrix: (...,) integers to (..., d_out). An embedding's look-up."""
        return jnp.take(self.to_dense(), indices, axis=0)

    @property
    def T(self) -> "Matrix":
        """The transpose, (d_out, d_in)."""
        return Transposed(self)

    def __rmatmul__(self, x: Any) -> jax.Array:
        """`x @ W` for x: (..., d_in)."""
        return self.rmatmul(self._operand(x, axis=-1, length=-2))

    def __matmul__(self, x: Any) -> jax.Array:
        """`W @ x` for x: (d_out,) or (..., d_out, k)."""
        x = self._operand(x, axis=-1 if jnp.ndim(x) == 1 else -2, length=-1)
        if x.ndim == 1:
            return self.tmatmul(x)
        return jnp.swapaxes(self.tmatmul(jnp.swapaxes(x, -1, -2)), -1, -2)

    def __getitem__(self, index: Any) -> Self:
        """`W[...]`, which array code uses to read a whole value; any other index is refused."""
        if index is not Ellipsis:
            raise TypeError(
                f"{type(self).__name__} is not indexable; use .to_dense()[...] or .take()"
            )
        return self

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore
        parts = (
            f"{f.name}={_short(getattr(self, f.name), bool(f.metadata.get('static')))}"
            for f in fields
        )
        return f"{type(self).__name__}({', '.join(parts)})"

    def _operand(self, x: Any, axis: int, length: int) -> jax.Array:
        x = jnp.asarray(x)
        kind = type(self).__name__
        if self.ndim != 2:
            raise ValueError(
                f"{kind} of shape {self.shape} is a stack; multiply under jax.vmap or jax.lax.scan"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"{kind}: the operand of '@' is {x.dtype}; cast it to a floating dtype")
        if x.ndim == 0 or x.shape[axis] != self.shape[length]:
            raise ValueError(f"{kind} of shape {self.shape} does not fit an operand of {x.shape}")
        return x


Array: TypeAlias = jax.Array | Matrix


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def matrix(name: str = "") -> Callable[[type], type]:
    """Class decorator: frozen dataclass, pytree, and registered as the method `name`.

    Without a name no rule can make it and no artefact hold it: a form that lives inside a step.
    """

    def wrap(cls: type) -> type:
        # eq=False: comparing arrays field by field has no truth value. repr stays the base's.
        cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
        cls = jax.tree_util.register_dataclass(cls)
        cls.name = name
        return registry.register("matrix", name)(cls) if name else cls

    return wrap


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Transposed(Matrix):
    """The transpose of another matrix: `to_dense() = base.to_dense().T`."""

    base: Matrix
    factors = ("base",)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_out, d_in) of the base."""
        *stack, d_in, d_out = self.base.shape
        return (*stack, d_out, d_in)

    @property
    def tile(self) -> tuple[int, int]:
        """The base's, turned."""
        rows, columns = self.base.tile
        return columns, rows

    def cost(self, rows: int) -> Cost:
        """The base's: the same numbers are multiplied."""
        return self.base.cost(rows)

    def to_dense(self) -> jax.Array:
        """The base's dense array with its last two axes swapped."""
        return jnp.swapaxes(self.base.to_dense(), -1, -2)

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base.T`."""
        return self.base.tmatmul(x)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base`."""
        return self.base.rmatmul(x)

    @property
    def T(self) -> Matrix:
        """The base itself."""
        return self.base


def is_matrix(x: Any) -> bool:
    """Whether `x` is a `Matrix`: the `is_leaf` of every walk that stops at matrices."""
    return isinstance(x, Matrix)


def matmul(x: jax.Array, w: Array) -> jax.Array:
    """`x @ w` for an array or a matrix, in x's dtype: what layers and factored matrices call.

    Args:
      x: (..., d_in), floating.
      w: (d_in, d_out).

    Returns:
      (..., d_out), of x's dtype.
    """
    if isinstance(w, Matrix):
        return w.rmatmul(w._operand(x, axis=-1, length=-2))
    return x @ w.astype(x.dtype)


def accumulator(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are accumulated in: float32, or float64 for float64."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def to_dense(w: Array) -> jax.Array:
    """The dense array of a matrix; an array is returned as it is, and a tree is refused."""
    if not isinstance(w, Matrix) and not hasattr(w, "dtype"):
        raise TypeError(
            f"to_dense: w is a {type(w).__name__}, not an array or a matrix; nearest, for a tree: "
            "jax.tree.map(jaxlab.to_dense, w, is_leaf=lambda x: isinstance(x, jaxlab.Matrix))"
        )
    return w.to_dense() if isinstance(w, Matrix) else w


def cite(w: Matrix) -> str:
    """BibTeX of the source of a matrix's method."""
    return type(w).CITE


def _short(value: Any, is_static: bool) -> str:
    if is_static or isinstance(value, Matrix) or not hasattr(value, "dtype"):
        return repr(value)
    return f"{value.dtype}{list(value.shape)}"
