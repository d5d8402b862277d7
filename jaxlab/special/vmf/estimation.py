"""Maximum-likelihood estimates of the von Mises-Fisher distribution.

Sources: A. Banerjee, I. S. Dhillon, J. Ghosh, S. Sra, "Clustering on the Unit Hypersphere using von
Mises-Fisher Distributions", JMLR 2005 (where the iteration starts); A. Tanabe, K. Fukumizu, S. Oba,
T. Takenouchi, S. Ishii, "Parameter estimation for von Mises-Fisher distributions", Computational
Statistics 2007 (bounds of the solution); S. Sra, "A short note on parameter approximation for von
Mises-Fisher distributions", Computational Statistics 2012 (Newton steps).

Differs from them: the derivative of A_p is not 1 - A^2 - (p - 1) A / kappa, whose terms cancel
where kappa is large, but that of the expansion which A itself comes from.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxlab.special.promotion import check_above, check_unit, promoted
from jaxlab.special.vmf.density import Known, mean_resultant, of_dimension, resultant_gap


def vmf_kappa_from_r(p: Any, r: Any, *, steps: int = 4) -> jax.Array:
    """The concentration whose mean resultant length is r: `A_p(kappa) = r`.

    A fixed number of Newton steps from Banerjee's approximation, held between Tanabe's bounds. Its
    derivatives are those of the solution, and not of the iteration. kappa is as well determined as
    1 - r, so that in float32 an r near 1 leaves it few digits.

    Args:
      p: dimension, 2 or more: a number or an array.
      r: mean resultant lengths, broadcast with p.
      steps: Newton steps; four reach float64.

    Returns:
      0 at r = 0, inf at r = 1, NaN outside of [0, 1].

    Raises:
      ValueError: p is known to be below 2, or `steps` is negative.

    >>> f"{vmf_kappa_from_r(2048, 0.5):.2f}"
    '1365.07'
    """
    _check_steps("vmf_kappa_from_r", steps)
    known, p, r, dtype = of_dimension("vmf_kappa_from_r", p, r)
    return _kappa(known, steps, p, r, 1 - r).astype(dtype)


def _check_steps(owner: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"{owner}: steps={steps!r} must be a whole number, 0 or more; nearest: 4")


def vmf_fit(
    y: Any, weights: Any = None, axis: int = 0, steps: int = 4
) -> tuple[jax.Array, jax.Array]:
    """The maximum-likelihood estimate from points on the sphere.

    kappa has the digits of the points, however close they are; it is differentiated as a function
    of their mean.

    Args:
      y: unit vectors (..., p); several fits at once if there are axes besides `axis` and the last.
      weights: of the points, 0 or more, broadcast to y's shape without its last axis; None is 1
        for each.
      axis: the axis of y that runs over the points.
      steps: Newton steps of `vmf_kappa_from_r`.

    Returns:
      mu, unit vectors, y's shape without `axis`, and kappa, without the last axis too. Points that
      are all the same have kappa = inf. Where the mean is 0, or there is no
      weight, kappa is 0 and mu the first unit vector.

    Raises:
      ValueError: y has fewer than two axes or a row that is not of length 1, a weight is negative,
        or `axis` is the last.

    >>> mu, kappa = vmf_fit(jnp.array([[0.6, 0.8], [0.8, 0.6]]))
    >>> f"{mu[0]:.4f}, {mu[1]:.4f}, {kappa:.2f}"
    '0.7071, 0.7071, 50.00'
    """
    _check_steps("vmf_fit", steps)
    if np.ndim(y) < 2 or not np.size(y):
        raise ValueError(
            f"vmf_fit: y of shape {np.shape(y)} must be points (..., n, p), n 1 or more"
        )
    check_unit("vmf_fit", y=y)
    given = {} if weights is None else {"weights": weights}
    check_above("vmf_fit", 0, **given)
    (y, *rest), dtype = promoted("vmf_fit", y=y, **given)
    check_above("vmf_fit", 2, p=y.shape[-1])
    if not -y.ndim <= axis < y.ndim or axis % y.ndim == y.ndim - 1:
        raise ValueError(
            f"vmf_fit: axis={axis} must be one of y's {y.ndim}, and not the last, of coordinates; "
            f"nearest: {y.ndim - 2}"
        )
    axis = axis % y.ndim
    total = rest[0] if rest else jnp.ones((), y.dtype)
    pairs = zip(total.shape[::-1], y.shape[-2::-1], strict=False)
    if total.ndim >= y.ndim or any(here not in (1, there) for here, there in pairs):
        raise ValueError(f"vmf_fit: weights of {total.shape} must be {y.shape[:-1]}, one a point")
    total = jnp.broadcast_to(total, y.shape[:-1])
    mu, kappa = _fit(axis, steps, y, total)
    return mu.astype(dtype), kappa.astype(dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _fit(axis: int, steps: int, y: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Shares, of the largest first: no sum overflows, whatever the scale of the weights.
    largest = jnp.max(total, axis=axis, keepdims=True)
    total = total / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    sums = jnp.sum(total, axis=axis, keepdims=True)
    share = total / jnp.where(sums > 0, sums, jnp.ones_like(sums))
    mu, r = direction(jnp.sum(y * share[..., None], axis=axis))
    p = y.shape[-1]
    # The mean of equal points is rounded: they are asked themselves.
    heaviest = jnp.argmax(total, axis=axis, keepdims=True)[..., None]
    one = jnp.take_along_axis(y, heaviest, axis=axis)
    same = jnp.all((y == one) | (total == 0)[..., None], axis=(axis, -1)) & (r > 0)
    mu = jnp.where(same[..., None], jnp.squeeze(one, axis), mu)
    # 1 - r of points close together, by their distances: r is rounded where it is near 1.
    apart = jnp.sum((y - jnp.expand_dims(mu, axis)) ** 2, axis=-1)
    gap = jnp.where(r > 0.5, jnp.sum(share * apart, axis=axis) / 2, 1 - r)
    return mu, _kappa(float(p), steps, jnp.full_like(r, p), r, jax.lax.stop_gradient(gap))


def direction(mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unit vectors along means (..., p), the first of the basis for 0; and lengths, at most 1."""
    # In units of the largest coordinate, whose square may be below the smallest number.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(mean), axis=-1))
    some = largest != 0  # of NaN, too, which nothing is to hide
    unit = jnp.where(some, largest, jnp.ones_like(largest))
    scaled = mean / unit[..., None]
    square = jnp.sum(scaled * scaled, axis=-1)
    length = jnp.sqrt(jnp.where(some, square, jnp.ones_like(square)))
    first = jnp.zeros_like(mean).at[..., 0].set(1)
    mu = jnp.where(some[..., None], scaled / length[..., None], first)
    # Rounding takes the mean of equal points out of the ball.
    return mu, jnp.where(some, jnp.minimum(length * unit, 1), jnp.zeros_like(square))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _kappa(known: Known, steps: int, p: jax.Array, r: jax.Array, gap: jax.Array) -> jax.Array:
    """Of r and of 1 - r, which may be known to more digits; r alone has a derivative."""
    inside = (r > 0) & (gap > 0)
    edge = jnp.where(gap == 0, jnp.full_like(r, jnp.inf), jnp.where(r == 0, r, r * jnp.nan))
    safe = jnp.where(inside, r, jnp.full_like(r, 0.5))
    gap = jnp.where(inside, gap, jnp.full_like(r, 0.5))
    over = safe / (gap * (2 - gap))
    low, high = over * (p - 2), over * p
    resultant = partial(mean_resultant, known, p)

    def newton(_, kappa):
        found, slope = jax.jvp(resultant, (kappa,), (jnp.ones_like(kappa),))
        excess = jnp.where(gap < 0.5, gap - resultant_gap(known, p, kappa), found - safe)
        # Where 1 - r is a few ulp, a step is mostly rounding: the bounds keep it in place.
        return jnp.clip(kappa - excess / slope, low, high)

    kappa = jax.lax.fori_loop(0, steps, newton, over * (p - safe * safe))
    return jnp.where(inside, kappa, edge)


@partial(_kappa.defjvp, symbolic_zeros=True)
def _kappa_jvp(known, steps, primals, tangents):
    p, r, gap = primals
    kappa = _kappa(known, steps, p, r, gap)
    at_end = kappa == jnp.inf
    safe = jnp.where(at_end, jnp.ones_like(kappa), kappa)
    resultant = partial(mean_resultant, known)
    one, zero = jnp.ones_like(r), jnp.zeros_like(r)
    _, slope = jax.jvp(resultant, (p, safe), (zero, one))
    slope = jnp.where(at_end, zero, slope)
    change = zero
    if not isinstance(tangents[1], SymbolicZero):
        change = change + tangents[1] / slope
    if not isinstance(tangents[0], SymbolicZero):
        _, of_p = jax.jvp(resultant, (p, safe), (one, zero))
        change = change - tangents[0] * of_p / slope
    return kappa, change
