"""The lowest scores against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core.selection import lowest


@pytest.mark.parametrize("n", [0, 1, 7, 20, 40])
def test_the_lowest_are_those_of_a_stable_sort(n):
    # Many ties, both zeros, negative numbers and infinities.
    scores = np.random.default_rng(0).integers(-3, 4, 40).astype(np.float32)
    scores[3:6], scores[10], scores[11] = -0.0, np.inf, -np.inf
    expected = np.zeros(40, bool)
    expected[np.argsort(scores, kind="stable")[:n]] = True
    np.testing.assert_array_equal(lowest(jnp.asarray(scores), n), expected)


def test_the_lowest_tell_neighbouring_floats_apart():
    one = np.float32(1)
    scores = np.array([np.nextafter(one, 2 * one), one, np.nan, np.nextafter(one, 0 * one)])
    found = lowest(jnp.asarray(scores, jnp.float32), 2)
    assert found.tolist() == [False, True, False, True]
    with jax.enable_x64(True):
        wide = jnp.asarray([1 + 1e-15, 1.0])
        assert lowest(wide, 1).tolist() == [False, True]
