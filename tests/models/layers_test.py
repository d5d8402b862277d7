import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxlab.models.layers import (
    Conv,
    Embed,
    Linear,
    attention,
    normalize,
    residual_init,
)


def randn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def as_function(make):
    """A layer as a function of (parameters, x), the way that models receive their parameters."""
    graphdef, _ = nnx.split(nnx.eval_shape(make))
    return lambda params, x: nnx.merge(graphdef, params)(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear(dtype, stored):
    call = as_function(lambda: Linear(6, 4, dtype=dtype, rngs=nnx.Rngs(0)))
    w, bias, x = randn(0, 6, 4), randn(2, 4), randn(1, 2, 3, 6)
    y = call({"kernel": w, "bias": bias}, x)
    chex.assert_shape(y, (2, 3, 4))
    assert y.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(call({"kernel": stored(w), "bias": bias}, x), y)
    expected = np.asarray(x) @ np.asarray(w) + np.asarray(bias)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=tolerance)


def test_linear_without_bias_has_a_kernel_only():
    layer = nnx.eval_shape(lambda: Linear(6, 4, use_bias=False, rngs=nnx.Rngs(0)))
    assert list(nnx.to_pure_dict(nnx.state(layer))) == ["kernel"]


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        ((3, 2), (1, 2), "SAME"),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 3), (2, 1), "VALID"),
        ((1, 1), (2, 2), "SAME"),
    ],
)
def test_conv_paths_agree(size, strides, padding, stored):
    options = {"kernel_size": size, "strides": strides, "padding": padding, "use_bias": False}
    call = as_function(lambda: Conv(3, 4, **options, rngs=nnx.Rngs(0)))
    hwio, x = randn(0, *size, 3, 4), randn(1, 2, 7, 6, 3)
    w = hwio.reshape(-1, 4)

    def value_and_grads(fn, w):
        y, pull = jax.vjp(fn, w, x)
        return y, *jax.tree.leaves(pull(jnp.cos(y)))

    def reference(hwio, x):
        return lax.conv_general_dilated(
            x, hwio, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    y, dw, dx = jax.jit(lambda: value_and_grads(reference, hwio))()
    expected = [y, dw.reshape(-1, 4), dx]
    for kernel in (w, stored(w)):
        got = jax.jit(lambda w: value_and_grads(lambda w, x: call({"kernel": w}, x), w))(kernel)
        chex.assert_trees_all_close(list(got), expected, atol=2e-5)


def test_conv_adds_its_bias_and_keeps_its_dtype(stored):
    call = as_function(lambda: Conv(2, 3, kernel_size=(3, 3), dtype="bfloat16", rngs=nnx.Rngs(0)))
    w, bias = jnp.zeros((18, 3)), jnp.array([1.0, 2.0, 3.0])
    for kernel in (w, stored(w)):
        y = jax.jit(call)({"kernel": kernel, "bias": bias}, randn(0, 1, 4, 4, 2))
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y[0, 2, 1].astype(jnp.float32), [1.0, 2.0, 3.0])


class EmbedTest(chex.TestCase):
    @pytest.fixture(autouse=True)
    def _use_stored(self, stored):
        self.stored = stored

    @chex.variants(with_jit=True, without_jit=True)
    def test_look_up_and_attend(self):
        w, ids = randn(0, 7, 4), jnp.array([[0, 6, 3]])
        make = lambda: Embed(7, 4, dtype="bfloat16", rngs=nnx.Rngs(0))  # noqa: E731
        graphdef, _ = nnx.split(nnx.eval_shape(make))

        @self.variant
        def call(w):
            embed = nnx.merge(graphdef, {"embedding": w})
            return embed(ids), embed.attend(embed(ids))

        for table in (w, self.stored(w)):
            rows, logits = call(table)
            np.testing.assert_array_equal(rows, w[ids].astype(jnp.bfloat16))
            assert logits.dtype == jnp.bfloat16
            expected = np.asarray(w[ids] @ w.T)
            np.testing.assert_allclose(logits.astype(jnp.float32), expected, atol=0.1)


class AttentionTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_softmax_over_repeated_heads(self):
        q, k, v = randn(0, 2, 5, 4, 8), randn(1, 2, 5, 2, 8), randn(2, 2, 5, 2, 8)
        for causal in (False, True):
            got = self.variant(attention, static_argnames="causal")(q, k, v, causal=causal)
            np.testing.assert_allclose(got, self.reference(q, k, v, causal), atol=1e-5)

    @staticmethod
    def reference(q, k, v, causal):
        k, v = (np.repeat(np.asarray(a), 2, axis=2) for a in (k, v))
        logits = np.einsum("btnh,bsnh->bnts", np.asarray(q), k) / np.sqrt(8)
        if causal:
            logits = np.where(np.tri(5, dtype=bool), logits, -np.inf)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), v)


def test_attention_in_bfloat16_has_float32_logits():
    # Two keys whose logits, near 1000, differ by 1: bfloat16 logits could not tell them apart.
    q = jnp.full((1, 1, 1, 4), 1.0, jnp.bfloat16)
    k = jnp.array([[500.0, 500, 500, 500], [500, 500, 500, 502]], jnp.bfloat16)[None, :, None, :]
    v = jnp.array([[1.0, 0, 0, 0], [0, 1, 0, 0]], jnp.bfloat16)[None, :, None, :]
    y = attention(q, k, v, causal=False)
    assert y.dtype == jnp.bfloat16
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(y[0, 0, 0, :2].astype(jnp.float32), [1 - share, share], atol=3e-3)


def test_masked_keys_are_as_if_absent():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, h, 4)), jnp.float32) for h in (4, 2, 2))
    mask = jnp.arange(5)[None] < jnp.array([[3], [0]])

    def total(k, mask):
        y = attention(q, k, v, causal=False, mask=mask)
        return jnp.sum(y**2), y

    (_, y), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(k, mask)
    apply = jax.jit(lambda q, k, v: attention(q, k, v, causal=False))
    np.testing.assert_allclose(y[:1, :3], apply(q[:1, :3], k[:1, :3], v[:1, :3]), atol=1e-6)
    # No key at all: nothing of meaning, and nothing that is not a number.
    assert np.isfinite(y).all()
    assert np.isfinite(grads).all()
    np.testing.assert_array_equal(grads[0, 3:], 0)
    assert np.abs(grads[0, :3]).min() > 0


def test_normalize_takes_statistics_in_float32():
    x = (300 + randn(0, 2, 64)).astype(jnp.bfloat16)
    y = normalize(nnx.LayerNorm(64, use_fast_variance=False, rngs=nnx.Rngs(0)), x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x.astype(jnp.float32), np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02)


def test_initial_scales():
    w = Conv(8, 64, kernel_size=(3, 3), rngs=nnx.Rngs(0)).kernel.get_value()
    np.testing.assert_allclose(np.std(w), 1 / np.sqrt(72), rtol=0.05)
    out = Linear(72, 64, kernel_init=residual_init(8), rngs=nnx.Rngs(0)).kernel.get_value()
    np.testing.assert_allclose(np.std(out), 1 / np.sqrt(72 * 16), rtol=0.05)
