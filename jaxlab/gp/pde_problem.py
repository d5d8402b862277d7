"""A boundary value problem on a grid: operator, right side, boundary values, exact solution."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Derivatives(Protocol):
    """The derivatives of u along single axes: `d(axis, order)`, of the shape of u."""

    def __call__(self, axis: int, order: int) -> Any:
        """The derivative of an order along an axis."""
        ...


# (u, derivatives of u, coordinates) -> what shall equal the right-hand side; all of one shape
Operator = Callable[[Any, Derivatives, tuple[Any, ...]], Any]
# one coordinate of each axis, arrays of one shape -> values of that shape
Field = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What `make_problem` returns: everything as NumPy arrays of float64.

    Attributes:
      axes: the collocation points of each axis, (n_1,), ..., (n_D,).
      operator: of the equation operator(u) = source.
      source: (n_1, ..., n_D).
      boundary: the values that are imposed, (n_1, ..., n_D); 0 where `weights` is.
      weights: how often a cell's value is imposed, (n_1, ..., n_D).
      linear: whether the operator is linear in u.
      orders: the derivatives that the operator takes, (axis, order), sorted.
      exact: the solution, if it is known.
    """

    axes: tuple[np.ndarray, ...]
    operator: Operator
    source: np.ndarray
    boundary: np.ndarray
    weights: np.ndarray
    linear: bool
    orders: tuple[tuple[int, int], ...]
    exact: Field | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid's."""
        return self.source.shape

    @property
    def coordinates(self) -> tuple[np.ndarray, ...]:
        """Those of every cell, one array of the grid's shape for each axis."""
        return tuple(np.meshgrid(*self.axes, indexing="ij"))

    def residual(self, u: Any, derivatives: Mapping[tuple[int, int], Any]) -> Any:
        """operator(u) - source, given the derivatives by (axis, order)."""
        x = tuple(jnp.asarray(c, u.dtype) for c in self.coordinates)
        left = self.operator(u, lambda axis, order: derivatives[axis, order], x)
        return left - jnp.asarray(self.source, u.dtype)


def make_problem(
    axes: Sequence[Any],
    operator: Operator,
    *,
    exact: Field | None = None,
    source: Field | None = None,
    boundary: Field | None = None,
    mask: Any = None,
    linear: bool = False,
) -> Problem:
    """A problem on a tensor grid, checked.

    Args:
      axes: increasing points of each axis, two or more.
      operator: (u, d, x) -> array: `d(axis, order)` is a derivative of u, `x` the coordinates.
      exact: the solution as a function of jax.numpy of the coordinates; it supplies what `source`
        and `boundary` do not, the former by automatic differentiation.
      source: the right-hand side as a function of the coordinates.
      boundary: the values at the boundary as a function of the coordinates.
      mask: booleans of the grid's shape, where values of `boundary` are imposed; all faces of the
        grid by default. A cell on several faces counts once for each that is imposed whole.
      linear: whether `operator` is linear in u; it is then solved in one step instead of several.

    Returns:
      The problem.

    Raises:
      ValueError: an axis does not increase or is too short, the mask has another shape, there is
        neither an exact solution nor a source and a boundary, or the operator is declared linear
        and is not.

    >>> x = np.linspace(0, 1, 9)
    >>> laplace = make_problem([x, x], lambda u, d, x: d(0, 2) + d(1, 2),
    ...                        exact=lambda x, y: x * y, linear=True)
    >>> laplace.orders, int(laplace.weights.sum()), float(abs(laplace.source).max())
    (((0, 2), (1, 2)), 36, 0.0)
    """
    points = tuple(check_axis(axis, number) for number, axis in enumerate(axes))
    if not points:
        raise ValueError("axes=() has no axis; nearest: one")
    for name, given in (("source", source), ("boundary", boundary)):
        if exact is None and given is None:
            raise ValueError(f"{name}=None: without `exact` a problem needs its {name}")
    shape = tuple(len(axis) for axis in points)
    weights = faces(shape)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != shape or mask.dtype != bool:
            raise ValueError(
                f"mask: {mask.dtype} of shape {mask.shape} must be bool of the grid's, {shape}"
            )
        weights = np.where(mask, np.maximum(faces(shape, mask), 1.0), 0.0)
    if not weights.any():
        raise ValueError("mask: it is False everywhere; nearest: True at one end of an axis")
    x = tuple(np.meshgrid(*points, indexing="ij"))
    seen: dict[tuple[int, int], None] = {}

    def note(axis: int, order: int) -> Any:
        if not 0 <= axis < len(points) or order < 1:
            raise ValueError(
                f"operator: d(axis={axis}, order={order}): axes are 0 to {len(points) - 1}, "
                "orders 1 or more"
            )
        seen[axis, order] = None
        return jnp.zeros(shape)

    def zeros() -> Any:
        return operator(jnp.zeros(shape), note, tuple(jnp.asarray(c) for c in x))

    with jax.enable_x64(True):
        found = jax.eval_shape(zeros)
        if found.shape != shape:
            raise ValueError(f"operator: its value has shape {found.shape}, u has {shape}")
        if linear:
            _check_linear(operator, tuple(seen), x)
        right = _manufactured(operator, exact, x) if source is None else source(*x)
        imposed: Any = exact if boundary is None else boundary
        values = imposed(*x)
    values = np.where(weights > 0, np.broadcast_to(np.asarray(values, np.float64), shape), 0.0)
    right = np.broadcast_to(np.asarray(right, np.float64), shape)
    return Problem(points, operator, right, values, weights, linear, tuple(sorted(seen)), exact)


def check_axis(axis: Any, number: int) -> np.ndarray:
    """An axis as float64, if its points increase.

    Raises:
      ValueError: they do not, or there are fewer than two.
    """
    points = np.asarray(axis, np.float64)
    if points.ndim != 1 or len(points) < 2:
        raise ValueError(f"axes[{number}]: shape {points.shape} must be (n,), n at least 2")
    if not np.all(np.diff(points) > 0):
        where = int(np.argmin(np.diff(points) > 0))
        raise ValueError(
            f"axes[{number}] must increase, but has {points[where]:g} before "
            f"{points[where + 1]:g}; nearest: np.unique of it"
        )
    return points


def check_points(axis: Any, number: int) -> np.ndarray:
    """Points at which something is predicted, as float64, in any order.

    Raises:
      ValueError: they are not one axis of one point or more.
    """
    points = np.asarray(axis, np.float64)
    if points.ndim != 1 or not len(points):
        raise ValueError(f"axes_test[{number}]: shape {points.shape} must be (m,), m at least 1")
    return points


def faces(shape: tuple[int, ...], mask: np.ndarray | None = None) -> np.ndarray:
    """On how many faces of the grid each cell lies: 0 inside, 2 at the corners of a plane.

    With a mask, of the faces that are True everywhere.
    """
    found, mask = np.zeros(shape), np.ones(shape, bool) if mask is None else mask
    for axis in range(len(shape)):
        for end in (0, -1):
            np.moveaxis(found, axis, 0)[end] += np.moveaxis(mask, axis, 0)[end].all()
    return found


def _check_linear(
    operator: Operator, orders: tuple[tuple[int, int], ...], x: tuple[np.ndarray, ...]
) -> None:
    """Whether the operator's values at two random arguments add up."""
    rng = np.random.default_rng(0)
    places = tuple(jnp.asarray(c) for c in x)

    def random() -> dict[Any, np.ndarray]:
        return {key: rng.normal(size=x[0].shape) for key in (None, *orders)}

    def value(of: Mapping[Any, Any]) -> np.ndarray:
        arrays = {key: jnp.asarray(v) for key, v in of.items()}
        found = operator(arrays[None], lambda axis, order: arrays[axis, order], places)
        return np.asarray(found)

    one, other = random(), random()
    both = value({key: one[key] + other[key] for key in one})
    parts = value(one), value(other), value({key: 0 * v for key, v in one.items()})
    off = np.abs(both + parts[2] - parts[0] - parts[1]).max()
    if not off <= 1e-9 * max(np.abs(v).max() for v in (both, *parts)):
        raise ValueError(
            "linear=True: the operator is not linear in u and its derivatives: its values at two "
            f"functions are off by {off:.2g} from that at their sum; nearest: linear=False"
        )


def _manufactured(operator: Operator, exact: Any, x: tuple[np.ndarray, ...]) -> Any:
    """What the operator makes of the exact solution, by nested automatic differentiation."""

    def at_point(*point: Any) -> Any:
        def d(axis: int, order: int) -> Any:
            fn = exact
            for _ in range(order):
                fn = jax.grad(fn, argnums=axis)
            return fn(*point)

        return operator(exact(*point), d, point)

    flat = jax.jit(jax.vmap(at_point))(*(jnp.asarray(c.ravel()) for c in x))
    return np.asarray(flat).reshape(x[0].shape)
