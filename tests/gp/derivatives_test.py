"""Second derivatives, flags and refusals of processes on grids and of GP-HM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.match import path_str
from jaxlab.gp.gram import factorise, logdet, solve
from jaxlab.gp.pde import gphm_init, gphm_log_joint, gphm_predict, gphm_terms
from jaxlab.gp.pde_problem import make_problem
from jaxlab.gp.pde_solve import Solver, with_solution
from jaxlab.gp.regression import gp_grid_fit, gp_grid_init, gp_grid_predict

AXIS = np.linspace(0, 1, 9)


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def poisson(axes=1):
    return make_problem(
        [AXIS] * axes,
        lambda u, d, x: sum(d(i, 2) for i in range(axes)),
        exact=lambda *x: sum(jnp.sin(3 * c) for c in x),
        linear=True,
    )


@pytest.mark.usefixtures("wide")
def test_second_derivatives_of_a_factorisation():
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.normal(size=(5, 5)))
    base, right = a @ a.T + jnp.eye(5), jnp.asarray(rng.normal(size=(5, 2)))

    def ours(s):
        gram = factorise(base * s + s**2 * jnp.eye(5))
        return jnp.sum(jnp.sin(solve(gram, right * s))) + logdet(gram)

    def dense(s):
        c = base * s + s**2 * jnp.eye(5)
        return jnp.sum(jnp.sin(jnp.linalg.solve(c, right * s))) + jnp.linalg.slogdet(c)[1]

    got, expected = (
        jax.jit(lambda s, f=f: (jax.grad(f)(s), jax.grad(jax.grad(f))(s)))(1.3)
        for f in (ours, dense)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.usefixtures("wide")
def test_the_hessian_of_the_log_joint():
    problem = poisson()
    start = gphm_init([AXIS], Q=2, freq_scale=1.0)
    u = jnp.asarray(np.random.default_rng(0).normal(size=9))

    @jax.jit
    def slope(shift):
        def value(shift):
            kernels = [{**start["kernels"][0], "log_ls": start["kernels"][0]["log_ls"] + shift}]
            return gphm_log_joint({**start, "u": u, "kernels": kernels}, problem)

        return jax.grad(value)(shift), jax.grad(jax.grad(value))(shift)

    h = 1e-5
    difference = (slope(h)[0] - slope(-h)[0]) / (2 * h)
    np.testing.assert_allclose(slope(0.0)[1], difference, rtol=1e-5)


def test_float64_is_needed_of_parameters_and_context():
    problem = poisson()
    with jax.enable_x64(True):
        params = gphm_init([AXIS], Q=2, freq_scale=1.0)
    narrow = gphm_init([AXIS], Q=2, freq_scale=1.0)
    for given in (params, narrow):
        with pytest.raises(ValueError, match="enable_x64"):
            gphm_log_joint(given, problem)
        with pytest.raises(ValueError, match="enable_x64"):
            gphm_predict(given, [AXIS], [AXIS])


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("path", ["u", "kernels/0/freq", "second/kernels/0/log_w"])
def test_float64_is_needed_of_every_parameter(path):
    start = gphm_init([AXIS], Q=2, freq_scale=1.0)
    params = {"first": start, "second": start} if path.startswith("second") else start
    narrow = jax.tree_util.tree_map_with_path(
        lambda at, x: x.astype(np.float32) if path_str(at) == path else x, params
    )
    for refused in (
        lambda: gphm_log_joint(narrow, poisson()),
        lambda: gphm_predict(narrow, [AXIS], [AXIS]),
        lambda: with_solution(narrow, poisson()),
    ):
        with pytest.raises(ValueError, match=f"{path} is float32"):
            refused()


@pytest.mark.usefixtures("wide")
def test_what_the_solver_leaves_is_told():
    problem = poisson(2)
    start = {k: v for k, v in gphm_init([AXIS, AXIS], 2, 1.0).items() if k != "u"}

    def unsolved(iterations):
        solver = Solver(iterations=iterations)
        return gphm_terms(with_solution(start, problem, solver=solver), problem).unsolved

    few, many = jax.jit(lambda: (unsolved(1), unsolved(500)))()
    assert float(many) < 1e-9 < 1e-4 < float(few)


def test_a_wrong_claim_of_linearity_is_refused():
    with pytest.raises(ValueError, match="nearest: linear=False"):
        make_problem([AXIS], lambda u, d, x: d(0, 2) + u**3, exact=lambda x: x, linear=True)


def test_a_fit_that_ends_in_nothing_is_not_ok():
    y = jnp.sin(jnp.asarray(AXIS, jnp.float32))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        fit = gp_grid_fit("matern32", (AXIS,), y, steps=1, learning_rate=float("inf"))
    assert bool(jnp.all(jnp.isfinite(fit.losses)))
    assert not bool(fit.ok)


def test_predictions_at_one_point_and_in_any_order():
    y = jnp.sin(jnp.asarray(AXIS, jnp.float32))
    params = gp_grid_init("matern32", (AXIS,), y)
    test = np.array([0.9, 1.1, 0.2])
    parts = test, *(test[i : i + 1] for i in range(3))

    @jax.jit
    def predict(y):
        return [gp_grid_predict(params, "matern32", (AXIS,), y, (part,)) for part in parts]

    whole, *ones = predict(y)
    for i, one in enumerate(ones):
        np.testing.assert_allclose(one.mean[0], whole.mean[i], rtol=1e-4)
    with pytest.raises(ValueError, match=r"axes_test\[0\]"):
        gp_grid_predict(params, "matern32", (AXIS,), y, (np.zeros((2, 2)),))
