"""Stretched rotary positions; the rotation itself is tested with the decoder."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.models.decoder import decoder
from jaxlab.models.rotary import RopeScaling, rotary


def stretched(frequency, factor, low, high, length):
    """The reference's three cases, by wavelength."""
    wavelength = 2 * np.pi / frequency
    if wavelength < length / high:
        return frequency
    if wavelength > length / low:
        return frequency / factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def test_wavelengths_are_stretched_case_by_case():
    numbers = (32.0, 1.0, 4.0, 8192)
    frequencies = 500000.0 ** (-np.arange(64) / 64)
    expected = np.array([stretched(f, *numbers) for f in frequencies])
    got = RopeScaling(*numbers)(jnp.asarray(frequencies, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # Every case occurs.
    ratio = expected / frequencies
    assert (ratio == 1).any()
    assert (ratio == 1 / 32).any()
    assert ((ratio < 1) & (ratio > 1 / 32)).any()


def test_a_slow_pair_turns_as_at_a_nearer_position():
    x = jnp.ones((1, 3, 1, 2))
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=1)
    far, near = jnp.array([0, 4, 8]), jnp.arange(3)
    np.testing.assert_allclose(rotary(x, far, scaling=scaling), rotary(x, near), atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 0.0}, "factor=0.0 must be positive"),
        ({"factor": 2.0, "low_freq_factor": 4.0}, "low_freq_factor=4.0 must be less than"),
        ({"factors": 2.0}, "rope_scaling takes no 'factors'; did you mean 'factor'"),
        ({}, "rope_scaling needs 'factor'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        decoder(vocab_size=8, seq_len=4, d_model=8, rngs=nnx.Rngs(0), rope_scaling=scaling)
