"""Whether SparseGPT fits: peak memory of pruning one square kernel, and the time that it takes.

    python benchmarks/sparsegpt_memory.py --size=4096

The peak is what XLA's plan says: arguments, results and temporary buffers. The claim is that it is
at most four times the kernel in float32, besides the Hessian.
"""

import functools
import resource
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from records import store

from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.oneshot import sparsegpt_prune

_SIZE = flags.DEFINE_integer("size", 4096, "Inputs and outputs of the kernel.")
_N = flags.DEFINE_integer("n", 2, "Kept weights of a group.")
_M = flags.DEFINE_integer("m", 4, "Size of a group.")
_FOLDER = flags.DEFINE_string("folder", "", "Where to store the result; the shared one if empty.")
LIMIT = 4.0


def main(argv: list[str]) -> None:
    """Plans, runs, prints and stores; fails if the plan takes more than the limit."""
    del argv
    size, pattern = _SIZE.value, NMPattern(_N.value, _M.value)
    prune = jax.jit(functools.partial(sparsegpt_prune, pattern=pattern))
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    compiled = prune.lower(shape, shape).compile()
    plan = compiled.memory_analysis()
    assert plan is not None, "this backend does not say what memory it plans"
    kernel = hessian = 4 * size**2
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    peak -= plan.alias_size_in_bytes
    ratio = (peak - hessian) / kernel

    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (size, size))
    x = jax.random.normal(keys[1], (2 * size, size))
    # Neighbouring inputs alike: a Hessian that is not nearly diagonal.
    x = x + jnp.roll(x, 1, axis=1) + 0.5 * jax.random.normal(keys[2], (2 * size, 1))
    h = x.T @ x
    del x
    jax.block_until_ready((w, h))
    began = time.perf_counter()
    pruned, mask = jax.block_until_ready(compiled(w, h))
    seconds = time.perf_counter() - began
    change = w - pruned
    plain = jnp.where(mask, 0.0, w)
    error, without = (float(jnp.sqrt(jnp.sum(d * (h @ d)))) for d in (change, plain))
    result = {
        "size": size,
        "pattern": f"{pattern.n}:{pattern.m}",
        "kernels_in_float32_besides_the_hessian": round(ratio, 3),
        "limit": LIMIT,
        "argument_bytes": plan.argument_size_in_bytes,
        "output_bytes": plan.output_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "seconds": round(seconds, 2),
        "error_relative_to_the_mask_alone": round(error / without, 4),
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if ratio > LIMIT:
        raise SystemExit(f"sparsegpt_memory: {ratio:.2f} kernels are more than {LIMIT}")
    store("sparsegpt_memory", result, _FOLDER.value)


if __name__ == "__main__":
    app.run(main)
