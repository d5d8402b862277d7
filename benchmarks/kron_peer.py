"""The same operations by gpytorch's linear operators, on the same device if torch reaches it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from kron_cells import NOISE, Size, covariance
from linear_operator.operators import (  # pyright: ignore[reportMissingImports]
    ConstantDiagLinearOperator,
    DenseLinearOperator,
    KroneckerProductAddedDiagLinearOperator,
    KroneckerProductLinearOperator,
)

_SECONDS = 0.05


def peer_speed(size: Size, rounds: int) -> dict[str, Any]:
    """Times of gpytorch; a new operator each time, since it remembers its decompositions."""
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    factors = [
        torch.tensor(np.asarray(covariance(n, size.dtype)), device=device) for n in size.shape
    ]
    x = torch.randn(int(np.prod(size.shape)), 1, dtype=factors[0].dtype, device=device)

    def product() -> Any:
        return KroneckerProductLinearOperator(*(DenseLinearOperator(f) for f in factors))

    def shifted() -> Any:
        noise = torch.full((1,), NOISE, dtype=x.dtype, device=device)
        diag = ConstantDiagLinearOperator(noise, diag_shape=x.shape[0])
        added = KroneckerProductAddedDiagLinearOperator(product(), diag)
        return added.solve(x), added.logdet()

    ready = product()
    calls = {
        "matvec": lambda: ready @ x,
        # Ours by Cholesky factors; of a Kronecker product theirs is by eigendecompositions.
        "cholesky and logdet": lambda: product().logdet(),
        "eigh, solve and logdet": shifted,
    }
    with torch.no_grad():
        found = {name: _seconds(call, rounds, device) for name, call in calls.items()}
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    return {**found, "versions": versions}


def _seconds(call: Callable[[], Any], rounds: int, device: str) -> dict[str, Any]:
    def timed(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    timed(1)
    count = max(1, round(_SECONDS / max(timed(1), 1e-7)))
    times = [timed(count) for _ in range(rounds)]
    return {"seconds": statistics.median(times), "spread": [min(times), max(times)]}
