"""Lowering for a GPU that is not there."""

import jax
import pytest


@pytest.fixture
def on_an_h100():
    """Makes contexts in which kernels are lowered as for an H100."""
    from jax._src.mesh import AbstractDevice

    kind = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
    return lambda: jax.sharding.use_abstract_mesh(mesh)
