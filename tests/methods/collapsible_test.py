"""Collapsible blocks: one convolution for two, with their gradients; exactness; nothing dead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxlab.methods.collapsible import Collapsible, collapse
from jaxlab.methods.dense import Dense
from jaxlab.models.layers import Conv


def convolve(x, kernel, size, padding):
    hwio = kernel.reshape(*size, x.shape[-1], -1)
    return lax.conv_general_dilated(
        x, hwio, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_trains_as_the_expanded_network_does(padding):
    """A 3 x 3 convolution without bias, a 1 x 1 one behind it, and the identity beside both."""
    keys = jax.random.split(jax.random.key(0), 4)
    w1, w2 = jax.random.normal(keys[0], (18, 7)), jax.random.normal(keys[1], (7, 2))
    x, bias = jax.random.normal(keys[2], (3, 5, 6, 2)), jnp.array([0.3, -0.2])
    conv = Conv(2, 2, kernel_size=(3, 3), padding=padding, rngs=nnx.Rngs(0))
    graph, state = nnx.split(conv)

    def collapsed(factors):
        pure = nnx.to_pure_dict(state) | {"kernel": Collapsible(*factors, (3, 3)), "bias": bias}
        filled = nnx.state(conv)
        nnx.replace_by_pure_dict(filled, pure)
        return nnx.merge(graph, filled)(x)

    def expanded(factors):
        wide = convolve(x, factors[0], (3, 3), padding)
        inside = x if padding == "SAME" else x[:, 1:-1, 1:-1]
        y = convolve(wide, factors[1], (1, 1), "VALID") + inside
        return y + jnp.broadcast_to(bias, y.shape)

    results = []
    for net in (collapsed, expanded):
        loss = jax.jit(jax.value_and_grad(lambda f, net=net: jnp.mean(jnp.sin(net(f))), argnums=0))
        results.append(loss((w1, w2)))
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-6)


def test_a_bias_between_goes_through_the_second_layer():
    rng = np.random.default_rng(0)
    x, w1, b1, w2 = (rng.normal(size=s).astype(np.float32) for s in [(4, 6), (6, 9), 9, (9, 3)])
    expected = (x @ w1 + b1) @ w2
    collapsed = np.asarray(collapse(w1, w2))
    np.testing.assert_allclose(x @ collapsed + b1 @ w2, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 5)])
def test_the_shortcut_passes_the_input_on(size):
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
    rows = 3 * size[0] * size[1]
    kernel = collapse(jnp.zeros((rows, 4)), jnp.zeros((4, 3)), shortcut=size)
    np.testing.assert_array_equal(convolve(x, kernel, size, "SAME"), x)


@pytest.mark.parametrize("key", [None, jax.random.key(3)])
@pytest.mark.parametrize(("width", "size"), [(2, None), (16, None), (16, (3, 3))])
def test_from_dense_reproduces_the_kernel_and_every_part_can_train(width, size, key):
    w = jax.random.normal(jax.random.key(0), (4, 18, 2)).at[3].set(0.0)
    kernel = Collapsible.from_dense(w, width=width, kernel_size=size, key=key)
    assert kernel.expand.shape == (4, 18, width)
    np.testing.assert_allclose(kernel.to_dense(), w, atol=2e-6)

    def loss(kernel):
        return jnp.sum(jnp.sin(kernel.to_dense() + 1.0))

    # No column of the pair is at a point that gradients leave as it is: not even where w is 0.
    grads = jax.grad(loss)(kernel)
    moved = jnp.abs(grads.expand).max(-2) + jnp.abs(grads.project).max(-1)
    assert (moved > 1e-3).all()


def test_a_narrow_form_is_the_nearest_of_its_rank():
    w = jax.random.normal(jax.random.key(0), (6, 5))
    sigma = np.linalg.svd(np.asarray(w), compute_uv=False)
    error = jnp.sum((Collapsible.from_dense(w, width=2).to_dense() - w) ** 2)
    np.testing.assert_allclose(error, np.square(sigma[2:]).sum(), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finalize_is_the_dense_kernel_in_bytes_and_bits(dtype):
    w = jax.random.normal(jax.random.key(0), (18, 2)).astype(dtype)
    kernel = Collapsible.from_dense(w, kernel_size=(3, 3), key=jax.random.key(1))
    assert kernel.expand.shape == (18, 256)
    final = kernel.finalize()
    assert isinstance(final, Dense)
    assert final.nbytes == w.nbytes < kernel.nbytes
    assert final.dtype == dtype
    np.testing.assert_array_equal(final.array, kernel.to_dense())
    np.testing.assert_array_equal(kernel.at(jnp.float32(0.5)).to_dense(), final.array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "nearest: 1"),
        ({"kernel_size": (2, 3)}, r"two odd sizes.* nearest: \(3, 3\)"),
        ({"kernel_size": (3,)}, r"nearest: \(3, 1\)"),
        ({"kernel_size": (5, 5)}, "nearest: kernel_size=None"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Collapsible.from_dense(jnp.ones((18, 2)), **arguments)
