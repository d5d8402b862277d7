"""Draws from the von Mises-Fisher distribution.

Sources: G. Ulrich, "Computer Generation of Distributions on the m-Sphere", Applied Statistics 1984;
A. T. A. Wood, "Simulation of the von Mises Fisher distribution", Communications in Statistics 1994.

Differs from them: everything is written in 1 - mu.y, which keeps its digits where kappa is large,
and the acceptance test without differences of terms that grow with p and kappa.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.promotion import check_above, check_unit, promoted

# A proposal is accepted with probability above 0.6 for every p and kappa: what is left after this
# many rounds happens less than once in 1e25 draws, and is given the mode.
_ROUNDS = 64


def vmf_sample(key: jax.Array, mu: Any, kappa: Any, shape: tuple[int, ...] = ()) -> jax.Array:
    """Independent draws.

    The cosine with mu is drawn by rejection, for all draws together, in rounds that end when every
    draw has been accepted; the direction across mu is uniform. Not differentiable.

    Args:
      key: of the randomness.
      mu: mean directions, unit vectors (..., p), p at least 2.
      kappa: concentrations (...), broadcast with mu's leading axes: 0 is uniform, inf is mu.
      shape: of independent draws from each distribution.

    Returns:
      Unit vectors (*shape, ..., p).

    Raises:
      ValueError: mu is known to have a row that is not of length 1, or a kappa is negative.

    >>> y = vmf_sample(jax.random.key(0), jnp.array([0.0, 1.0]), 1e4, (3,))
    >>> y.shape, bool(jnp.all(y[:, 1] > 0.99))
    ((3, 2), True)
    """
    if isinstance(shape, int):
        raise TypeError(f"vmf_sample: shape={shape} must be a tuple; nearest: ({shape},)")
    check_unit("vmf_sample", mu=mu)
    check_above("vmf_sample", 0, kappa=kappa)
    (mu, kappa), dtype = promoted("vmf_sample", mu=mu, kappa=kappa)
    p = mu.shape[-1]
    check_above("vmf_sample", 2, p=p)
    drawn = (*shape, *np.broadcast_shapes(mu.shape[:-1], kappa.shape))
    kappa = jnp.broadcast_to(kappa, drawn)
    mu = jnp.broadcast_to(mu, (*drawn, p))
    along, across = jax.random.split(key)
    gap = _gap(along, jnp.asarray((p - 1) / 2, kappa.dtype), kappa)
    normal = jax.random.normal(across, (*drawn, p - 1), kappa.dtype)
    tangent = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    flat = jnp.concatenate(
        [(1 - gap)[..., None], jnp.sqrt(gap * (2 - gap))[..., None] * tangent], axis=-1
    )
    # The reflection that swaps the first axis and -mu or mu, whichever is further from it.
    sign = jnp.where(mu[..., :1] < 0, -1, 1).astype(mu.dtype)
    normal = mu.at[..., :1].add(sign)
    length = 1 + jnp.abs(mu[..., :1])
    reflected = flat - normal * (jnp.sum(normal * flat, axis=-1, keepdims=True) / length)
    return (-sign * reflected).astype(dtype)


@jax.jit
def _gap(key: jax.Array, half: jax.Array, kappa: jax.Array) -> jax.Array:
    """Draws of 1 - mu.y, of kappa's shape; half is (p - 1) / 2."""
    finite = kappa < jnp.inf  # NaN is not, and has nothing to be drawn
    k = jnp.where(finite, kappa, jnp.ones_like(kappa))
    # (p - 1) / (2 k + sqrt(4 k^2 + (p - 1)^2)); e is 1 - x_0, the mode of the proposals.
    b = half / (k + jnp.hypot(k, half))
    e = 2 * b / (1 + b)

    def propose(state):
        done, gap, round_ = state
        beta_key, uniform_key = jax.random.split(jax.random.fold_in(key, round_))
        z = jax.random.beta(beta_key, half, half, k.shape, k.dtype)
        t = 2 * b * z / (1 - (1 - b) * z)
        ratio = (t - e) * (1 - e) / (e * (2 - e))
        margin = k * (e - t) + 2 * half * jnp.log1p(ratio)
        # 1 - u, because u may be 0.
        accepted = margin >= jnp.log1p(-jax.random.uniform(uniform_key, k.shape, k.dtype))
        return done | accepted, jnp.where(accepted & ~done, t, gap), round_ + 1

    def open_(state):
        done, _, round_ = state
        return (round_ < _ROUNDS) & ~jnp.all(done)

    start = (~finite, e, jnp.zeros((), jnp.int32))
    _, gap, _ = jax.lax.while_loop(open_, propose, start)
    return jnp.where(finite, gap, jnp.where(jnp.isnan(kappa), kappa, jnp.zeros_like(gap)))
