"""The problems of the GP-HM paper, with right-hand sides made from exact solutions.

A problem of your own is a function that returns a `Case`, registered as `problem` in your own file,
which your config imports; `jaxlab.gp.pde_problem.make_problem` takes its operator.

Source: S. Fang et al., "Solving High Frequency and Multi-Scale PDEs with Gaussian Processes", ICLR
2024, and the settings of the authors' code.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab.core.registry import register, suggest
from jaxlab.gp.pde_problem import Field, Operator, Problem, make_problem


class Case(NamedTuple):
    """A problem and the settings that go with it.

    Attributes:
      problem: the problem.
      freq_scale: the largest frequency to start from, in cycles per unit.
      boundary_weight: factor of the boundary's log likelihood.
    """

    problem: Problem
    freq_scale: float = 20.0
    boundary_weight: float = 200.0


class _Solution(NamedTuple):
    """An exact solution, the interval of every axis, points of every axis, largest frequency."""

    exact: Field
    interval: tuple[float, float]
    points: int
    freq_scale: float


_CIRCLE, _UNIT = (0.0, 2 * np.pi), (0.0, 1.0)
_ONE_DIMENSIONAL = {
    "single_sin": _Solution(lambda x: jnp.sin(100 * x), _CIRCLE, 400, 20.0),
    "sin_cos": _Solution(lambda x: jnp.sin(6 * x) * jnp.cos(100 * x), _CIRCLE, 400, 20.0),
    "x_time_sinx": _Solution(lambda x: x * jnp.sin(200 * x), _CIRCLE, 900, 50.0),
    "mix_sin": _Solution(
        lambda x: jnp.sin(x) + 0.1 * jnp.sin(20 * x) + 0.05 * jnp.sin(100 * x), _UNIT, 900, 30.0
    ),
    "x2_add_sinx": _Solution(
        lambda x: jnp.sin(500 * x) - 2 * (x - 0.5) ** 2, _UNIT, 400, 100.0
    ),
}  # fmt: skip
_PLANE = {
    "sin_sin": _Solution(lambda x, y: jnp.sin(100 * x) * jnp.sin(100 * y), _CIRCLE, 400, 20.0),
    "sin_add_cos": _Solution(
        lambda x, y: jnp.sin(6 * x) * jnp.cos(20 * x) + jnp.sin(6 * y) * jnp.cos(20 * y),
        _CIRCLE,
        200,
        20.0,
    ),
}


def _wave(x: Any) -> Any:
    return jnp.sin(x) + 0.1 * jnp.sin(20 * x) + jnp.cos(100 * x)


@register("problem", "poisson_1d")
def poisson_1d(*, solution: str = "single_sin", points: int = 0, end: float = 0.0) -> Case:
    """u_xx = f.

    Args:
      solution: "single_sin", "sin_cos", "x_time_sinx", "mix_sin" or "x2_add_sinx".
      points: of the grid; 0 for the paper's.
      end: of the interval from 0; 0 for the paper's.

    >>> poisson_1d().problem.shape
    (400,)
    """
    operator = lambda u, d, x: d(0, 2)  # noqa: E731
    return _case(_ONE_DIMENSIONAL, solution, points, operator, end=end, linear=True)


@register("problem", "allencahn_1d")
def allencahn_1d(*, solution: str = "single_sin", points: int = 0) -> Case:
    """u_xx + u (u^2 - 1) = f, with the solutions "single_sin" and "sin_cos"."""
    solutions = {name: _ONE_DIMENSIONAL[name] for name in ("single_sin", "sin_cos")}
    return _case(solutions, solution, points, lambda u, d, x: d(0, 2) + u * (u**2 - 1))


@register("problem", "poisson_2d")
def poisson_2d(*, solution: str = "sin_sin", points: int = 0) -> Case:
    """u_xx + u_yy = f, with the solutions "sin_sin" and "sin_add_cos"."""
    return _case(
        _PLANE, solution, points, lambda u, d, x: d(0, 2) + d(1, 2), dimension=2, linear=True
    )


@register("problem", "allencahn_2d")
def allencahn_2d(*, points: int = 0) -> Case:
    """u_xx + u_yy + u (u^2 - 1) = f, whose solution is a product of sums of three waves."""
    solutions = {"mix": _Solution(lambda x, y: _wave(x) * _wave(y), _UNIT, 400, 30.0)}
    operator = lambda u, d, x: d(0, 2) + d(1, 2) + u * (u**2 - 1)  # noqa: E731
    return _case(solutions, "mix", points, operator, dimension=2)


@register("problem", "advection")
def advection(*, beta: float = 200.0, points: int = 0, all_sides: bool = True) -> Case:
    """Advection, beta u_x + u_y = 0 with u = sin(x - beta y); y is the time.

    Args:
      beta: the velocity.
      points: of the grid; 0 for the paper's.
      all_sides: whether values are imposed on all sides, as in the authors' code, or at the start
        and at x = 0 only, which determine the solution.
    """
    solutions = {"wave": _Solution(lambda x, y: jnp.sin(x - beta * y), _UNIT, 200, 40.0)}
    operator = lambda u, d, x: beta * d(0, 1) + d(1, 1)  # noqa: E731
    case = _case(solutions, "wave", points, operator, dimension=2, linear=True, source=_zero)
    mask = np.zeros(case.problem.shape, bool)
    mask[0], mask[:, 0] = True, True
    if not all_sides:
        exact = case.problem.exact
        problem = make_problem(
            case.problem.axes, operator, exact=exact, source=_zero, mask=mask, linear=True
        )
        case = case._replace(problem=problem)
    return case._replace(boundary_weight=500.0)


def _zero(*x: Any) -> Any:
    return np.zeros(np.shape(x[0]))


def _case(
    solutions: Mapping[str, _Solution],
    name: str,
    points: int,
    operator: Operator,
    *,
    dimension: int = 1,
    end: float = 0.0,
    linear: bool = False,
    source: Callable[..., Any] | None = None,
) -> Case:
    if name not in solutions:
        raise ValueError(f"solution={name!r} is unknown; {suggest(name, solutions)}")
    if points and points < 2:
        raise ValueError(f"points={points} must be 2 or more, or 0 for the paper's")
    exact, interval, usual, freq_scale = solutions[name]
    if end < 0:
        raise ValueError(f"end={end} must be positive, or 0 for the paper's, {interval[1]:g}")
    axis = np.linspace(interval[0], end or interval[1], points or usual)
    problem = make_problem([axis] * dimension, operator, exact=exact, source=source, linear=linear)
    return Case(problem, freq_scale)
