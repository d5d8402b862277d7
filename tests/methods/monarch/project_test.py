"""The nearest Monarch matrix: reference errors, Eckart-Young by slice, weighted distances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

from jaxlab.methods.monarch import (
    MonarchShape,
    monarch_to_dense,
    project_to_monarch,
)


def sizes(k, q, p, l, s, r, **true):  # noqa: E741
    return MonarchShape(k, q, p, l, s, r, **{"n_in": k * p, "n_out": l * s, **true})


def square(n, k, q=None):
    q = k if q is None else q
    return sizes(k, q, n // k, k, n // k, q)


UNEVEN = sizes(3, 8, 5, 6, 3, 4, n_in=13, n_out=17)


@partial(jax.jit, static_argnames=("shape", "sweeps", "method"))
def projected(a, shape, **options):
    params, residual = project_to_monarch(a, shape, **options)
    return monarch_to_dense(params, shape), residual


def error_of(a, shape, **options):
    """Relative error, measured on the dense matrices."""
    with jax.enable_x64(True):
        a = jnp.asarray(a, np.float64)
        w, residual = projected(a, shape, **options)
        distance = np.linalg.norm(np.asarray(w) - np.asarray(a))
        np.testing.assert_allclose(residual, distance, rtol=1e-9, atol=1e-12)
        return distance / np.linalg.norm(a)


def random_monarch(shape):
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((shape.k, shape.q, shape.p))
    w2 = rng.standard_normal((shape.l, shape.s, shape.r))
    return monarch_to_dense({"w1": jnp.asarray(w1), "w2": jnp.asarray(w2)}, shape)


def cosines(rows, columns):
    return np.cos(0.1 * np.outer(np.arange(1, rows + 1), np.arange(2, columns + 2)))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (square(16, 4), 0.5750615217),
        (square(36, 6), 0.8066910822),
        (square(64, 8), 0.8757826868),
        (square(64, 4, 4), 0.9364156910),
        (square(64, 4, 8), 0.8750833536),
        (square(64, 4, 16), 0.7462537465),
        (square(64, 4, 6), 0.9061781705),
        (square(64, 8, 16), 0.7423440572),
        (square(64, 2, 32), 0.5014404260),
        (sizes(5, 4, 8, 4, 6, 5), 0.8213611251),
    ],
    ids=str,
)
def test_reference_errors(shape, expected):
    error = error_of(cosines(shape.n_out, shape.n_in), shape)
    assert abs(error - expected) < 1e-10


def test_smooth_kernels_are_for_low_rank_and_noise_for_none():
    i = np.arange(64)
    hilbert = 1 / (1 + i[:, None] + i[None, :])
    assert abs(error_of(hilbert, square(64, 8)) - 0.1000533045) < 1e-10
    s = np.linalg.svd(hilbert, compute_uv=False)
    assert np.linalg.norm(s[8:]) / np.linalg.norm(s) < 1.1e-6
    noise = np.random.default_rng(0).standard_normal((256, 256))
    assert abs(error_of(noise, square(256, 16)) - 0.8863) < 0.0008


@pytest.mark.parametrize("m", [4, 8, 16])
def test_hadamard_matrices_are_monarch(m):
    assert error_of(hadamard(m * m), square(m * m, m)) < 1e-13


@pytest.mark.parametrize(
    ("shape", "method"),
    [(square(16, 4, 8), "subspace"), (UNEVEN, "svd"), (sizes(6, 2, 3, 4, 3, 3), "svd")],
    ids=str,
)
def test_a_monarch_matrix_is_its_own_projection(shape, method):
    with jax.enable_x64(True):
        w = random_monarch(shape)
        found, residual = projected(w, shape, method=method)
        assert float(residual) < 1e-10 * np.linalg.norm(w)
        np.testing.assert_allclose(found, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_the_error_is_the_discarded_spectrum(dtype):
    shape, rng = UNEVEN, np.random.default_rng(0)
    a = rng.standard_normal((17, 13)).astype(dtype)
    if dtype == np.complex128:
        a = a + 1j * rng.standard_normal((17, 13))
    padded = np.pad(a, [(0, 1), (0, 2)]).reshape(3, 6, 3, 5)
    discarded = sum(
        np.square(np.linalg.svd(padded[:, j, kk], compute_uv=False)[rank:]).sum()
        for (j, kk), rank in np.ndenumerate(shape.block_ranks)
    )
    with jax.enable_x64(True):
        params, residual = jax.jit(project_to_monarch, static_argnums=1)(jnp.asarray(a), shape)
        w = np.asarray(monarch_to_dense(params, shape))
        np.testing.assert_allclose(residual**2, discarded, rtol=1e-12)
        # W is orthogonal to A - W, and both factors of a slice weigh the same.
        pythagoras = np.linalg.norm(w) ** 2 + np.linalg.norm(a - w) ** 2
        np.testing.assert_allclose(pythagoras, np.linalg.norm(a) ** 2, rtol=1e-12)
        w1, w2 = (np.asarray(params[name]) for name in ("w1", "w2"))
        np.testing.assert_allclose(np.linalg.norm(w1), np.linalg.norm(w2), rtol=1e-9)
        _, residual = project_to_monarch(jnp.asarray(w), shape)
        assert float(residual) < 1e-12
        # No change of the factors comes nearer.
        for scale in (1e-3, 1e-1):
            moved = {
                name: jnp.asarray(np.asarray(w) + scale * rng.standard_normal(w.shape))
                for name, w in params.items()
            }
            assert np.linalg.norm(monarch_to_dense(moved, shape) - a) ** 2 > discarded


def test_alternating_least_squares_finds_nothing_nearer():
    """Fifty sweeps from random factors, by NumPy's solver on the dense definition."""
    shape, a = square(16, 4), cosines(16, 16)
    w1, w2 = (np.random.default_rng(0).standard_normal((4, 4, 4)) for _ in range(2))
    tensor = a.reshape(4, 4, 4, 4)  # (t, j, kk, i); of rank 1 for each (j, kk)
    for _ in range(50):
        w1 = np.einsum("tjki,jtk->kji", tensor, w2) / np.square(w2).sum(1).T[:, :, None]
        w2 = np.einsum("tjki,kji->jtk", tensor, w1) / np.square(w1).sum(2).T[:, None, :]
    swept = np.linalg.norm(np.einsum("jtk,kji->tjki", w2, w1) - tensor) / np.linalg.norm(a)
    assert error_of(a, shape) <= swept + 1e-12
    assert swept - error_of(a, shape) < 1e-3


def test_ranks_beyond_the_slices_leave_zeros():
    shape = sizes(2, 8, 3, 2, 4, 8)
    a = jax.random.normal(jax.random.key(0), (8, 6))
    params, residual = project_to_monarch(a, shape)
    np.testing.assert_allclose(monarch_to_dense(params, shape), a, atol=1e-5)
    assert float(residual) < 1e-5
    # Of four pairs, slices of 4 x 3 need three.
    zero_rows = [int((np.asarray(w) == 0).all(axis).sum()) for w, axis in
                 ((params["w1"], 2), (params["w2"], 1))]  # fmt: skip
    assert zero_rows == [4, 4]
    for method in ("svd", "subspace"):
        zeros = project_to_monarch(jnp.zeros((8, 6)), shape, method=method)
        assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(zeros))


def weights_of(n, seed=0, rank=None):
    x = np.random.default_rng(seed).standard_normal((rank or 2 * n, n))
    x = x @ np.random.default_rng(seed + 1).standard_normal((n, n))
    return x.T @ x / len(x)


def weighted_error(a, w, gram):
    return np.sqrt(np.trace((a - w) @ gram @ (a - w).T))


@pytest.mark.parametrize("rank", [None, 9])
def test_statistics_of_the_inputs(rank):
    """Block-diagonal: exact, by the whitened problem. Full: sweeps never raise the error."""
    shape, n = square(16, 4), 16
    a, full = cosines(n, n), weights_of(n, rank=rank)
    blocks = np.stack([full[i : i + 4, i : i + 4] for i in range(0, n, 4)])
    diagonal = np.zeros((n, n))
    for i, block in enumerate(blocks):
        diagonal[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] = block
    best = 0.0
    for kk, j in np.ndindex(4, 4):
        whitened = a.reshape(4, 4, 4, 4)[:, j, kk] @ np.linalg.cholesky(blocks[kk])
        best += np.square(np.linalg.svd(whitened, compute_uv=False)[1:]).sum()
    with jax.enable_x64(True):
        project = project_to_monarch
        params, residual = project(jnp.asarray(a), shape, gram_blocks=jnp.asarray(blocks))
        w = monarch_to_dense(params, shape)
        np.testing.assert_allclose(residual, np.sqrt(best), rtol=1e-10)
        np.testing.assert_allclose(weighted_error(a, w, diagonal), np.sqrt(best), rtol=1e-10)
        same = project(jnp.asarray(a), shape, gram=jnp.asarray(diagonal), sweeps=2)
        np.testing.assert_allclose(same[1], np.sqrt(best), rtol=1e-10)
        plain = monarch_to_dense(project_to_monarch(jnp.asarray(a), shape)[0], shape)
        assert weighted_error(a, w, diagonal) < weighted_error(a, plain, diagonal)
        errors = [weighted_error(a, w, full)]
        for sweeps in (0, 1, 4, 40):
            params, residual = project(jnp.asarray(a), shape, gram=jnp.asarray(full), sweeps=sweeps)
            errors.append(weighted_error(a, monarch_to_dense(params, shape), full))
            np.testing.assert_allclose(residual, errors[-1], rtol=1e-9)
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-12)
    assert errors[1] > 1.01 * errors[2] > errors[3] >= errors[4]


def test_sweeps_end_where_no_change_of_the_factors_helps():
    shape, rng = UNEVEN, np.random.default_rng(3)
    with jax.enable_x64(True):
        a, gram = jnp.asarray(rng.standard_normal((17, 13))), jnp.asarray(weights_of(13, seed=5))
        gram += jnp.trace(gram) * jnp.eye(13) / 13  # or sweeps would be many
        params, _ = project_to_monarch(a, shape, gram=gram, sweeps=100)

        def loss(params):
            error = a - monarch_to_dense(params, shape)
            return jnp.sum((error @ gram) * error)

        gradients = jax.grad(loss)(params)
        scale = float(loss(jax.tree.map(jnp.zeros_like, params)))
        assert max(float(jnp.abs(g).max()) for g in gradients.values()) < 1e-6 * scale


def test_subspace_iteration_comes_close():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((4, 4, 32, 32)))[0] for _ in "lr")
    slices = left * (0.8 ** np.arange(32)) @ right
    a = slices.transpose(2, 0, 1, 3).reshape(128, 128)
    for shape in (square(128, 4, 16), square(128, 4, 18)):
        exact, near = (error_of(a, shape, method=method) for method in ("svd", "subspace"))
        assert exact <= near * (1 + 1e-12)
        assert near < 1.001 * exact


def test_single_precision_and_float16_storage():
    a = jnp.asarray(cosines(64, 64), jnp.bfloat16)
    params, residual = project_to_monarch(a, square(64, 8))
    assert params["w1"].dtype == jnp.bfloat16
    assert residual.dtype == jnp.float32
    assert abs(float(residual) / float(jnp.linalg.norm(a.astype(jnp.float32))) - 0.87578) < 2e-3


def test_what_is_not_finite():
    a = jnp.ones((16, 16)).at[3, 4].set(jnp.nan)
    with pytest.raises(ValueError, match="1 of 256 entries of the matrix are not finite"):
        project_to_monarch(a, square(16, 4))
    for options in ({}, {"gram": jnp.eye(16), "method": "subspace"}):
        _, residual = jax.jit(lambda a, o=options: project_to_monarch(a, square(16, 4), **o))(a)
        assert bool(jnp.isnan(residual))


def test_no_gradient_passes():
    a = jnp.eye(16)  # with equal singular values, of which the SVD's gradient makes NaN
    gradient = jax.grad(lambda a: project_to_monarch(a, square(16, 4))[0]["w1"].sum())(a)
    assert bool(jnp.all(gradient == 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gram": jnp.eye(15)}, r"gram of shape \(15, 15\) does not fit; nearest: \(16, 16\)"),
        ({"gram_blocks": jnp.eye(4)}, r"nearest: \(4, 4, 4\)"),
        ({"gram_blocks": jnp.ones((4, 4, 4)), "gram": jnp.eye(16)}, "one of gram_blocks and gram"),
        ({"method": "svb"}, "method='svb' is unknown; did you mean 'svd'"),
        ({"gram": jnp.eye(16), "sweeps": -1}, "sweeps=-1"),
        ({"method": "subspace", "iters": -1}, "iters=-1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        project_to_monarch(jnp.eye(16), square(16, 4), **options)
    with pytest.raises(ValueError, match=r"a of shape \(15, 16\).*\(16, 16\)"):
        project_to_monarch(jnp.ones((15, 16)), square(16, 4))
    with pytest.raises(TypeError, match="a is int32"):
        project_to_monarch(jnp.ones((16, 16), jnp.int32), square(16, 4))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e36])
def test_the_nearest_of_far_smaller_and_larger_matrices(size):
    a = np.asarray(random_monarch(UNEVEN) + 0.1, np.float32)
    near, residual = projected(jnp.asarray(a), UNEVEN)
    far, its = projected(jnp.asarray(a * np.float32(size)), UNEVEN)
    np.testing.assert_allclose(np.asarray(far, np.float64) / size, near, rtol=0, atol=2e-5)
    np.testing.assert_allclose(float(its) / size, residual, rtol=1e-3)
