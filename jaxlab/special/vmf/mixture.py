"""Mixtures of von Mises-Fisher distributions, fitted by expectation maximisation.

Source: A. Banerjee, I. S. Dhillon, J. Ghosh, S. Sra, "Clustering on the Unit Hypersphere using von
Mises-Fisher Distributions", JMLR 2005 (soft-movMF).

Differs from the source: kappa solves A_p(kappa) = r instead of being approximated, and components
may be held back by a prior: that many points spread over the sphere, which sum to 0.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.special.promotion import check_above, check_unit, promoted
from jaxlab.special.vmf.density import log_constant
from jaxlab.special.vmf.estimation import direction, vmf_kappa_from_r


class VmfMixture(NamedTuple):
    """A mixture of k components on the sphere of p dimensions.

    Attributes:
      log_weights: (k,), the logarithms of shares that sum to 1; -inf for an empty component.
      mu: mean directions, unit vectors (k, p).
      kappa: concentrations (k,), finite.
    """

    log_weights: jax.Array
    mu: jax.Array
    kappa: jax.Array


def component_log_prob(y: jax.Array, mu: jax.Array, kappa: jax.Array) -> jax.Array:
    """Log-densities of every point under every component.

    By one product of matrices: where kappa is above 1 / eps, the rounding of mu.y shows.

    Args:
      y: unit vectors (n, p), floating, float32 or wider.
      mu: unit vectors (k, p).
      kappa: finite concentrations (k,).

    Returns:
      (n, k).
    """
    p = y.shape[-1]
    constants = log_constant(float(p), True, jnp.full_like(kappa, p), kappa)
    return constants[None, :] + kappa[None, :] * (exact_product(y, mu.T) - 1)


def exact_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x @ y` in the arrays' own precision: kappa multiplies what a GPU's default rounds away."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def vmf_mixture_log_prob(y: Any, mixture: VmfMixture) -> jax.Array:
    """Logarithm of a mixture's density at points.

    Args:
      y: unit vectors (n, p).
      mixture: of k components.

    Returns:
      (n,).

    >>> one = VmfMixture(jnp.zeros(1), jnp.array([[0.0, 1.0]]), jnp.zeros(1))
    >>> f"{vmf_mixture_log_prob(jnp.array([[1.0, 0.0]]), one)[0]:.4f}"  # -log(2 pi)
    '-1.8379'
    """
    joint, dtype = _joint("vmf_mixture_log_prob", y, mixture)
    return jax.nn.logsumexp(joint, axis=-1).astype(dtype)


def vmf_mixture_responsibilities(y: Any, mixture: VmfMixture) -> jax.Array:
    """The probability of every component, given a point: (n, k), rows that sum to 1."""
    joint, dtype = _joint("vmf_mixture_responsibilities", y, mixture)
    return jax.nn.softmax(joint, axis=-1).astype(dtype)


def vmf_mixture_step(
    y: Any, mixture: VmfMixture, weights: Any = None, *, prior: float = 0.0
) -> tuple[VmfMixture, jax.Array]:
    """One step of EM, a pure function.

    A component that is left without points keeps its direction and concentration, with weight 0.
    The likelihood has no bound where a component holds one point only: its kappa is then as large
    as the dtype can tell from infinite, unless there is a prior. Without any weight the mixture is
    what it was, and its likelihood 0.

    Args:
      y: unit vectors (n, p).
      mixture: of k components.
      weights: of the points (n,), 0 or more; None is 1 for each.
      prior: points spread over the sphere that every component holds beside its own.

    Returns:
      The mixture after the step, and the mean log-likelihood before it.

    Raises:
      ValueError: y has a row that is not of length 1; a weight or the prior is negative; there are
        not as many weights as points.
    """
    owner = "vmf_mixture_step"
    check_above(owner, 0, prior=prior, **({} if weights is None else {"weights": weights}))
    check_unit(owner, y=y)
    (y, weight, *parts), dtype = promoted(
        owner, y=y, weights=1.0 if weights is None else weights, **mixture._asdict()
    )
    if weight.shape not in ((), y.shape[:1]):
        raise ValueError(f"{owner}: weights of {weight.shape} must be {y.shape[:1]}, one a point")
    weight = jnp.broadcast_to(weight, y.shape[:1])
    new = _step(y, weight, VmfMixture(*parts), jnp.asarray(prior, y.dtype))
    return jax.tree.map(lambda x: x.astype(dtype), new)


@jax.jit
def _step(
    y: jax.Array, weight: jax.Array, mixture: VmfMixture, prior: jax.Array
) -> tuple[VmfMixture, jax.Array]:
    joint = _joint_of(y, mixture)
    likelihood = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
    share = jnp.exp(joint - likelihood) * weight[:, None]
    held, given = jnp.sum(share, axis=0), jnp.sum(weight)
    total = jnp.where(given == 0, jnp.ones_like(given), given)
    empty = held <= jnp.finfo(held.dtype).tiny
    mean = exact_product(share.T, y) / jnp.where(empty, jnp.ones_like(held), held + prior)[:, None]
    mu, r = direction(mean)
    found = vmf_kappa_from_r(y.shape[-1], jnp.minimum(r, below_one(r.dtype)))
    new = VmfMixture(
        jnp.where(given == 0, mixture.log_weights, jnp.log(held / total)),
        jnp.where(empty[:, None], mixture.mu, mu),
        jnp.where(empty, mixture.kappa, found),
    )
    return new, jnp.sum(likelihood[:, 0] * weight) / total


def vmf_mixture_init(key: jax.Array, y: Any, components: int) -> VmfMixture:
    """A mixture to start from: equal weights, directions of points, one concentration.

    The points are drawn one after the other, each with probability proportional to its distance
    1 - cosine from the nearest one drawn before (k-means++, D. Arthur and S. Vassilvitskii, 2007,
    on the sphere). The concentration is that of all points together.

    Args:
      key: of the draws.
      y: unit vectors (n, p).
      components: how many, 1 to n.

    Raises:
      ValueError: fewer than one component, or more than points.
    """
    (y,), dtype = promoted("vmf_mixture_init", y=y)
    if y.ndim != 2:
        raise ValueError(f"vmf_mixture_init: y of {y.shape} must be points (n, p)")
    if isinstance(components, bool) or not isinstance(components, int):
        raise TypeError(f"vmf_mixture_init: components={components!r} must be a whole number")
    if not 1 <= components <= len(y):
        raise ValueError(
            f"vmf_mixture_init: components={components} must be in [1, {len(y)}], the points"
        )
    start = _start(components, key, y)
    return jax.tree.map(lambda x: x.astype(dtype), start)


@partial(jax.jit, static_argnums=0)
def _start(components: int, key: jax.Array, y: jax.Array) -> VmfMixture:
    keys = jax.random.split(key, components)

    def draw(distance, key):
        row = y[jax.random.categorical(key, jnp.log(distance))]
        left = jnp.minimum(distance, jnp.maximum(1 - exact_product(y, row), 0))
        # Where all points have been met, any may be drawn again.
        return jnp.where(jnp.any(left > 0), left, jnp.ones_like(left)), row

    _, mu = jax.lax.scan(draw, jnp.full(y.shape[:1], 2.0, y.dtype), keys)
    _, r = direction(jnp.mean(y, axis=0))
    kappa = vmf_kappa_from_r(y.shape[-1], jnp.minimum(r, below_one(r.dtype)))
    log_weights = jnp.full((components,), -jnp.log(components), y.dtype)
    return VmfMixture(log_weights, mu, jnp.broadcast_to(kappa, (components,)))


def vmf_mixture_fit(
    key: jax.Array,
    y: Any,
    components: int,
    *,
    iterations: int = 50,
    weights: Any = None,
    prior: float = 0.0,
) -> tuple[VmfMixture, jax.Array]:
    """Fits a mixture by a fixed number of EM steps from `vmf_mixture_init`.

    Args:
      key: of the start.
      y: unit vectors (n, p).
      components: how many.
      iterations: steps of EM.
      weights: of the points (n,), 0 or more; None is 1 for each.
      prior: as in `vmf_mixture_step`.

    Returns:
      The mixture, and the mean log-likelihood before every step: (iterations,). Without a prior it
      never falls, but for rounding.

    Raises:
      ValueError: as `vmf_mixture_step` and `vmf_mixture_init`.

    >>> y = jnp.array([[0.0, 1.0], [0.6, 0.8], [-1.0, 0.0], [-0.8, 0.6]])
    >>> mixture, trace = vmf_mixture_fit(jax.random.key(0), y, 2, iterations=5)
    >>> mixture.mu.shape, trace.shape, bool(trace[-1] >= trace[0])
    ((2, 2), (5,), True)
    """
    check_unit("vmf_mixture_fit", y=y)
    start = vmf_mixture_init(key, y, components)

    def step(mixture, _):
        return vmf_mixture_step(y, mixture, weights, prior=prior)

    return jax.lax.scan(step, start, length=iterations)


def below_one(dtype: Any) -> float:
    """The largest mean resultant length that a fit may have and keep a finite concentration."""
    return 1 - 4 * float(jnp.finfo(dtype).eps)


def _joint(owner: str, y: Any, mixture: VmfMixture) -> tuple[jax.Array, Any]:
    """Log weight + log density, (n, k), and the dtype of results."""
    check_unit(owner, y=y)
    (y, *parts), dtype = promoted(owner, y=y, **mixture._asdict())
    if y.shape[-1:] != parts[1].shape[-1:]:
        raise ValueError(
            f"{owner}: y of {y.shape} must have the {parts[1].shape[-1:]} coordinates of mixture.mu"
        )
    return _joint_of(y, VmfMixture(*parts)), dtype


@jax.jit
def _joint_of(y: jax.Array, mixture: VmfMixture) -> jax.Array:
    densities = component_log_prob(y, mixture.mu, mixture.kappa)
    return mixture.log_weights[None, :] + densities
