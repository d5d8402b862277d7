"""Two devices: columns of a right-hand side need no communication, a sharded grid is right."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.kron.operator import kron_matmat, kron_matvec

COLLECTIVE = re.compile(r"all-(gather|reduce|to-all)|collective-permute|reduce-scatter")


@pytest.fixture
def mesh():
    """A mesh of two devices."""
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def compiled(mesh, spec, fn, factors, x):
    """The program with x sharded, and its result."""
    x = jax.device_put(x, NamedSharding(mesh, spec))
    whole = NamedSharding(mesh, PartitionSpec())
    factors = jax.device_put([jnp.asarray(f) for f in factors], whole)
    program = jax.jit(fn, out_shardings=NamedSharding(mesh, spec)).lower(factors, x).compile()
    return program.as_text(), program(factors, x)


def test_columns_are_sharded_without_communication(mesh):
    a, b, x = draw((6, 6), (4, 4), (24, 8))
    text, found = compiled(mesh, PartitionSpec(None, "data"), kron_matmat, (a, b), x)
    assert not COLLECTIVE.search(text)
    assert len({s.device for s in found.addressable_shards}) == 2
    np.testing.assert_allclose(found, np.kron(a, b) @ x, atol=1e-4)


def test_a_stack_of_vectors_is_sharded_without_communication(mesh):
    a, b, x = draw((6, 6), (4, 4), (8, 24))
    text, found = compiled(mesh, PartitionSpec("data"), kron_matvec, (a, b), x)
    assert not COLLECTIVE.search(text)
    np.testing.assert_allclose(found, x @ np.kron(a, b).T, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sharded_grid_is_right(mesh, axis):
    a, b, x = draw((6, 6), (4, 4), (6, 4))
    spec = PartitionSpec(*("data" if i == axis else None for i in range(2)))
    text, found = compiled(mesh, spec, kron_matvec, (a, b), x)
    assert COLLECTIVE.search(text)
    np.testing.assert_allclose(found, a @ x @ b.T, atol=1e-4)
