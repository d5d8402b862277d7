"""In which order a GPU's host prepares what it launches."""

import jax
import jax.numpy as jnp

# Launches in a row from which XLA makes a CUDA graph (`xla_gpu_graph_min_graph_size`).
GRAPH = 5


def behind(x: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`x` and `first`; on CUDA what is computed from x is launched after what `first` is from.

    More than `GRAPH` launches in a row would be one CUDA graph, and the GPU would idle while the
    host prepares it; with one of them apart, the host does so while that runs. XLA has no word for
    that, but it ends a graph where something comes that none holds: a Fourier transform is the
    least of those.

    Args:
      x: floating, (m, ...), of which the others are computed; no digit of it changes.
      first: the result that comes before them.

    >>> [y.tolist() for y in behind(jnp.ones(2), jnp.zeros(1))]
    [[1.0, 1.0], [0.0]]
    """
    return jax.lax.platform_dependent(x, first, cuda=_apart, default=lambda *both: both)


def _apart(x: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, first = jax.lax.optimization_barrier((x, first))
    finite = jnp.isfinite(x.reshape(-1)[:2]).astype(jnp.float32)  # whatever x is
    return x + (0 * jnp.fft.rfft(finite)[0].real).astype(x.dtype), first
