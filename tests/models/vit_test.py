import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.models.layers import Conv
from jaxlab.models.vit import image_to_patches, vit

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 2)), jnp.float32)


def test_patches_are_ordered_like_a_convolution():
    conv = Conv(2, 5, kernel_size=(2, 2), strides=(2, 2), use_bias=False, rngs=nnx.Rngs(0))
    tokens = image_to_patches(IMAGES, 2)
    assert tokens.shape == (2, 6, 8)
    expected = conv(IMAGES).reshape(2, 6, 5)
    np.testing.assert_allclose(tokens @ conv.kernel.get_value(), expected, atol=1e-5)


def test_patches_may_be_permuted_where_positions_are_zero():
    make = lambda: vit(  # noqa: E731
        image_shape=(4, 6, 2), num_classes=3, patch=2, d_model=8, depth=1, heads=2, rngs=nnx.Rngs(0)
    )
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype)  # noqa: E731
    params = jax.tree.map(draw, nnx.to_pure_dict(state))
    logits = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))
    # The rows of patches swapped: another image made of the same patches.
    swapped = jnp.roll(IMAGES, 2, axis=1)
    with_positions = logits(params, IMAGES) - logits(params, swapped)
    assert np.abs(with_positions).max() > 1e-4
    params["positions"] = jnp.zeros_like(params["positions"])
    np.testing.assert_allclose(logits(params, IMAGES), logits(params, swapped), atol=1e-5)
