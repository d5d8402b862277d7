"""The window against a dense inverse and the recursion of the paper, in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac import (
    ihvp,
    mfac_coefficients,
    precondition_row,
    window_init,
    window_push,
)

push = jax.jit(window_push, donate_argnums=0)
product = jax.jit(ihvp, static_argnames="normaliser")
own_product = jax.jit(precondition_row, static_argnames="normaliser")


def gradients(m, d, seed=0):
    return np.random.default_rng(seed).normal(size=(m, d)) / np.sqrt(d)


def filled(rows, m=None, dtype=jnp.float64):
    win = window_init(m or len(rows), rows.shape[1], dtype)
    for g in rows:
        win = push(win, jnp.asarray(g, dtype))
    return win


def fisher(rows, damp, m=None):
    return damp * np.eye(rows.shape[1]) + rows.T @ rows / (m or len(rows))


def recursion(rows, damp):
    """v_i and q_i as the paper has them, and every F_i^-1."""
    m, d = rows.shape
    inverses, v, q = [np.eye(d) / damp], [], []
    for g in rows:
        v.append(inverses[-1] @ g)
        q.append(m + g @ v[-1])
        inverses.append(inverses[-1] - np.outer(v[-1], v[-1]) / q[-1])
    return np.array(v), np.array(q), inverses


@pytest.mark.parametrize(("m", "d"), [(1, 1), (4, 10), (16, 16), (32, 200)])
def test_products_are_those_of_the_dense_inverse_and_the_recursion(m, d):
    rows, damp = gradients(m, d), 1e-2
    x = np.random.default_rng(1).normal(size=d)
    with jax.enable_x64(True):
        win = filled(rows)
        both = jax.jit(lambda w, x: (ihvp(w, x, damp), precondition_row(w, m // 2, damp)))
        actual, own = map(np.asarray, both(win, jnp.asarray(x)))
    expected = np.linalg.solve(fisher(rows, damp), x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    by_recursion = recursion(rows, damp)[2][-1] @ x
    np.testing.assert_allclose(actual, by_recursion, rtol=0, atol=1e-12 * np.abs(expected).max())
    expected = np.linalg.solve(fisher(rows, damp), rows[m // 2])
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    np.testing.assert_allclose(fisher(rows, damp) @ actual, x, rtol=0, atol=1e-12)


def test_the_ring_keeps_the_last_m_in_any_order():
    m, d, damp = 4, 9, 1e-3
    rows = gradients(3 * m + 1, d)
    with jax.enable_x64(True):
        x = jnp.asarray(gradients(1, d, 1)[0])
        wrapped = filled(rows, m)
        expected = product(filled(rows[-m:]), x, damp)
        np.testing.assert_allclose(product(wrapped, x, damp), expected, rtol=1e-12)
        shuffled = filled(rows[[-2, -4, -1, -3]])
        np.testing.assert_allclose(product(shuffled, x, damp), expected, rtol=1e-12)
        dense = np.asarray(wrapped.rows)
        np.testing.assert_allclose(wrapped.gram, dense @ dense.T, rtol=0, atol=1e-14)
    assert int(wrapped.head) == 1
    assert int(wrapped.count) == 3 * m + 1


def test_the_inverse_is_symmetric_positive_and_at_most_one_over_the_damping():
    rows, damp = gradients(5, 8), 0.1
    with jax.enable_x64(True):
        every = jax.jit(jax.vmap(ihvp, (None, 0, None)))
        inverse = np.asarray(every(filled(rows), jnp.eye(8), damp))
    np.testing.assert_allclose(inverse, inverse.T, rtol=0, atol=1e-13)
    values = np.linalg.eigvalsh(inverse)
    assert values.min() > 0
    assert values.max() <= (1 + 1e-12) / damp


def test_coefficients_are_those_of_the_recursion():
    rows, damp = gradients(6, 11), 1e-2
    v, q, inverses = recursion(rows, damp)
    with jax.enable_x64(True):
        d, b, actual_q = map(np.asarray, jax.jit(mfac_coefficients)(filled(rows), damp))
    np.testing.assert_allclose(actual_q, q, rtol=1e-12)
    np.testing.assert_allclose(b @ rows, v, rtol=0, atol=1e-12 * np.abs(v).max())
    expected = [[rows[i] @ inverses[i] @ rows[j] * (j >= i) for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(d, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert np.triu(b, 1).max() == 0


def test_the_case_by_hand():
    rows = np.array([[1.0, 0.0], [1.0, 1.0]])
    with jax.enable_x64(True):
        win = filled(rows)
        inverse = np.stack([product(win, x, 1.0) for x in jnp.eye(2)])
    np.testing.assert_allclose(inverse, np.array([[1.5, -0.5], [-0.5, 2]]) / 2.75, rtol=1e-14)


def test_an_empty_window_and_one_of_one_gradient():
    g, m, damp = np.array([3.0, 4.0]), 8, 0.25
    with jax.enable_x64(True):
        empty = window_init(m, 2, jnp.float64)
        np.testing.assert_allclose(product(empty, jnp.asarray(g), damp), g / damp, rtol=1e-15)
        win = push(empty, jnp.asarray(g))
        for count, normaliser in ((m, "window"), (1, "count")):
            expected = g * count / (count * damp + 25)
            actual = own_product(win, 0, damp, normaliser=normaliser)
            np.testing.assert_allclose(actual, expected, rtol=1e-14)
            actual = product(win, jnp.asarray(g), damp, normaliser=normaliser)
            np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_it_is_its_own_transpose_and_derivative_and_maps_over_vectors():
    tree = {"a": jnp.zeros((3, 2)), "b": (jnp.zeros(4), jnp.zeros(()))}
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    some = lambda: treedef.unflatten(  # noqa: E731
        [jnp.asarray(rng.normal(size=x.shape)) for x in leaves]
    )
    with jax.enable_x64(True):
        win = window_init(3, tree, jnp.float64)
        for _ in range(4):
            win = push(win, some())
        f = jax.jit(lambda x: ihvp(win, x, 1e-2))
        x, y, seen = some(), some(), []
        out, vjp = jax.vjp(f, x)
        seen.append((vjp(y)[0], f(y)))
        seen.append((jax.jvp(f, (x,), (y,))[1], f(y)))
        seen.append((jax.linear_transpose(f, x)(y)[0], f(y)))
        many = jax.tree.map(lambda *xs: jnp.stack(xs), x, y, *[some() for _ in range(6)])
        seen.append((jax.tree.map(lambda z: z[1], jax.vmap(f)(many)), f(y)))
        for actual, expected in seen:
            for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)
        flat = lambda t: np.concatenate([np.ravel(z) for z in jax.tree.leaves(t)])  # noqa: E731
        assert flat(f(y)) @ flat(x) == pytest.approx(flat(out) @ flat(y), rel=1e-12)


@pytest.mark.parametrize("damp", [1e-3, 1e-5, 1e-7])
def test_float32_is_exact_to_1e_5_in_the_span(damp):
    m = 16
    rows = gradients(m + 5, 120).astype(np.float32)
    win = window_init(m, 120)
    for step, g in enumerate(rows):
        win = push(win, jnp.asarray(g))
        if step in (0, 5, m - 1, m + 4):
            u = own_product(win, step % m, damp)
            dense = np.asarray(win.rows, np.float64)
            expected = np.linalg.solve(fisher(dense, damp), g.astype(np.float64))
            assert np.linalg.norm(u - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("correlation", "most"), [(0.99, 1e-4), (0.999, 1e-3), (0.9999, 1e-2)])
def test_gradients_with_a_common_direction_lose_digits_of_float32(correlation, most):
    m, d, worst = 16, 120, 0.0
    common, own = gradients(1, d, 1) * np.sqrt(correlation), np.sqrt(1 - correlation)
    rows = np.float32(common + own * gradients(m, d))
    win = filled(rows, dtype=jnp.float32)
    for damp in (1e-3, 1e-5, 1e-7):
        u = own_product(win, m - 1, damp)
        expected = np.linalg.solve(fisher(np.float64(rows), damp), np.float64(rows[-1]))
        worst = max(worst, np.linalg.norm(u - expected) / np.linalg.norm(expected))
    assert worst <= most


def test_rows_of_bfloat16_have_the_gram_matrix_of_what_is_stored():
    rows = gradients(6, 40).astype(np.float32)
    win = filled(rows, 4, jnp.bfloat16)
    stored = np.asarray(win.rows, np.float64)
    assert win.rows.dtype == jnp.bfloat16
    assert win.gram.dtype == jnp.float32
    np.testing.assert_allclose(win.gram, stored @ stored.T, rtol=0, atol=1e-6)
    assert np.array_equal(win.gram, win.gram.T)
    u = own_product(win, 1, 1e-4)
    expected = np.linalg.solve(fisher(stored, 1e-4), stored[1])
    np.testing.assert_allclose(u, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_equal_gradients_and_a_tiny_damping_stay_finite():
    win = window_init(8, 30)
    g = jnp.asarray(gradients(1, 30)[0], jnp.float32) * 100
    for _ in range(8):
        win = push(win, g)
    u = np.asarray(own_product(win, 3, 1e-12))
    # Of m equal rows: F^-1 g = g / (damp + |g|^2).
    expected = g / np.sum(np.square(g))
    assert np.linalg.norm(u - expected) < 1e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("dtype", "share", "bound"),
    [("float32", 1e-3, 2e-3), ("float32", 1e-4, 2e-2), ("float64", 1e-9, 1e-5)],
)
def test_equal_gradients_have_the_digits_that_the_damping_leaves(dtype, share, bound):
    with jax.enable_x64(dtype == "float64"):
        win, push_one = window_init(128, jnp.zeros(60, dtype), dtype), jax.jit(window_push)
        g = jnp.asarray(gradients(1, 60)[0], dtype)
        for _ in range(128):
            win = push_one(win, g)
        damp = share * float(g @ g)
        u = np.asarray(precondition_row(win, 64, damp), np.float64)
    wide = np.asarray(g, np.float64)
    expected = wide / (damp + wide @ wide)
    assert np.linalg.norm(u - expected) < bound * np.linalg.norm(expected)


def test_the_window_is_written_in_place():
    m, shape = 64, (40, 50)
    step = jax.jit(
        lambda win, g: (new := window_push(win, g), precondition_row(new, win.head, 1e-3)),
        donate_argnums=0,
    )
    win = window_init(m, jnp.zeros(shape))
    memory = step.lower(win, jnp.zeros(shape)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= win.rows.nbytes
    assert memory.temp_size_in_bytes < 0.1 * win.rows.nbytes + 4 * win.gram.nbytes
    place = win.rows.unsafe_buffer_pointer()
    assert step(win, jnp.ones(shape))[0].rows.unsafe_buffer_pointer() == place


def test_errors_name_the_argument():
    win = window_init(2, 3)
    x = jnp.ones(3)
    for match, call in [
        ("m=0 must be an int, 1 or more", lambda: window_init(0, 3)),
        ("int32; gradients must be floating", lambda: window_init(2, jnp.ones(3, jnp.int32))),
        ("dtype=.*int32.* must be floating", lambda: window_init(2, 3, jnp.int32)),
        ("damp=0.0 must be positive and finite", lambda: ihvp(win, x, 0.0)),
        (r"j=-1 must be in \[0, 2\)", lambda: precondition_row(win, -1, 1.0)),
        (r"j=2 must be in \[0, 2\)", lambda: precondition_row(win, 2, 1.0)),
        ("damp=nan", lambda: precondition_row(win, 0, float("nan"))),
        ("damp=-1", lambda: mfac_coefficients(win, -1)),
        (r"shapes .* \(4,\)} are not those", lambda: ihvp(win, jnp.ones(4), 1.0)),
        (r"shapes .* \(4,\)} are not those", lambda: window_push(win, jnp.ones(4))),
        (
            "normaliser='counts'; did you mean 'count'",
            lambda: ihvp(win, x, 1.0, normaliser="counts"),
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize(("damp", "most"), [(1e-2, 2e-5), (1e-3, 1e-4), (1e-4, 1e-3)])
def test_products_of_float32_lose_what_the_subtraction_costs(damp, most):
    rows = gradients(16, 120).astype(np.float32)
    win = filled(rows, dtype=jnp.float32)
    rng = np.random.default_rng(1)
    # Vectors at random, and some of the rows' span, where damping is least of what is left.
    for x in (*rng.normal(size=(4, 120)), *(rng.normal(size=(4, 16)) @ rows)):
        exact = np.linalg.solve(fisher(rows.astype(np.float64), damp), np.float64(np.float32(x)))
        error = np.linalg.norm(product(win, jnp.float32(x), damp) - exact)
        assert error <= most * np.linalg.norm(exact)


def test_derivatives_are_finite_where_the_first_factorisation_fails():
    rows = np.float32(1e3 * (np.ones((4, 30)) + 1e-7 * gradients(4, 30)))
    win, damp = filled(rows, dtype=jnp.float32), 1e-6
    matrix = win.gram + 4 * damp * jnp.eye(4)
    assert np.isnan(jnp.linalg.cholesky(matrix, symmetrize_input=False)).any()
    x, y = jnp.float32(gradients(2, 30, seed=3))
    f = lambda x: ihvp(win, x, damp)  # noqa: E731
    out = f(y)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(jax.jvp(f, (x,), (y,))[1], out)
    for transposed in (jax.vjp(f, x)[1], jax.linear_transpose(f, x)):
        np.testing.assert_allclose(transposed(y)[0], out, rtol=1e-3)
    many = jax.vmap(f)(jnp.stack([x, y]))
    np.testing.assert_allclose(many[1], out, rtol=1e-3)
