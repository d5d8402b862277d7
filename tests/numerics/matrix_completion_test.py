"""Matrix completion: recovery, both solvers, noise, duplicates, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.numerics.matrix_completion import complete

SHAPE, RANK = (60, 50), 3


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def sample(factor=4.0, seed=0):
    """A Gaussian product of rank 3, and distinct entries of it: `factor` r (m + n) of them."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(SHAPE[0], RANK)) @ rng.normal(size=(RANK, SHAPE[1]))
    count = int(factor * RANK * sum(SHAPE))
    rows, cols = np.divmod(rng.choice(truth.size, count, replace=False), SHAPE[1])
    return truth, rows, cols, truth[rows, cols]


def relative(factors, truth):
    u, v = factors
    return np.linalg.norm(np.asarray(u @ v.mT) - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_recovers_a_matrix_from_four_times_its_freedom(solver):
    truth, rows, cols, vals = sample()
    u, v = complete(rows, cols, vals, SHAPE, RANK, solver=solver)
    assert (u.shape, v.shape, u.dtype) == ((60, 3), (50, 3), jnp.float64)
    assert relative((u, v), truth) < 1e-5
    np.testing.assert_allclose(v.T @ v, np.eye(3), atol=1e-12)


def test_both_solvers_agree_before_they_have_converged():
    truth, rows, cols, vals = sample()
    few = {"iters": 3, "cg_iters": 10}
    found = [complete(rows, cols, vals, SHAPE, RANK, solver=s, **few) for s in ("exact", "cg")]
    dense = [np.asarray(u @ v.T) for u, v in found]
    np.testing.assert_allclose(*dense, atol=1e-8 * np.abs(truth).max())
    # They had something left to do, and one step of conjugate gradients is not the solution.
    assert relative(found[0], truth) > 1e-6
    one = complete(rows, cols, vals, SHAPE, RANK, solver="cg", iters=3, cg_iters=1)
    assert np.abs(np.asarray(one[0] @ one[1].T) - dense[0]).max() > 1e-3


def test_last_factor_solves_each_rows_least_squares():
    _, rows, cols, vals = sample()
    u, v = (np.asarray(f) for f in complete(rows, cols, vals, SHAPE, RANK, iters=3))
    for i in (0, 7, 59):
        seen = rows == i
        best, *_ = np.linalg.lstsq(v[cols[seen]], vals[seen], rcond=None)
        np.testing.assert_allclose(u[i], best, rtol=1e-4, atol=1e-5)


def test_noise_maps_to_an_error_of_its_order_under_vmap():
    truth, rows, cols, vals = sample()
    noise = np.random.default_rng(1).normal(size=vals.shape) * np.abs(vals).mean()
    levels = np.array([0.0, 1e-4, 1e-2])
    many = jax.vmap(lambda v: complete(rows, cols, v, SHAPE, RANK))(
        jnp.asarray(vals + levels[:, None] * noise)
    )
    errors = [relative((many[0][i], many[1][i]), truth) for i in range(3)]
    assert errors[0] < 1e-5
    assert (errors[1:] < 2 * levels[1:]).all()
    assert (errors[1:] > 0.1 * levels[1:]).all()


def test_a_duplicate_weighs_twice():
    rows, cols = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 0])
    u, v = complete(rows, cols, np.array([1.0, 1.0, 4.0, 3.0, 3.0]), (2, 1), 1)
    np.testing.assert_allclose(u @ v.T, [[2.0], [3.0]], rtol=1e-6)


@pytest.mark.parametrize(("solver", "dtype"), [("exact", np.float32), ("cg", np.float64)])
def test_rows_seen_too_rarely_stay_finite_and_unseen_ones_are_zero(solver, dtype):
    truth, rows, cols, vals = sample()
    keep = (rows != 5) & ((rows != 6) | (np.cumsum(rows == 6) < 2)) & (cols != 9)
    inputs = rows[keep], cols[keep], vals[keep].astype(dtype)
    u, v = complete(*inputs, SHAPE, RANK, solver=solver)
    assert u.dtype == dtype
    assert np.isfinite(u).all()
    np.testing.assert_array_equal(u[5], 0)
    np.testing.assert_allclose(v[9], 0, atol=1e-12)
    others = np.delete(np.asarray(u @ v.T) - truth, [5, 6], axis=0)
    assert np.abs(np.delete(others, 9, axis=1)).max() < (1e-4 if dtype == np.float64 else 1e-2)


def test_forms_nothing_of_the_size_of_the_matrix():
    rows = cols = jnp.arange(70)
    text = jax.jit(lambda v: complete(rows, cols, v, (701, 703), 2)).lower(jnp.ones(70)).as_text()
    assert "701x703" not in text
    assert "703x701" not in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": [0, 60]}, ValueError, r"rows are 0 to 60 .*\[0, 59\]; nearest: 0 to 59"),
        ({"cols": [-1, 2]}, ValueError, "cols are -1 to 2"),
        ({"cols": [0.0, 1.0]}, TypeError, "nearest: int32"),
        ({"vals": [1, 2]}, TypeError, "vals are int.*nearest: float32"),
        ({"vals": [1.0]}, ValueError, "one length"),
        ({"rank": 51}, ValueError, "nearest: 50"),
        ({"rank": 0}, ValueError, "nearest: 1"),
        ({"solver": "gc"}, ValueError, "did you mean 'cg'"),
        ({"iters": 0}, ValueError, "iters=0"),
        ({"mu": 0.5}, ValueError, "mu=0.5"),
    ],
)
def test_bad_arguments(change, error, message):
    given = {"rows": [0, 1], "cols": [0, 1], "vals": [1.0, 2.0], "rank": 2} | change
    arrays = {n: np.asarray(given.pop(n)) for n in ("rows", "cols", "vals")}
    with pytest.raises(error, match=message):
        complete(**arrays, shape=SHAPE, **given)
