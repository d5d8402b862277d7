"""What orders launches changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.kernels import launches


@pytest.mark.parametrize("m", [1, 4])
def test_what_orders_launches_changes_no_digit(m):
    y = jax.random.normal(jax.random.key(1), 5)
    for weights in (
        jax.random.normal(jax.random.key(0), m),
        jnp.full(m, 3e38),
        jnp.full(m, -jnp.inf),
    ):
        got = jax.jit(launches._apart)(weights, y)
        jax.tree.map(np.testing.assert_array_equal, got, (weights, y))
    first = jax.make_jaxpr(launches._apart)(weights, y).eqns[0]
    assert first.primitive.name == "optimization_barrier"
    assert len(first.invars) == 2  # the weights wait for y
