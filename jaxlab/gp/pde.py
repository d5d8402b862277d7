"""GP-HM: a solver of partial differential equations by Gaussian processes with spectral mixtures.

The solution on a tensor grid has the prior N(0, C_1 x ... x C_D), C_d = k_d(X_d, X_d) + jitter; its
derivatives are those of the process's conditional mean. Grid values, kernels and the precisions of
boundary and equation maximise one log joint density; a flat prior on log w is Jeffreys' on w.

Source: S. Fang et al., "Solving High Frequency and Multi-Scale PDEs with Gaussian Processes", ICLR
2024, and the authors' code. Differs from it: one Cholesky factorisation an axis, with analytic
gradients, instead of LU; Toeplitz matrices; any number of axes; precisions are bounded.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core.match import leaf_paths
from jaxlab.core.registry import suggest
from jaxlab.gp.grid_process import Solution, grid_process, interpolate
from jaxlab.gp.pde_problem import Problem, check_axis, check_points
from jaxlab.gp.spectral import check_order

Params = Mapping[str, Any]

# Envelope by smoothness, and whether the mixture has frequencies.
_MATERN = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}
_GAUSSIAN = dict.fromkeys(_MATERN, "gaussian")
KERNELS = {
    "stm": (_MATERN, True),
    "gm": (_GAUSSIAN, True),
    "matern": (_MATERN, False),
    "se": (_GAUSSIAN, False),
}


@dataclasses.dataclass(frozen=True)
class GPHMConfig:
    """Settings of the model that are not trained.

    Attributes:
      kernel: "stm" (Student t spectrum), "gm" (Gaussian); "matern" and "se" have no frequencies.
      nu: smoothness of "stm" and "matern": 0.5, 1.5 or 2.5.
      jitter: added to the diagonal of every C_d.
      boundary_weight: factor of the boundary's log likelihood.
      exact_mean: whether derivatives along an axis are those of the conditional mean exactly; else
        K_e C_e^-1 of the other axes counts as the identity, as in the authors' code.
      largest_log_precision: bound of log_tau and log_v, beyond which they do nothing. A fit that
        becomes perfect would raise them for ever; at the default, 2 ln(1 / eps), a residual of
        rounding errors has weight 1.
      allow_float32: do not refuse float32, in which the equation's residual has a floor near 0.1.
    """

    kernel: str = "stm"
    nu: float = 2.5
    jitter: float = 1e-6
    boundary_weight: float = 200.0
    exact_mean: bool = False
    largest_log_precision: float = 72.0
    allow_float32: bool = False

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        if self.nu not in _MATERN:
            raise ValueError(f"nu={self.nu} must be one of {', '.join(map(str, _MATERN))}")
        for name in ("jitter", "boundary_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")

    @property
    def envelope(self) -> str:
        """The name of the kernel's envelope in `jaxlab.gp.spectral`."""
        return KERNELS[self.kernel][0][self.nu]


class Terms(NamedTuple):
    """The log joint density and what it is made of, scalars.

    Attributes:
      log_joint: up to a constant.
      prior: of the grid values.
      gap: sum of squares of u - g at the boundary, by how often it is imposed.
      residual: sum of squares of the equation's residual.
      criterion: gap / N_b + residual / N, by which a step can be chosen without the solution.
      ok: False if some C_d was not positive definite; the others are then NaN.
      unsolved: of grid values that were solved for, what the solver left of its last system
        relative to the right side; 0 of trained ones.
    """

    log_joint: jax.Array
    prior: jax.Array
    gap: jax.Array
    residual: jax.Array
    criterion: jax.Array
    ok: jax.Array
    unsolved: jax.Array


def gphm_init(
    axes: Sequence[Any], Q: int = 30, freq_scale: float = 20.0, *, kernel: str = "stm"
) -> dict[str, Any]:
    """Parameters at the start: u = 0, equal weights, frequencies evenly from 0 to `freq_scale`.

    Args:
      axes: the collocation points of each axis.
      Q: components of each axis's kernel.
      freq_scale: the largest frequency, in cycles per unit; above (n - 1) / (2 length) it is the
        same at the points as a lower one.
      kernel: as in `GPHMConfig`.

    Returns:
      "u" (n_1, ..., n_D), "log_tau" and "log_v" (), and in "kernels" for each axis "log_w",
      "log_ls" and "freq" (Q,); float64 in a float64 context.

    Raises:
      ValueError: an axis is not increasing, Q < 1, the frequency is not positive, or the kernel is
        unknown.

    >>> gphm_init([np.linspace(0, 1, 9)], Q=3, freq_scale=4.0)["kernels"][0]["freq"].tolist()
    [0.0, 2.0, 4.0]
    """
    points = [check_axis(axis, number) for number, axis in enumerate(axes)]
    check_kernel(kernel)
    if isinstance(Q, bool) or not isinstance(Q, int) or Q < 1:
        raise ValueError(f"Q={Q!r} must be a whole number, 1 or more")
    if not freq_scale > 0:
        raise ValueError(f"freq_scale={freq_scale} must be positive")
    dtype = jnp.zeros(()).dtype

    def components() -> dict[str, jax.Array]:
        found = {"log_w": jnp.full(Q, -np.log(Q), dtype), "log_ls": jnp.zeros(Q, dtype)}
        waves = {"freq": jnp.linspace(0.0, freq_scale, Q, dtype=dtype)}
        return found | (waves if KERNELS[kernel][1] else {})

    return {
        "u": jnp.zeros(tuple(len(p) for p in points), dtype),
        "log_tau": jnp.zeros((), dtype),
        "log_v": jnp.zeros((), dtype),
        "kernels": [components() for _ in points],
    }


def gphm_log_joint(params: Params, problem: Problem, cfg: GPHMConfig | None = None) -> jax.Array:
    """The log joint density of grid values, boundary and equation, up to a constant.

    Args:
      params: as `gphm_init` gives them; or {"first": ..., "second": ...} of such, two processes
        whose sum is the solution, of which the second's terms count.
      problem: the problem.
      cfg: settings; the defaults if None.

    Returns:
      A scalar; NaN if a covariance was not positive definite (`gphm_terms` says so).

    Raises:
      ValueError: shapes or settings do not fit, or the parameters are float32.

    >>> from jaxlab.gp.pde_problem import make_problem
    >>> with jax.enable_x64(True):
    ...     axis = np.linspace(0, 1, 9)
    ...     flat = make_problem([axis], lambda u, d, x: d(0, 2), exact=lambda x: x, linear=True)
    ...     print(round(float(gphm_log_joint(gphm_init([axis], 2, 1.0), flat)), 3))
    -85.537
    """
    return gphm_terms(params, problem, cfg).log_joint


def gphm_terms(params: Params, problem: Problem, cfg: GPHMConfig | None = None) -> Terms:
    """As `gphm_log_joint`, with the terms that make up the density."""
    cfg = cfg or GPHMConfig()
    check_params(params, problem, cfg)
    last, found = params.get("second", params), gphm_solution(params, problem, cfg)
    residual = jnp.sum(problem.residual(found.u, found.derivatives) ** 2)
    weights = jnp.asarray(problem.weights, found.u.dtype)
    gap = jnp.sum(weights * (found.u - jnp.asarray(problem.boundary, found.u.dtype)) ** 2)
    log_tau, log_v = (
        jnp.minimum(last[name], cfg.largest_log_precision) for name in ("log_tau", "log_v")
    )
    n, n_b = problem.source.size, float(problem.weights.sum())
    at_boundary = 0.5 * (n_b * log_tau - jnp.exp(log_tau) * gap)
    inside = 0.5 * (n * log_v - jnp.exp(log_v) * residual)
    total = found.prior + cfg.boundary_weight * at_boundary + inside
    criterion = gap / n_b + residual / n
    parts = (params["first"], last) if "second" in params else (params,)
    unsolved = [part.get("unsolved", jnp.zeros_like(total)) for part in parts]
    return Terms(
        total, found.prior, gap, residual, criterion, found.ok, jnp.max(jnp.stack(unsolved))
    )


def gphm_solution(params: Params, problem: Problem, cfg: GPHMConfig) -> Solution:
    """Grid values and derivatives of a process, or of the sum of two; the prior of the last."""
    if "second" not in params:
        return grid_process(
            params["u"],
            params["kernels"],
            problem.axes,
            problem.orders,
            envelope=cfg.envelope,
            jitter=cfg.jitter,
            exact_mean=cfg.exact_mean,
        )
    first = gphm_solution(params["first"], problem, cfg)
    second = gphm_solution(params["second"], problem, second_config(cfg))
    return Solution(
        first.u + second.u,
        {key: x + second.derivatives[key] for key, x in first.derivatives.items()},
        second.prior,
        first.ok & second.ok,
    )


def gphm_predict(
    params: Params,
    axes: Sequence[Any],
    axes_test: Sequence[Any],
    cfg: GPHMConfig | None = None,
) -> jax.Array:
    """The conditional mean at a grid of other points.

    Args:
      params: as for `gphm_log_joint`.
      axes: the collocation points.
      axes_test: the points of each axis, (m_1,), ..., (m_D,), in any order.
      cfg: settings; the defaults if None.

    Returns:
      (m_1, ..., m_D).

    Raises:
      ValueError: the number of axes differs, a shape does not fit, or float32 as of
        `gphm_log_joint`.
    """
    cfg = cfg or GPHMConfig()
    check_precision(params, cfg)
    if "second" in params:
        first = gphm_predict(params["first"], axes, axes_test, cfg)
        return first + gphm_predict(params["second"], axes, axes_test, second_config(cfg))
    points = [check_axis(axis, number) for number, axis in enumerate(axes)]
    if params["u"].shape != tuple(map(len, points)) or len(axes_test) != len(points):
        raise ValueError(
            f"u has shape {params['u'].shape}, axes have {[len(p) for p in points]} points, and "
            f"there are {len(axes_test)} axes_test: one of each must go with one of the others"
        )
    return interpolate(
        params["u"],
        params["kernels"],
        points,
        [check_points(axis, number) for number, axis in enumerate(axes_test)],
        envelope=cfg.envelope,
        jitter=cfg.jitter,
    )


def second_config(cfg: GPHMConfig) -> GPHMConfig:
    """The settings of a second process: a Matern kernel without frequencies."""
    return dataclasses.replace(cfg, kernel="matern", nu=2.5)


def check_kernel(kernel: str) -> None:
    """Refuses an unknown kernel.

    Raises:
      ValueError: it is.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; {suggest(kernel, KERNELS)}")


def check_precision(params: Params, cfg: GPHMConfig) -> None:
    """Refuses parameters that are not float64, and a context in which float64 is not kept.

    Raises:
      ValueError: one of those.
    """
    if cfg.allow_float32:
        return
    context = jnp.zeros(()).dtype
    for path, leaf in leaf_paths(params).items():
        if not leaf.dtype == context == jnp.float64:
            raise ValueError(
                f"GP-HM needs float64, but {path} is {leaf.dtype} in a context of {context}: enter "
                "`with jax.enable_x64(True):`, set `c.x64 = True` in a config, or pass "
                "allow_float32=True for a residual that stays near 0.1"
            )


def check_params(params: Params, problem: Problem, cfg: GPHMConfig) -> None:
    """Refuses parameters of another grid or of float32, and a kernel that is too rough.

    Raises:
      ValueError: one of those.
    """
    check_precision(params, cfg)
    for part in params.values() if "second" in params else (params,):
        if len(part["kernels"]) != len(problem.axes):
            raise ValueError(
                f"kernels: {len(part['kernels'])} of them, but {len(problem.axes)} axes"
            )
        if "u" in part and part["u"].shape != problem.shape:
            raise ValueError(f"u has shape {part['u'].shape}, the grid {problem.shape}")
    for _, order in problem.orders:
        check_order(cfg.envelope, order)
