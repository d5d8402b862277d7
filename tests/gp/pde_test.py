"""GP-HM's log joint against dense algebra, its invariances, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.gp.grid_process import grid_process
from jaxlab.gp.pde import GPHMConfig, gphm_init, gphm_log_joint, gphm_predict, gphm_terms
from jaxlab.gp.pde_problem import make_problem
from jaxlab.gp.pde_problems import advection
from jaxlab.gp.spectral import cross_matrix

X, Y = np.linspace(0, 1, 8), np.array([0.0, 0.2, 0.3, 0.6, 0.7, 1.0])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def laplace(u, d, x):
    return d(0, 2) + d(1, 2)


def plane(**changes):
    settings = {"exact": lambda x, y: jnp.sin(3 * x) * jnp.cos(2 * y), "linear": True, **changes}
    return make_problem([X, Y], laplace, **settings)


def plane_params(kernel="stm"):
    rng = np.random.default_rng(0)
    params = gphm_init([X, Y], 3, 2.0, kernel=kernel)
    return params | {
        "u": jnp.asarray(rng.normal(size=(8, 6))),
        "log_tau": jnp.asarray(0.3),
        "log_v": jnp.asarray(-0.2),
    }


def by_dense_algebra(params, problem, cfg):
    """The formulas with dense Kronecker products, for two axes."""
    n = problem.source.size
    c = [
        cross_matrix(p, x, x, envelope=cfg.envelope) + cfg.jitter * jnp.eye(len(x))
        for p, x in zip(params["kernels"], problem.axes, strict=True)
    ]
    second = [
        cross_matrix(p, x, x, 2, envelope=cfg.envelope)
        for p, x in zip(params["kernels"], problem.axes, strict=True)
    ]
    dense, u = jnp.kron(*c), params["u"]
    prior = -0.5 * jnp.linalg.slogdet(dense)[1] - 0.5 * u.ravel() @ jnp.linalg.solve(
        dense, u.ravel()
    )
    inverse = [jnp.linalg.inv(m) for m in c]
    uxx, uyy = second[0] @ inverse[0] @ u, u @ (second[1] @ inverse[1]).T
    if cfg.exact_mean:
        smooth = [(m - cfg.jitter * jnp.eye(len(m))) @ i for m, i in zip(c, inverse, strict=True)]
        uxx, uyy = uxx @ smooth[1].T, smooth[0] @ uyy
    residual = uxx + uyy - problem.source
    gap = jnp.asarray(problem.boundary) - u
    sides = jnp.concatenate([gap[0], gap[-1], gap[:, 0], gap[:, -1]])
    tau, v = params["log_tau"], params["log_v"]
    at_boundary = 0.5 * len(sides) * tau - 0.5 * jnp.exp(tau) * jnp.sum(sides**2)
    inside = 0.5 * n * v - 0.5 * jnp.exp(v) * jnp.sum(residual**2)
    return prior + cfg.boundary_weight * at_boundary + inside


@pytest.fixture(scope="module")
def density():
    """The log joint of the plane problem and its gradient, compiled once for several tests."""
    problem = plane()
    return jax.jit(jax.value_and_grad(lambda p: gphm_log_joint(p, problem)))


@pytest.mark.parametrize(("kernel", "exact_mean"), [("stm", False), ("stm", True), ("se", False)])
def test_log_joint_and_gradient_are_those_of_dense_algebra(kernel, exact_mean):
    cfg = GPHMConfig(kernel=kernel, exact_mean=exact_mean, jitter=1e-2)
    problem, params = plane(), plane_params(kernel)

    @jax.jit
    def both(params):
        joints = gphm_log_joint, by_dense_algebra
        return [jax.value_and_grad(lambda p, f=f: f(p, problem, cfg))(params) for f in joints]

    found, expected = both(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * abs(expected[0])),
        found,
        expected,
    )


def test_one_axis_three_axes_and_equal_axes_agree_with_their_products():
    # exp(i (k . x)) of one axis each: the prior of a product is the product's.
    axes = [X, X, Y]
    rng = np.random.default_rng(1)
    parts = [gphm_init([x], 2, 2.0)["kernels"][0] for x in axes]
    us = [jnp.asarray(rng.normal(size=len(x))) for x in axes]
    how = {"envelope": "matern52", "jitter": 1e-3}
    u = np.einsum("i,j,k->ijk", *us)

    @jax.jit
    def process():
        whole = grid_process(jnp.asarray(u), parts, axes, [(1, 2)], **how)
        ones, nones = (
            [
                grid_process(scale * v, [part], [x], [(0, 2)], **how)
                for v, part, x in zip(us, parts, axes, strict=True)
            ]
            for scale in (1.0, 0.0)
        )
        return whole, ones, nones

    whole, ones, nones = process()
    quads = [float(none.prior - one.prior) for one, none in zip(ones, nones, strict=True)]
    halves = [float(none.prior) / len(x) for none, x in zip(nones, axes, strict=True)]
    expected = u.size * sum(halves) - 0.5 * np.prod([2 * q for q in quads])
    np.testing.assert_allclose(whole.prior, expected, rtol=1e-10)
    outer = np.einsum("i,j,k->ijk", us[0], ones[1].derivatives[0, 2], us[2])
    np.testing.assert_allclose(whole.derivatives[1, 2], outer, rtol=1e-8)


def test_order_of_components_and_absent_ones_change_nothing(density):
    problem, params = plane(), plane_params()
    joint = lambda p: density(p)[0]  # noqa: E731
    base = joint(params)
    turned = [jax.tree.map(lambda x: x[jnp.array([2, 0, 1])], k) for k in params["kernels"]]
    np.testing.assert_allclose(joint({**params, "kernels": turned}), base)
    fewer = [jax.tree.map(lambda x: x[:2], k) for k in params["kernels"]]
    absent = [{**k, "log_w": k["log_w"].at[2].set(-jnp.inf)} for k in params["kernels"]]
    two, three = ({**params, "kernels": k} for k in (fewer, absent))
    of_two = jax.jit(lambda p: gphm_log_joint(p, problem))
    np.testing.assert_allclose(joint(three), of_two(two))
    assert np.isfinite(density(three)[1]["kernels"][0]["log_ls"]).all()


def test_scaled_weights_scale_determinant_and_quadratic_form():
    params, shift, how = plane_params(), 0.7, {"envelope": "matern52"}
    up = [{**k, "log_w": k["log_w"] + shift} for k in params["kernels"]]
    u = params["u"]
    prior = jax.jit(lambda u, k, jitter: grid_process(u, k, [X, Y], [], jitter=jitter, **how).prior)
    base, none = (prior(v, params["kernels"], 1e-6) for v in (u, 0 * u))
    scaled = prior(u, up, 1e-6 * np.exp(shift))
    expected = none - u.size * shift + np.exp(-2 * shift) * (base - none)
    np.testing.assert_allclose(scaled, expected, rtol=1e-9)


def test_derivative_of_a_wave_that_the_kernel_knows():
    x = np.linspace(0, np.pi, 200)
    part = {"log_w": jnp.zeros(1), "log_ls": jnp.full(1, -6.0), "freq": jnp.full(1, 50 / np.pi)}
    u = jnp.asarray(np.sin(100 * x))
    how = {"envelope": "matern52", "jitter": 1e-6}
    found = jax.jit(lambda u: grid_process(u, [part], [x], [(0, 2)], **how))(u)
    inside = slice(10, -10)
    gap = np.linalg.norm(found.derivatives[0, 2][inside] + 1e4 * u[inside])
    assert gap <= 1e-4 * np.linalg.norm(1e4 * u[inside])


def test_exact_mean_and_shortcut_differ_by_the_jitter():
    x = np.linspace(0, 1, 24)
    u = jnp.asarray(np.sin(3 * x)[:, None] * np.cos(4 * x)[None])
    parts = gphm_init([x, x], 3, 2.0)["kernels"]

    @jax.jit
    def slopes(jitter):
        how = {"envelope": "matern52", "jitter": jitter}
        return [
            grid_process(u, parts, [x, x], [(0, 2)], exact_mean=e, **how).derivatives[0, 2]
            for e in (False, True)
        ]

    for jitter, low, high in ((1e-8, 0.0, 1e-3), (1e-2, 3e-3, 1.0)):
        short, exact = map(np.asarray, slopes(jitter))
        gap = np.linalg.norm(short - exact) / np.linalg.norm(exact)
        assert low <= gap <= high, jitter


def test_prediction_at_the_points_is_the_values_up_to_jitter():
    params = plane_params()
    predict = jax.jit(lambda p: gphm_predict(p, [X, Y], [X, Y], GPHMConfig(jitter=1e-10)))
    np.testing.assert_allclose(predict(params), params["u"], atol=1e-6)
    # Any points in any order.
    points = [X[[3, 1]], np.array([0.25])]
    few = jax.eval_shape(lambda p: gphm_predict(p, [X, Y], points), params)
    assert few.shape == (2, 1)


@pytest.mark.parametrize("kernel", ["stm", "gm"])
def test_derivatives_are_finite_differences_of_the_prediction(kernel):
    cfg = GPHMConfig(kernel=kernel, jitter=1e-2, exact_mean=True)
    params, step = plane_params(kernel), 1e-3
    orders = [(axis, order) for axis in (0, 1) for order in (1, 2, 3)]
    shifts = step * np.arange(-3, 4)

    @jax.jit
    def both(params):
        how = {"envelope": cfg.envelope, "jitter": cfg.jitter, "exact_mean": True}
        found = grid_process(params["u"], params["kernels"], [X, Y], orders, **how).derivatives
        # Around each point of one axis, at the points of the other.
        around = [(points[:, None] + shifts).ravel() for points in (X, Y)]
        along_x = gphm_predict(params, [X, Y], [around[0], Y], cfg).reshape(8, 7, 6)
        along_y = gphm_predict(params, [X, Y], [X, around[1]], cfg).reshape(8, 6, 7)
        return found, (jnp.moveaxis(along_x, 1, -1), along_y)

    found, around = both(params)
    # Central ones of fourth order. The third derivative of a Matern kernel has a kink at 0, which
    # is odd and which they cancel.
    stencils = {
        1: np.array([0, 1, -8, 0, 8, -1, 0]) / 12,
        2: np.array([0, -1, 16, -30, 16, -1, 0]) / 12,
        3: np.array([1, -8, 13, 0, -13, 8, -1]) / 8,
    }
    for axis, order in orders:
        expected = around[axis] @ stencils[order] / step**order
        gap = np.abs(found[axis, order] - expected).max() / np.abs(expected).max()
        assert gap < 1e-5, (axis, order, gap)


def test_two_runs_are_bitwise_equal(density):
    params = plane_params()
    jax.tree.map(np.testing.assert_array_equal, density(params), density(params))


def test_log_precisions_are_bounded(density):
    high = {**plane_params(), "log_v": jnp.asarray(1e3), "log_tau": jnp.asarray(1e3)}
    found, slope = density(high)
    assert np.isfinite(found)
    assert slope["log_v"] == slope["log_tau"] == 0


def test_a_covariance_that_is_not_positive_definite_is_flagged():
    problem, params, cfg = plane(), plane_params("se"), GPHMConfig(kernel="se")
    # So smooth and so large that rounding is more than the jitter.
    flat = {"log_w": jnp.full(3, 60.0), "log_ls": jnp.full(3, -6.0)}
    terms_of = jax.jit(lambda p: gphm_terms(p, problem, cfg))
    terms = terms_of({**params, "kernels": [flat, flat]})
    assert not terms.ok
    assert np.isnan(terms.log_joint)
    assert terms_of(params).ok


def test_masks_and_own_equations():
    mask = np.zeros((8, 6), bool)
    mask[0], mask[3, 3] = True, True
    own = plane(exact=None, source=lambda x, y: x, boundary=lambda x, y: y, mask=mask)
    assert own.weights.sum() == 6 + 1  # values are imposed on one face only, its corners once
    np.testing.assert_array_equal(own.source, np.broadcast_to(X[:, None], (8, 6)))
    np.testing.assert_array_equal(own.boundary[0], Y)
    assert own.boundary[3, 3] == Y[3]
    manufactured = plane()
    exact = np.sin(3 * X)[:, None] * np.cos(2 * Y)
    np.testing.assert_allclose(manufactured.source, -13 * exact, atol=1e-12)


def test_a_corner_counts_once_for_each_face_that_is_imposed():
    both = np.zeros((8, 6), bool)
    both[0], both[:, 0] = True, True
    weights = plane(mask=both).weights
    assert weights[0, 0] == 2
    assert weights.sum() == 8 + 6
    np.testing.assert_array_equal(plane(mask=np.ones((8, 6), bool)).weights[0], plane().weights[0])
    corners = advection(points=9, all_sides=False).problem.weights
    assert (corners[0, 0], corners[0, -1], corners[-1, 0], corners.sum()) == (2, 1, 1, 18)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gphm_init([[0.0, 2.0, 1.0]]), r"axes\[0\] must increase.*2 before 1"),
        (lambda: gphm_init([[0.0]]), r"shape \(1,\)"),
        (lambda: gphm_init([X], 0), "Q=0"),
        (lambda: gphm_init([X], 2, 0.0), "freq_scale=0.0"),
        (lambda: gphm_init([X], 2, kernel="sm"), "did you mean 'stm'"),
        (lambda: GPHMConfig(nu=2.0), "nu=2.0 must be one of 0.5, 1.5, 2.5"),
        (lambda: GPHMConfig(jitter=0.0), "jitter=0.0"),
        (lambda: plane(mask=np.ones((6, 8), bool)), r"of shape \(6, 8\).*\(8, 6\)"),
        (lambda: plane(mask=np.zeros((8, 6), bool)), "False everywhere"),
        (lambda: plane(exact=None), "source=None"),
        (lambda: make_problem([X], lambda u, d, x: d(1, 2), exact=jnp.sin), "axes are 0 to 0"),
        (lambda: make_problem([X], lambda u, d, x: jnp.sum(u), exact=jnp.sin), r"shape \(\)"),
        (
            lambda: gphm_log_joint({**plane_params(), "u": jnp.zeros((6, 8))}, plane()),
            "u has shape",
        ),
        (lambda: gphm_log_joint(gphm_init([X], 2), plane()), "1 of them, but 2 axes"),
        (lambda: gphm_log_joint(plane_params(), plane(), GPHMConfig(nu=0.5)), "order=2"),
        (lambda: gphm_predict(plane_params(), [X, Y], [X]), "1 axes_test"),
    ],
)
def test_mistakes_say_what_would_be_right(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_float32_is_refused_unless_allowed():
    problem = plane()
    with jax.enable_x64(False):
        params = gphm_init([X, Y], 2, 2.0)
        with pytest.raises(ValueError, match=r"needs float64.*c\.x64 = True"):
            gphm_log_joint(params, problem)
        allowed = GPHMConfig(allow_float32=True)
        found = jax.eval_shape(lambda p: gphm_log_joint(p, problem, allowed), params)
        assert found.dtype == jnp.float32
