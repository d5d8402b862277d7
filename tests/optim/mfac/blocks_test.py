"""Block-diagonal factors against dense inverses of the blocks, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.optim.mfac.blocks import block_diag, block_factor, block_groups, block_ihvp


def gradients(m, d, seed=0):
    return np.random.default_rng(seed).standard_normal((m, d))


def block_inverse(g, damp, block):
    d = g.shape[1]
    fisher = damp * np.eye(d) + g.T @ g / len(g)
    number = np.arange(d) // block
    return np.linalg.inv(np.where(number[:, None] == number[None], fisher, 0))


# Dense inverses, with a short last block; factors, with one and without; one block of everything.
@pytest.mark.parametrize(
    ("m", "d", "block"), [(8, 22, 4), (3, 22, 5), (4, 12, 6), (8, 7, 20), (4, 9, 0)]
)
def test_products_and_diagonal_are_those_of_the_dense_blocks(m, d, block):
    g = gradients(m, d)
    expected = block_inverse(g, 1e-2, block or d)
    with jax.enable_x64(True):
        f = block_factor(jnp.asarray(g), 1e-2, block)
        assert (f.inverse is None) == (f.block > m)
        x = np.linspace(-1, 1, d)
        scale = np.abs(expected).max()
        actual = block_ihvp(f, jnp.asarray(x))
        np.testing.assert_allclose(actual, expected @ x, rtol=0, atol=1e-12 * scale)
        np.testing.assert_allclose(block_diag(f), np.diag(expected), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("m", [3, 8])
def test_groups_are_cut_from_the_inverse(m):
    g = gradients(m, 12)
    expected = block_inverse(g, 0.1, 4)
    with jax.enable_x64(True):
        found = block_groups(block_factor(jnp.asarray(g), 0.1, 4), 2)
    for i, tile in enumerate(np.asarray(found)):
        np.testing.assert_allclose(tile, expected[2 * i : 2 * i + 2, 2 * i : 2 * i + 2], atol=1e-12)


def test_blocks_of_one_are_the_plain_formula():
    g = gradients(5, 9)
    with jax.enable_x64(True):
        diag = block_diag(block_factor(jnp.asarray(g), 0.3, 1))
    np.testing.assert_allclose(diag, 1 / (0.3 + np.mean(g**2, axis=0)), rtol=1e-14)


def test_it_can_be_traced_with_a_traced_damping():
    g = jnp.asarray(gradients(4, 6), jnp.float32)
    eager = block_ihvp(block_factor(g, 0.1, 3), jnp.ones(6))
    traced = jax.jit(lambda damp: block_ihvp(block_factor(g, damp, 3), jnp.ones(6)))(0.1)
    np.testing.assert_allclose(traced, eager, rtol=1e-5)


def test_what_is_refused():
    g = jnp.ones((2, 6))
    with pytest.raises(ValueError, match="block=-1"):
        block_factor(g, 1.0, -1)
    with pytest.raises(ValueError, match="damp=-1.0 must be positive"):
        block_factor(g, -1.0, 2)
    with pytest.raises(ValueError, match=r"must be of \(6,\)"):
        block_ihvp(block_factor(g, 1.0, 2), jnp.ones(5))
    with pytest.raises(ValueError, match="group=2 must divide block=3.*nearest block: 2"):
        block_groups(block_factor(g, 1.0, 3), 2)
