"""Matrix sensing: the loss, one step by hand, the rate by conditioning, small starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.numerics.matrix_sensing import scaled_gd, sensing_loss

N, R = 10, 2


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def problem(condition, seed=0):
    """Symmetric Gaussian measurements of a matrix of rank 2 with singular values 1, 1/condition."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(N, R)))
    truth = basis * np.array([1.0, 1 / condition]) @ basis.T
    a = rng.normal(size=(30 * N * R, N, N))
    a = (a + a.transpose(0, 2, 1)) / 2
    return truth, jnp.asarray(a), jnp.asarray(np.einsum("mij,ij->m", a, truth))


def run(tx, x, problem, steps):
    """Relative errors after each step."""
    truth, a, y = problem

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(sensing_loss)(x, a, y)
        updates, state = tx.update(grads, state, x, value=value)
        x = optax.apply_updates(x, updates)
        return (x, state), jnp.linalg.norm(x @ x.T - truth) / np.linalg.norm(truth)

    return np.asarray(jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), length=steps)[1])(x))


def first_below(errors, limit=1e-6):
    return int(np.argmax(errors < limit)) if (errors < limit).any() else len(errors)


def start(k, scale, seed=0):
    return scale * jax.random.normal(jax.random.key(seed), (N, k), jnp.float64)


def test_the_loss_and_its_gradient_are_the_formula():
    rng = np.random.default_rng(0)
    x, a, y = rng.normal(size=(4, 2)), rng.normal(size=(5, 4, 4)), rng.normal(size=5)
    residual = [np.trace(m.T @ x @ x.T) - t for m, t in zip(a, y, strict=True)]
    value, grad = jax.value_and_grad(sensing_loss)(*map(jnp.asarray, (x, a, y)))
    np.testing.assert_allclose(value, np.square(residual).sum() / 20)
    expected = sum(r * (m + m.T) @ x for r, m in zip(residual, a, strict=True)) / 10
    np.testing.assert_allclose(grad, expected)


def test_one_step_by_hand():
    # x^T x + lam I = diag(4 + 1, 9 + 1).
    x, grad = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([[5.0, 10.0], [15.0, 20.0]])
    tx = scaled_gd(0.1, lam=1.0)
    updates, _ = tx.update({"x": grad}, tx.init({"x": x}), {"x": x})
    np.testing.assert_allclose(updates["x"], [[-0.1, -0.1], [-0.3, -0.2]], rtol=1e-12)


def test_a_stack_is_its_matrices_and_the_dtype_stays():
    x, grad = jax.random.normal(jax.random.key(0), (2, 3, 5, 2), jnp.float32)
    tx = scaled_gd(optax.constant_schedule(0.5), lam=0.1)
    updates, _ = tx.update(grad, tx.init(x), x)
    for i in range(3):
        g, f = np.asarray(grad[i]), np.asarray(x[i])
        expected = -0.5 * g @ np.linalg.inv(f.T @ f + 0.1 * np.eye(2))
        np.testing.assert_allclose(updates[i], expected, rtol=1e-4, atol=1e-5)
    half, _ = tx.update(grad.astype(jnp.bfloat16), tx.init(x), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_much_damping_is_gradient_descent_and_the_loss_may_damp():
    x, grad = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float64)
    for lam, extra in ((1e12, {}), ("sqrt_loss", {"value": jnp.float64(1e24)})):
        tx = scaled_gd(1e12, lam=lam)
        updates, _ = tx.update(grad, tx.init(x), x, **extra)
        np.testing.assert_allclose(updates, -grad, rtol=1e-9)


def test_the_rate_does_not_depend_on_conditioning():
    count = {}
    for condition in (1, 100):
        given = problem(condition)
        for k, lam in ((R, 0.1 / condition), (2 * R, "sqrt_loss")):
            errors = run(scaled_gd(0.5, lam), start(k, 1e-3), given, 150)
            count[condition, lam if k > R else "constant"] = first_below(errors)
        count[condition, "gd"] = first_below(run(optax.sgd(0.3), start(R, 0.1), given, 1500))
    for damping in ("constant", "sqrt_loss"):
        assert count[100, damping] <= 2 * count[1, damping] < 150
    assert count[1, "gd"] < 150
    assert count[100, "gd"] > 8 * count[1, "gd"]


def test_smaller_starts_end_nearer_to_the_low_rank_solution():
    """With constant damping, what the two columns too many hold shrinks slowly, if at all."""
    given = problem(10)
    last = [run(scaled_gd(0.5, 0.1), start(4, scale), given, 100)[-1] for scale in (1e-3, 1e-6)]
    assert last[1] < 1e-2 * last[0] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"lam": -1.0}, "lam=-1.0 .* nearest: 0"), ({"lam": "sqrt"}, "did you mean 'sqrt_loss'")],
)
def test_bad_damping(arguments, message):
    with pytest.raises(ValueError, match=message):
        scaled_gd(0.1, **arguments)


def test_bad_updates():
    x = jnp.ones((3, 2))
    tx = scaled_gd(0.1)
    with pytest.raises(ValueError, match="needs the loss"):
        tx.update(x, tx.init(x), x)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(x, tx.init(x), value=1.0)
    with pytest.raises(ValueError, match=r"shape \(3,\).*multi_transform"):
        tx.update(x[:, 0], tx.init(x), x[:, 0], value=1.0)
