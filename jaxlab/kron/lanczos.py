"""log det(P K P^T + sigma^2 I) of the cells that were seen, by stochastic Lanczos quadrature.

With S = I + mean(W) Lambda the determinant is split: log det S is exact, and only that of
S^-1/2 (I + Lambda^1/2 Q^T W Q Lambda^1/2) S^-1/2, which is near the identity, is estimated.

Sources: S. Ubaru, J. Chen, Y. Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos
Quadrature", 2017; J. Wenger et al., "Preconditioning for Scalable Gaussian Process Hyperparameter
Optimization", ICML 2022, for the split.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.kron.factorise import product_spectrum
from jaxlab.kron.iterative import kron_masked_solve, noise_grid
from jaxlab.kron.product import adjoint, apply_factors, as_common, as_grid, check_square, columns
from jaxlab.kron.shifted import Arrays, Eigh, decomposed, kron_add_scalar_logdet, once

# Of the solves for gradients, whose error is that of the probes anyway.
_GRADIENT_TOL = 1e-3


class Estimate(NamedTuple):
    """A number that was estimated from random probes.

    Attributes:
      value: scalar.
      error: its standard error over the probes; NaN if there was one.
    """

    value: jax.Array
    error: jax.Array


def kron_masked_logdet(
    factors: Sequence[jax.Array],
    mask: jax.Array,
    sigma2: jax.typing.ArrayLike,
    key: jax.Array,
    *,
    probes: int = 16,
    steps: int = 20,
    eigh: Eigh | None = None,
) -> Estimate:
    """An estimate of log det(P K P^T + diag(sigma^2)); of K + diag(d) if all cells were seen.

    Its gradient is estimated from the same probes, by solving with each of them; it is NaN if one
    of them does not converge. Reach stacks through `jax.vmap`.

    Args:
      factors: D real arrays (n_d, n_d), symmetric and positive semi-definite.
      mask: booleans (n_1, ..., n_D) or (N,).
      sigma2: positive; a scalar, or one of each cell.
      key: of the probes; the same key gives the same estimate.
      probes: how many.
      steps: of Lanczos, for each.
      eigh: what `kron_eigh` returned for the factors.

    Raises:
      ValueError: shapes do not fit, or `probes` or `steps` is less than 1.

    >>> seen = jnp.array([True, False])
    >>> est = kron_masked_logdet((3 * jnp.eye(2), jnp.eye(1)), seen, 1.0, jax.random.key(0))
    >>> round(est.value.item(), 4)  # log 4
    1.3863
    """
    name = "kron_masked_logdet"
    factors, _ = as_common(name, factors)
    check_square(name, factors)
    for argument, value in (("probes", probes), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}: {argument}={value} must be 1 or more; nearest: 1")
    n = columns(factors)
    mask, _ = as_grid(name, jnp.asarray(mask, bool), n)
    noise = noise_grid(name, sigma2, jnp.zeros(n, factors[0].dtype), n)
    signs = jax.random.rademacher(key, (probes, *n), factors[0].dtype)
    eig = decomposed(factors, eigh)
    return _logdet(steps, factors, eig, mask, noise, signs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logdet(
    steps: int,
    factors: Arrays,
    eig: tuple[Arrays, Arrays],
    mask: jax.Array,
    noise: jax.Array,
    signs: jax.Array,
) -> Estimate:
    lams, qs = eig
    backs = tuple(adjoint(q) for q in qs)
    zero = jnp.zeros_like(noise)
    weight = jnp.where(mask, 1 / noise, zero)
    spectrum = product_spectrum(lams)
    scale = 1 + jnp.mean(weight) * spectrum
    root, half = jnp.sqrt(spectrum / scale), 1 / scale

    def product(v: jax.Array) -> jax.Array:
        seen = weight * apply_factors(qs, root * v)
        return half * v + root * apply_factors(backs, seen)

    exact = jnp.sum(jnp.where(mask, jnp.log(noise), zero)) + jnp.sum(jnp.log(scale))
    # One probe after the other: each is as large as the grid.
    values = jax.lax.map(lambda v: _quadrature(product, v, steps), signs)
    # Of one probe alone it is not known: 0 / 0.
    spread = jnp.std(values) / jnp.sqrt(jnp.asarray(len(signs) - 1, values.dtype))
    return Estimate(exact + jnp.mean(values), spread)


def _quadrature(product: Callable[[jax.Array], jax.Array], v: jax.Array, steps: int) -> jax.Array:
    """v^T log(A) v by Gauss quadrature with `steps` nodes."""
    size = jnp.linalg.norm(v.reshape(-1))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array], _: None):
        before, now, beta = carry
        image = product(now) - beta * before
        alpha = jnp.sum(image * now)
        image = image - alpha * now
        beta = jnp.linalg.norm(image.reshape(-1))
        # The space is exhausted: what follows is uncoupled, and has no weight.
        more = beta > 100 * jnp.finfo(v.dtype).eps
        beta = jnp.where(more, beta, jnp.zeros_like(beta))
        later = jnp.where(more, image / jnp.where(more, beta, 1), jnp.zeros_like(image))
        return (now, later, beta), (alpha, beta)

    start = jnp.zeros_like(v), v / size, jnp.zeros_like(size)
    _, (alphas, betas) = jax.lax.scan(step, start, length=steps)
    tridiagonal = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    nodes, vectors = jnp.linalg.eigh(tridiagonal)
    counts = nodes > jnp.finfo(v.dtype).eps
    logs = jnp.where(counts, jnp.log(jnp.where(counts, nodes, 1)), jnp.zeros_like(nodes))
    return jnp.square(size) * jnp.sum(jnp.square(vectors[0]) * logs)


def _forward(steps, factors, eig, mask, noise, signs):
    kept = factors, eig, mask, noise, signs
    return _logdet(steps, *kept), kept


def _backward(steps, kept, g):
    factors, eig, mask, noise, signs = kept
    # The slopes are estimates at constant solutions, whose own slopes are not these.
    eig = once((factors, noise), eig)
    lams, qs = eig
    weight = jnp.mean(jnp.where(mask, 1 / noise, jnp.zeros_like(noise)))
    any_seen = weight > 0
    shift = jnp.where(any_seen, 1 / jnp.where(any_seen, weight, 1), jnp.ones_like(weight))
    shifted = product_spectrum(lams) + shift
    root = jnp.sqrt(shifted)

    def expected(factors: Arrays, noise: jax.Array, v: jax.Array) -> jax.Array:
        # d log det A = tr(A^-1 dA) = E v^T C A^-1 dA C^-1 v for any C: this one, C^2 = K + shift I,
        # and subtracting what (K + shift I)^-1 gives, whose trace is added exactly, leave a
        # fraction of the noise of plain probes.
        left, right = apply_factors(qs, root * v), apply_factors(qs, v / root)
        solved = kron_masked_solve(kept[0], mask, kept[3], left, tol=_GRADIENT_TOL, eigh=eig)
        solution = jnp.where(solved.ok, solved.x, jnp.full_like(solved.x, jnp.nan))
        # (K + shift I)^-1 C v is C^-1 v.
        beyond = jax.lax.stop_gradient(solution - jnp.where(any_seen, right, 0))
        in_noise = jnp.where(mask, right, jnp.zeros_like(right))
        solution = jax.lax.stop_gradient(solution)
        return jnp.sum(beyond * apply_factors(factors, right)) + jnp.sum(
            solution * noise * in_noise
        )

    def one(total, v):
        slopes = jax.grad(expected, argnums=(0, 1))(factors, noise, v)
        return jax.tree.map(jnp.add, total, slopes), None

    none = jax.tree.map(jnp.zeros_like, (factors, noise))
    (of_factors, of_noise), _ = jax.lax.scan(one, none, signs)
    exact = jax.grad(lambda f: kron_add_scalar_logdet(f, shift, eigh=eig))(factors)
    of_factors = jax.tree.map(
        lambda sampled, known: g.value * (sampled / len(signs) + jnp.where(any_seen, known, 0)),
        of_factors,
        exact,
    )
    nothing = jax.tree.map(jnp.zeros_like, (eig, signs))
    return of_factors, nothing[0], None, g.value / len(signs) * of_noise, nothing[1]


_logdet.defvjp(_forward, _backward)


def scaled_eigenvalue_logdet(
    lams: Sequence[jax.Array], sigma2: jax.typing.ArrayLike, count: jax.typing.ArrayLike
) -> jax.Array:
    """The usual shortcut for `count` of N cells, for comparison: no bound on its error is known.

    sum_i log(count / N lambda_i + sigma^2) over the `count` largest eigenvalues of the grid.

    Args:
      lams: D arrays (n_d,).
      sigma2: scalar.
      count: how many cells were seen.

    >>> round(scaled_eigenvalue_logdet((jnp.array([1.0, 3.0]),), 1.0, 2).item(), 4)  # log 2 + log 4
    2.0794
    """
    ordered = jnp.sort(product_spectrum(lams).reshape(-1), descending=True)
    share = jnp.asarray(count, ordered.dtype) / ordered.size
    logs = jnp.log(share * ordered + jnp.asarray(sigma2, ordered.dtype))
    return jnp.sum(jnp.where(jnp.arange(ordered.size) < count, logs, jnp.zeros_like(logs)))
