"""Signs and ternary weights: the nearest there are, their bytes, gradients, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import compress
from jaxlab.methods.quantized import Quantized
from jaxlab.methods.signs import Signs, to_signs, to_ternary


def kernel(d_in, d_out, dtype=jnp.float32, stack=()):
    w = np.random.default_rng(d_in).normal(size=(*stack, d_in, d_out))
    return jnp.asarray(w, dtype)


@pytest.mark.parametrize(("quant", "numbers"), [("binary", (-1, 1)), ("ternary", (-1, 0, 1))])
def test_nothing_of_the_kind_is_nearer(quant, numbers):
    """Against every assignment of signs, each with its own best scale."""
    w = np.asarray(kernel(7, 5), np.float64)
    got = np.asarray(Signs.from_dense(jnp.asarray(w, jnp.float32), quant=quant).to_dense())
    every = np.array(list(itertools.product(numbers, repeat=7)), float)
    every = every[np.abs(every).sum(1) > 0]
    along = np.maximum(every @ w, 0) ** 2 / (every**2).sum(1)[:, None]
    least = (w**2).sum(0) - along.max(0)
    np.testing.assert_allclose(((w - got) ** 2).sum(0), least, rtol=1e-5)


@pytest.mark.parametrize("to", [to_signs, to_ternary])
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_columns_of_any_size_round_alike(to, size):
    w = kernel(50, 4)
    q, scale = to(w)
    other, far = to(w * size)
    np.testing.assert_array_equal(np.asarray(other), np.asarray(q))
    np.testing.assert_allclose(np.asarray(far) / size, np.asarray(scale), rtol=1e-5)


@pytest.mark.parametrize("cls", [Signs, Quantized])
@pytest.mark.parametrize("shape", [(4, 0), (0, 4), (0, 4, 4)])
def test_a_kernel_without_weights_is_refused_by_name(cls, shape):
    name = {Signs: "signs", Quantized: "quantized"}[cls]
    with pytest.raises(ValueError, match=rf"{name}: a kernel of shape \(.*\) is empty"):
        cls.from_dense(jnp.ones(shape))


@pytest.mark.parametrize(("quant", "share"), [("binary", 1 - 2 / np.pi), ("ternary", 0.19)])
def test_what_they_leave_of_normal_weights(quant, share):
    """The shares that the page says; that of signs is exact for infinitely many weights."""
    w = kernel(4096, 16)
    left = jnp.sum((w - Signs.from_dense(w, quant=quant).to_dense()) ** 2) / jnp.sum(w**2)
    np.testing.assert_allclose(float(left), share, atol=5e-3)


@pytest.mark.parametrize("to", [to_signs, to_ternary])
def test_what_is_of_the_kind_comes_back(to):
    q, scale = to(kernel(64, 6, jnp.bfloat16, stack=(2,)))
    again, same = to(q.astype(scale.dtype) * scale)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(q))
    np.testing.assert_array_equal(np.asarray(same, np.float32), np.asarray(scale, np.float32))


def test_a_column_of_zeros_is_zero():
    for quant in ("binary", "ternary"):
        w = Signs.from_dense(jnp.zeros((16, 2)), quant=quant)
        assert not np.any(np.asarray(w.to_dense()))


def test_bytes():
    w = kernel(4096, 64, jnp.bfloat16)
    bits = {q: Signs.from_dense(w, quant=q).nbytes * 8 / w.size for q in ("binary", "ternary")}
    assert bits == {"binary": 1 + 16 / 4096, "ternary": 2 + 16 / 4096}


@pytest.mark.parametrize("quant", ["binary", "ternary"])
def test_a_rule_makes_it(quant):
    params = {"mlp": {"kernel": kernel(100, 8)}}
    small = compress(params, [(r"mlp/kernel", "signs", {"quant": quant})])["mlp"]["kernel"]
    x = kernel(3, 100)
    np.testing.assert_allclose(
        np.asarray(x @ small), np.asarray(x @ small.to_dense()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("quant", ["binary", "ternary"])
def test_scales_are_trained_and_signs_are_not(quant):
    w = Signs.from_dense(kernel(64, 6), quant=quant)
    x = kernel(3, 64)
    grads = jax.grad(lambda w: jnp.sum((x @ w) ** 2), allow_int=True)(w)
    want = jax.grad(lambda s: jnp.sum((x @ (w.to_dense() / w.scale * s)) ** 2))(w.scale)
    np.testing.assert_allclose(np.asarray(grads.scale), np.asarray(want), rtol=1e-4)
    assert grads.words.dtype == jax.dtypes.float0


def test_what_is_not_finite_has_no_scale():
    with pytest.raises(ValueError, match="1 of .* not finite"):
        Signs.from_dense(kernel(16, 2).at[3, 1].set(jnp.nan))
    with pytest.raises(ValueError, match="ternary"):
        Signs.from_dense(kernel(16, 2), quant="tern")
