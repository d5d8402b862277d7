"""Partial differential equations: GP-HM's log joint, the error of the solution."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import registry
from jaxlab.gp.pde import GPHMConfig, gphm_init, gphm_predict, gphm_terms
from jaxlab.gp.pde_solve import Solver, with_solution
from jaxlab.gp.spectral import check_order
from jaxlab.tasks.base import Batch, Metrics, Quality
from jaxlab.training.surroundings import Surroundings, Transform

_BY_CRITERION = Quality("criterion", "min")
# Whether grid values are parameters.
_TRAINS_U = {"adam": True, "solve": False}


@registry.register("task", "pde")
class Pde:
    """A boundary value problem; parameters are those of `jaxlab.gp.pde.gphm_init`.

    All collocation points are one batch, which says nothing. The loss is minus the log joint by
    collocation point. The quality is the relative L2 error at points that are not the collocation
    points, or the criterion of the training points where the solution is unknown.

    Args:
      seed: unused: nothing here is random.
      batch_size: unused.
      problem: a section that names a registered problem, with its arguments.
      u_update: "adam", grid values are trained with the rest; "solve", they are the best ones for
        the kernels, which alone are trained (`jaxlab.gp.pde_solve`).
      kernel: of `GPHMConfig`, as the next ones.
      nu: smoothness.
      jitter: added to the covariances' diagonals.
      exact_mean: whether derivatives are those of the conditional mean exactly.
      largest_log_precision: bound of the log precisions.
      boundary_weight: factor of the boundary's log likelihood; 0 for the problem's.
      components: Q, of each axis's kernel.
      freq_scale: the largest frequency at the start; 0 for the problem's.
      newton_steps: of `Solver`, as the next one.
      iterations: of conjugate gradients.
      test_points: of each axis, evenly spaced; those at which the error is taken.

    Raises:
      ValueError: it is not in a float64 context, or a setting is wrong.
    """

    shown = ("residual", "boundary_gap")
    choice = _BY_CRITERION

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        problem: Mapping[str, Any],
        u_update: Literal["adam", "solve"] = "adam",
        kernel: str = "stm",
        nu: float = 2.5,
        jitter: float = 1e-6,
        exact_mean: bool = False,
        largest_log_precision: float = 72.0,
        boundary_weight: float = 0.0,
        components: int = 30,
        freq_scale: float = 0.0,
        newton_steps: int = 5,
        iterations: int = 500,
        test_points: int = 300,
    ):
        if jax.eval_shape(lambda: jnp.zeros(())).dtype != jnp.float64:
            raise ValueError("pde: float32 is not enough: set c.x64 = True, or --config.x64=True")
        if test_points < 2:
            raise ValueError(f"pde: test_points={test_points} must be 2 or more")
        case = registry.build("problem", problem)
        self._problem = case.problem
        self._cfg = GPHMConfig(
            kernel=kernel,
            nu=nu,
            jitter=jitter,
            exact_mean=exact_mean,
            largest_log_precision=largest_log_precision,
            boundary_weight=boundary_weight or case.boundary_weight,
        )
        for _, order in self._problem.orders:
            check_order(self._cfg.envelope, order)
        self._solver = Solver(newton_steps=newton_steps, iterations=iterations)
        self._start = components, freq_scale or case.freq_scale
        self._trains_u = _TRAINS_U[u_update]
        self._rows = np.zeros(batch_size, np.int8)
        self._test = [np.linspace(x[0], x[-1], test_points) for x in self._problem.axes]
        known = self._problem.exact is not None
        self.quality = Quality("relative_l2", "min") if known else _BY_CRITERION
        settings = ", ".join(f"{k}={v}" for k, v in problem.items() if k != "name" and v)
        self.info: dict[str, Any] = {
            "name": f"{problem['name']}({settings})" if settings else problem["name"],
            "problem": dict(problem),
            "grid": list(self._problem.shape),
            "test_points": test_points,
        }

    def init(self, key: jax.Array) -> Any:
        """Parameters at the start; without grid values if those are solved for."""
        components, freq_scale = self._start
        params = gphm_init(self._problem.axes, components, freq_scale, kernel=self._cfg.kernel)
        return params if self._trains_u else {k: v for k, v in params.items() if k != "u"}

    def batch(self, step: int) -> Batch:
        """A row for every device, of no meaning."""
        return {"row": self._rows}

    def loss(self, params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Minus the log joint by collocation point; residual and boundary gap are RMS values."""
        terms = gphm_terms(self._whole(params), self._problem, self._cfg)
        return -terms.log_joint / self._problem.source.size, self._metrics(terms)

    def calibration_weight(self, batch: Batch) -> jax.Array:
        """1: nothing is padding."""
        return jnp.ones(())

    def eval_batches(self) -> Iterator[Batch]:
        """The same batch, once."""
        yield {"row": self._rows}

    def eval_sums(self, params: Any, batch: Batch) -> Metrics:
        """The metrics themselves: there is one batch."""
        params = self._whole(params)
        terms = gphm_terms(params, self._problem, self._cfg)
        # 1 or 0. Of evaluations only: asked for in a step it would change how the step's sums are
        # fused, by number of steps in a call, and runs would differ in their last digits.
        found = self._metrics(terms) | {"ok": terms.ok.astype(terms.criterion.dtype)}
        if self._problem.exact is not None:
            exact = jnp.asarray(self._exact())
            gap = gphm_predict(params, self._problem.axes, self._test, self._cfg) - exact
            found["relative_l2"] = jnp.linalg.norm(gap) / jnp.linalg.norm(exact)
        return found

    def eval_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Relative L2 error where the solution is known, criterion, residual, boundary gap, what
        the solver of grid values left of its system, and whether covariances are positive definite.

        Raises:
          FloatingPointError: they are not, and so nothing that was computed is a number.
        """
        if not sums["ok"]:
            raise FloatingPointError(
                f"pde: a covariance is not positive definite with jitter={self._cfg.jitter:g}; "
                f"nearest: jitter={10 * self._cfg.jitter:g}, or a smaller learning rate"
            )
        return dict(sums)

    def figures(self, params: Any) -> dict[str, Callable[[Any], None]]:
        """The solution (and its error, where that is known) and the spectrum of each axis."""
        from jaxlab.gp.pde_figures import draw_solution, draw_spectrum

        # In one program: op by op it takes as long as tens of steps.
        predict = jax.jit(
            lambda p: gphm_predict(self._whole(p), self._problem.axes, self._test, self._cfg)
        )
        found = np.asarray(predict(params))
        exact = None if self._problem.exact is None else self._exact()
        kernels = [params] if "kernels" in params else list(params.values())
        return {
            "solution": lambda figure: draw_solution(figure, self._test, found, exact),
            "spectrum": lambda figure: draw_spectrum(figure, [p["kernels"] for p in kernels]),
        }

    def _whole(self, params: Any) -> Any:
        return with_solution(params, self._problem, self._cfg, self._solver)

    def _metrics(self, terms: Any) -> Metrics:
        n, n_b = self._problem.source.size, float(self._problem.weights.sum())
        return {
            "residual": jnp.sqrt(terms.residual / n),
            "boundary_gap": jnp.sqrt(terms.gap / n_b),
            "criterion": terms.criterion,
            "unsolved": terms.unsolved,
        }

    def _exact(self) -> np.ndarray:
        exact: Any = self._problem.exact
        with jax.ensure_compile_time_eval():
            return np.asarray(exact(*np.meshgrid(*self._test, indexing="ij")))


@registry.register("phase", "second_process")
def second_process(*, run: Surroundings) -> Transform:
    """Adds a second process to the solution, with one Matern component an axis, at u = 0.

    The first becomes `first`, the second `second`; the pattern "first/.*" in `freeze` holds the
    first as it is. Boundary and equation have new precisions; the boundary's begins with the old.

    Args:
      run: the run.
    """

    def transform(params: Any, opt: Any, key: jax.Array) -> tuple[Any, Any]:
        last = params.get("second", params)
        zero = jnp.zeros_like(last["log_v"])
        part = {"log_w": zero[None], "log_ls": zero[None]}
        second = {
            "log_tau": jnp.copy(last["log_tau"]),
            "log_v": zero,
            "kernels": [jax.tree.map(jnp.copy, part) for _ in last["kernels"]],
        }
        if "u" in last:
            second["u"] = jnp.zeros_like(last["u"])
        return {"first": params, "second": second}, None

    return transform
