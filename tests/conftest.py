"""Two virtual CPU devices, strict promotion for our own code, derandomised properties."""

import os

# Before jax is imported: device counts are read when the backend starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2"
    # Tests compile much and compute little: half their time would be LLVM optimising.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "jaxlab",
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxlab")


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=["jit", "eager"])
def maybe_jit(request):
    """`jax.jit`, and the identity: what must hold compiled must hold op by op."""
    return jax.jit if request.param == "jit" else lambda fn: fn
