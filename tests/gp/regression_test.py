"""Regression on grids: likelihood and gradients against dense ones, fits, predictions, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.gp.covariance import axis_covariance
from jaxlab.gp.regression import gp_grid_fit, gp_grid_init, gp_grid_nll, gp_grid_predict

AXES = np.linspace(0, 1, 8), np.array([0.0, 0.1, 0.4, 0.5, 0.9])
RNG = np.random.default_rng(0)
Y, SEEN = RNG.normal(size=(8, 5)), RNG.random((8, 5)) < 0.7
KERNEL = ("matern32", "squared_exponential")


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


@pytest.fixture
def params():
    return gp_grid_init(KERNEL, AXES, jnp.asarray(Y))


def dense_nll(params, seen):
    pairs = zip(KERNEL, params["kernels"], AXES, strict=True)
    a, b = (axis_covariance(k, p, x) for k, p, x in pairs)
    scale = jnp.exp(params["log_scale"])
    picked = (scale * jnp.kron(a, b))[seen.reshape(-1)][:, seen.reshape(-1)]
    noise = jnp.exp(params["log_noise"]) + 1e-8 * scale
    full = picked + noise * jnp.eye(seen.sum())
    y = Y[seen] - params["mean"]
    quad, logdet = y @ jnp.linalg.solve(full, y), jnp.linalg.slogdet(full)[1]
    return (quad + logdet + len(y) * np.log(2 * np.pi)) / 2


def test_the_likelihood_and_its_gradient_are_the_dense_ones(params):
    ours = jax.value_and_grad(lambda p: gp_grid_nll(p, KERNEL, AXES, Y))
    known = jax.value_and_grad(lambda p: dense_nll(p, np.ones(Y.shape, bool)))
    found, expected = jax.jit(lambda p: (ours(p), known(p)))(params)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_where_cells_are_missing_it_is_estimated_and_always_the_same(params):
    y = jnp.where(SEEN, Y, jnp.nan)
    ours = jax.jit(lambda p: gp_grid_nll(p, KERNEL, AXES, y, SEEN, probes=64))
    value = ours(params)
    np.testing.assert_array_equal(value, ours(params))
    np.testing.assert_allclose(value, dense_nll(params, SEEN), rtol=0.01)


def test_a_fit_learns_lengths_and_predicts_between_the_points():
    axes = np.linspace(0, 1, 24), np.linspace(0, 1, 16)
    function = lambda a, b: np.sin(9 * a)[:, None] * np.cos(4 * b)[None, :]  # noqa: E731
    rng = np.random.default_rng(1)
    y = function(*axes) + 0.05 * rng.normal(size=(24, 16))
    fit = gp_grid_fit("squared_exponential", axes, y, steps=60)
    assert bool(fit.ok)
    assert fit.losses[-1] < fit.losses[0] - 100
    assert 0.03 < np.exp(fit.params["log_noise"] / 2) < 0.08
    between = [(x[1:] + x[:-1]) / 2 for x in axes]
    predict = jax.jit(
        lambda p: gp_grid_predict(p, "squared_exponential", axes, y, axes_test=between)
    )
    mean, var = predict(fit.params)
    truth = function(*between)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.03
    # Nine of ten within two deviations, and deviations that mean something.
    assert np.mean(np.abs(mean - truth) < 2 * np.sqrt(var)) > 0.9
    assert np.sqrt(var).max() < 0.1


def test_missing_cells_are_filled_in():
    axes = np.linspace(0, 1, 9), np.linspace(0, 1, 7)
    truth = np.sin(3 * axes[0])[:, None] * np.cos(2 * axes[1])[None, :]
    seen = np.random.default_rng(0).random(truth.shape) < 0.7
    y = jnp.asarray(np.where(seen, truth, np.nan))
    fit = gp_grid_fit("matern52", axes, y, seen, steps=20, probes=2)
    assert bool(fit.ok)
    predict = jax.jit(lambda p: gp_grid_predict(p, "matern52", axes, y, mask=seen, samples=64))
    mean, var = predict(fit.params)
    assert np.sqrt(np.mean((mean - truth)[~seen] ** 2)) < 0.05 * truth.std()
    assert np.asarray(var)[~seen].mean() > 1.5 * np.asarray(var)[seen].mean()
    # Of the scale of what is to be explained, and not of its square root.
    assert var.min() > 0
    assert var.max() < np.exp(fit.params["log_scale"])


def test_bad_input_is_refused():
    for axes, y, kernel, message in (
        (([0.0, 1.0], [0.0, 1.0]), jnp.zeros((2, 3)), "white", r"y of \(2, 3\) does not fit"),
        (([0.0, 0.0],), jnp.zeros(2), "white", r"axes\[0\] must increase"),
        (([0.0],), jnp.zeros(1), "white", "n at least 2"),
        (([0.0, 1.0],), jnp.zeros(2), "whit", "did you mean 'white'"),
        (([0.0, 1.0],), jnp.zeros(2), ("white", "white"), "must have 1, as axes"),
    ):
        with pytest.raises(ValueError, match=message):
            gp_grid_init(kernel, axes, y)
    with pytest.raises(ValueError, match="mask of"):
        gp_grid_init("white", ([0.0, 1.0],), jnp.zeros(2), jnp.zeros(3, bool))
    with pytest.raises(TypeError, match="y is int"):
        gp_grid_init("white", ([0.0, 1.0],), jnp.zeros(2, int))
    with pytest.raises(ValueError, match="steps=0"):
        gp_grid_fit("white", ([0.0, 1.0],), jnp.zeros(2), steps=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 1.0, -1e3])
def test_what_does_not_vary_has_a_fit(dtype, value):
    with jax.enable_x64(dtype == np.float64):
        x, y = (np.arange(5.0),), jnp.full(5, value, dtype)
        one = jnp.arange(5) == 1
        for seen in (None, one):
            fit = gp_grid_fit("matern32", x, y, seen, steps=5)
            assert bool(jnp.all(jnp.isfinite(fit.losses)))
            found = gp_grid_predict(fit.params, "matern32", x, y, mask=seen)
            np.testing.assert_allclose(found.mean, y, rtol=0, atol=1e-2 * max(abs(value), 1))
    x, y = (np.arange(5.0),), jnp.ones(5)
    with pytest.raises(ValueError, match="gp_grid_init: mask has no True"):
        gp_grid_init("matern32", x, y, jnp.zeros(5, bool))
    made = jax.jit(lambda y: gp_grid_init("matern32", x, y, jnp.arange(5) < 3))(y)
    assert made["mean"] == 1
    closed = jnp.arange(5) < 3
    assert jax.jit(lambda y: gp_grid_init("matern32", x, y, closed))(y)["mean"] == 1
