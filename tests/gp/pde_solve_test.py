"""Solved grid values: they maximise the log joint, by either solver, and keep its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.gp.pde import GPHMConfig, gphm_init, gphm_log_joint, gphm_predict, gphm_terms
from jaxlab.gp.pde_problem import make_problem
from jaxlab.gp.pde_problems import advection
from jaxlab.gp.pde_solve import Solver, with_solution

X = np.linspace(0, 1, 12)
CFG = GPHMConfig(jitter=1e-4)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def line(operator, linear):
    return make_problem([X], operator, exact=lambda x: jnp.sin(5 * x), linear=linear)


def plane(operator, linear):
    exact = lambda x, y: jnp.sin(3 * x) * jnp.cos(2 * y)  # noqa: E731
    return make_problem([X, X[::2]], operator, exact=exact, linear=linear)


def start(problem):
    params = gphm_init(problem.axes, 4, 2.0)
    return {k: v for k, v in params.items() if k != "u"}


@pytest.mark.parametrize(
    ("problem", "exact_mean"),
    [
        (lambda: line(lambda u, d, x: d(0, 2) + x[0] * d(0, 1), True), False),
        (lambda: line(lambda u, d, x: d(0, 2) + u**3 - u, False), False),
        (lambda: plane(lambda u, d, x: d(0, 2) + d(1, 2), True), True),
        (lambda: plane(lambda u, d, x: d(0, 2) + d(1, 2) + u * (u**2 - 1), False), False),
        (lambda: advection(beta=3.0, points=9, all_sides=False).problem, False),
    ],
    ids=["variable", "cubic", "plane", "allen-cahn", "advection"],
)
def test_no_grid_values_are_better(problem, exact_mean):
    problem, cfg = problem(), GPHMConfig(jitter=1e-4, exact_mean=exact_mean)

    @jax.jit
    def at(u, params):
        def joint(u):
            terms = gphm_terms({**params, "u": u}, problem, cfg)
            return terms.log_joint, terms.criterion

        return jax.grad(joint, has_aux=True)(u)

    params = start(problem)
    best = jax.jit(lambda p: with_solution(p, problem, cfg, Solver(tolerance=1e-12)))(params)
    (slope, least), (steep, most) = (at(u, params) for u in (best["u"], jnp.zeros(problem.shape)))
    assert np.abs(slope).max() < 1e-6 * np.abs(steep).max()
    assert least < 0.2 * most


def test_solver_and_density_share_one_factorisation_of_a_covariance():
    problem = line(lambda u, d, x: d(0, 2), True)
    step = jax.jit(lambda p: gphm_log_joint(with_solution(p, problem, CFG), problem, CFG))
    compiled = step.lower(start(problem)).compile().as_text()
    # Both ask for it in the same words, and XLA computes what is asked for twice once.
    assert compiled.count('custom_call_target="lapack_dpotrf_ffi"') == 1


def test_the_gradient_is_that_of_the_maximum():
    problem = line(lambda u, d, x: d(0, 2), True)
    params = start(problem)

    @jax.jit
    @jax.value_and_grad
    def most(params):
        return gphm_log_joint(with_solution(params, problem, CFG), problem, CFG)

    slope, step = most(params)[1], 1e-5
    for name in ("log_w", "freq"):
        moved = [
            most({**params, "kernels": [{**part, name: part[name] + s * np.eye(4)[2]}]})[0]
            for part in params["kernels"]
            for s in (step, -step)
        ]
        found = slope["kernels"][0][name][2]
        np.testing.assert_allclose(found, (moved[0] - moved[1]) / (2 * step), rtol=1e-5)


def test_a_wave_of_high_frequency_is_found_by_the_best_values_alone():
    x = np.linspace(0, np.pi, 60)
    problem = make_problem([x], lambda u, d, x: d(0, 2), exact=lambda x: jnp.sin(25 * x))
    params = {k: v for k, v in gphm_init([x], 8, 7.0).items() if k != "u"}
    part = {"log_w": jnp.zeros(1), "log_ls": jnp.full(1, -4.0), "freq": jnp.full(1, 25 / 2 / np.pi)}
    test = np.linspace(0, np.pi, 77)

    @jax.jit
    def values(kernels):
        best = with_solution({**params, "kernels": kernels}, problem)
        return gphm_predict(best, [x], [test])

    def error(kernels):
        gap = values(kernels) - np.sin(25 * test)
        return float(jnp.linalg.norm(gap) / np.linalg.norm(np.sin(25 * test)))

    assert error([part]) < 1e-4 < 0.02 * error(params["kernels"])


def test_a_second_process_takes_what_the_first_leaves():
    problem = line(lambda u, d, x: d(0, 2), True)
    first, second = start(problem), gphm_init([X], 1, 1.0, kernel="matern")
    both = {"first": first, "second": {k: v for k, v in second.items() if k != "u"}}

    @jax.jit
    def solved(params):
        best = with_solution(params, problem, CFG)
        predicted = gphm_predict(best, [X], [X], CFG)
        return best, gphm_terms(best, problem, CFG).criterion, predicted

    (best, after, found), (alone, before, _) = solved(both), solved(first)
    np.testing.assert_array_equal(best["first"]["u"], alone["u"])
    assert after < before
    np.testing.assert_allclose(found, best["first"]["u"] + best["second"]["u"], atol=2e-2)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="iterations=0"):
        Solver(iterations=0)
