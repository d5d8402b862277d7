"""Two virtual CPU devices, strict promotion for our own code, derandomised properties."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before jax is imported: device counts are read when the backend starts.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2"
    # Tests compile much and compute little: half their time would be LLVM optimising.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if version("jaxlib").startswith("0.10."):
    # The other emitters of these versions compile in two thirds of the time.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Threads of XLA's pool, of which a kernel that is interpreted takes one for every warpgroup.
os.environ.setdefault("NPROC", "8")
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXLAB_TEST_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile the same programs. The folder is this session's, which its workers share.
    folder = tempfile.mkdtemp(prefix="jaxlab-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

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


@pytest.fixture
def start_training():
    """Starts `train.py` on a tiny model, in a process of its own with one CPU device."""

    def start(folder, *settings):
        command = [
            sys.executable,
            "train.py",
            "--config=configs/digits_vit.py:smoke",
            f"--config.workdir={folder}",
            "--config.model.depth=1",
            "--config.model.d_model=32",
            "--config.model.d_mlp=64",
            "--config.compress.attn.rank=4",
            *settings,
        ]
        return subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def on_an_h100():
    """Makes contexts in which kernels are lowered as for an H100, which is not there."""
    from jax._src.mesh import AbstractDevice

    def context(kind="NVIDIA H100"):
        device = AbstractDevice(device_kind=kind, num_cores=132, platform="gpu")
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
        return jax.sharding.use_abstract_mesh(mesh)

    return context
