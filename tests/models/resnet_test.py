import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.models.resnet import Block, resnet


def test_size_is_that_of_the_paper():
    # Table 6 of He et al.: 0.27 million parameters at depth 20.
    make = lambda: resnet(image_shape=(32, 32, 3), num_classes=10, rngs=nnx.Rngs(0))  # noqa: E731
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make)))
    assert round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 2) == 0.27
    kernels = [p for p in jax.tree.leaves(params) if p.ndim == 2]
    assert len(kernels) == 20


def block_of_ones():
    make = lambda: Block(2, 4, stride=2, groups=2, dtype=jnp.float32, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, state = nnx.split(nnx.eval_shape(make))
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), nnx.to_pure_dict(state))
    return nnx.merge(graphdef, params)


@pytest.mark.parametrize("length", [7, 8])
def test_a_block_without_its_branch_is_its_shortcut(length):
    block = block_of_ones()
    block.norm2.scale.set_value(jnp.zeros(4))
    block.norm2.bias.set_value(jnp.zeros(4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, length, 2)), jnp.float32)
    y = block(x)
    np.testing.assert_array_equal(y[..., :2], jax.nn.relu(x[:, ::2, ::2]))
    np.testing.assert_array_equal(y[..., 2:], jnp.zeros_like(y[..., 2:]))


def test_branch_and_shortcut_are_aligned():
    """A strided branch sees the 3x3 pixels around the pixel that the shortcut takes."""
    block = block_of_ones()
    influence = jax.grad(lambda x: block.conv1(x)[0, 2, 2, 0])(jnp.zeros((1, 8, 8, 2)))
    rows, columns = np.nonzero(np.asarray(influence)[0, :, :, 0])
    assert {*rows} == {3, 4, 5} == {*columns}
