"""Inverse Kronecker factors: the rank-1 update, the stabiliser, and the product with a gradient.

The rank-1 update of the paper's algorithm 1 is printed with the other sign and raises what it
should lower; the authors' code does the update "interp" below, which is the default.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.optim.mkor.checks import check_positive, check_share

# Of J, J v, v, gamma, and a and b: the update of a J + b I.
Update = Callable[..., jax.Array]


def sherman_morrison(
    j: jax.Array,
    v: jax.Array,
    *,
    mode: str = "interp",
    gamma: jax.typing.ArrayLike = 0.95,
    eps: jax.typing.ArrayLike | None = None,
    zeta: jax.typing.ArrayLike = 0.9,
) -> jax.Array:
    """The inverse factor after the vector of a step.

    All three keep a symmetric matrix symmetric bit for bit.

    Args:
      j: (..., n, n), symmetric.
      v: (..., n).
      mode: "interp", the inverse of (gamma J + (1 - gamma) I)^-1 + v v^T, whose eigenvalues stay
        in (0, 1]; "ema", the inverse of gamma J^-1 + (1 - gamma) v v^T, whose eigenvalues grow
        where no vector points; "paper", what the paper prints, which is no inverse of either and
        diverges: for comparison only.
      gamma: in (0, 1).
      eps: above 0; with it, the update is that of what `stabilise` leaves of J, in one pass; None
        is J.
      zeta: in (0, 1); likewise.

    Returns:
      (..., n, n), in the dtype of `j`, computed in float32 or better.

    Raises:
      ValueError: `mode` is unknown, or `gamma`, `eps` or `zeta` is known and out of its range.

    >>> [round(sherman_morrison(jnp.full((1, 1), 2.0), jnp.ones(1), mode=m, gamma=0.9).item(), 4)
    ...  for m in ("interp", "ema", "paper")]
    [0.6552, 1.8182, 2.2185]
    """
    check_update(mode)
    check_share("gamma", gamma)
    check_share("zeta", zeta)
    if eps is not None:
        check_positive("eps", eps)
    dtype = accumulator(j.dtype)
    wide, v = j.astype(dtype), v.astype(dtype)
    # The product is one with J as it is, so that what the stabiliser leaves is never stored.
    product = jnp.einsum("...ij,...j->...i", wide, v, precision="highest")
    a, b = jnp.ones(j.shape[:-2], dtype), jnp.zeros(j.shape[:-2], dtype)
    if eps is not None:
        _, a, b = _pull(wide, eps, zeta)
    return UPDATES[mode](wide, product, v, jnp.asarray(gamma, dtype), a, b).astype(j.dtype)


def _interp(j, product, v, gamma, a, b):
    a, b = gamma * a, gamma * b + (1 - gamma)
    u = _mixed(a, product, b, v)
    return _plus_identity(a, j, b) - _outer(u) / (1 + _dot(v, u))


def _ema(j, product, v, gamma, a, b):
    u = _mixed(a, product, b, v)
    below = gamma + (1 - gamma) * _dot(v, u)
    return (_plus_identity(a, j, b) - (1 - gamma) * _outer(u) / below) / gamma


def _paper(j, product, v, gamma, a, b):
    u = _mixed(a, product, b, v)
    below = gamma**2 * (1 + gamma * (1 - gamma) * _dot(v, u))
    return gamma * _plus_identity(a, j, b) + (1 - gamma) * _outer(u) / below


UPDATES: dict[str, Update] = {"interp": _interp, "ema": _ema, "paper": _paper}
# Largest entry that an inverse factor may have, unless another is asked for.
LIMITS = {"interp": 2.0, "ema": 100.0, "paper": 2.0}


def check_update(mode: str) -> None:
    """Raises a ValueError unless there is such an update."""
    if mode not in UPDATES:
        raise ValueError(f"mkor: factor_update={mode!r}; {suggest(mode, UPDATES)}")


def stabilise(
    j: jax.Array, eps: jax.typing.ArrayLike, zeta: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Pulls a factor that has grown towards the identity.

    Args:
      j: (..., n, n).
      eps: largest absolute value of an entry that is left alone; above 0.
      zeta: what remains of a larger one: zeta J + (1 - zeta) I; in (0, 1).

    Returns:
      The factor, and booleans (...,): whether it was pulled.

    Raises:
      ValueError: `eps` or `zeta` is known and out of its range.

    >>> j, fired = stabilise(jnp.array([[1000.0]]), 2.0, 0.9)
    >>> round(j.item(), 1), bool(fired)
    (900.1, True)
    """
    check_positive("eps", eps)
    check_share("zeta", zeta)
    fired, a, b = _pull(j, eps, zeta)
    return _plus_identity(a, j, b), fired


def _pull(
    j: jax.Array, eps: jax.typing.ArrayLike, zeta: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the stabiliser pulls J, and a and b of a J + b I, which is what it leaves."""
    fired = jnp.max(jnp.abs(j), axis=(-2, -1)) > jnp.asarray(eps, j.dtype)
    a = jnp.where(fired, jnp.asarray(zeta, j.dtype), 1)
    return fired, a, 1 - a


def precondition(
    m: jax.Array,
    ja: jax.Array | None,
    jg: jax.Array | None,
    rescale: str = "joint",
    *,
    bias: bool = False,
) -> jax.Array:
    """J_a M J_g, as long as M is.

    Args:
      m: (..., n, o), the gradient of a kernel; with a bias, that of the bias is its last row.
      ja: (..., n, n), or None for the identity.
      jg: (..., o, o), or None.
      rescale: "joint", to the Frobenius norm of M; "split_sum", as the authors' code does, to the
        sum of the norms of kernel and bias; "none".
      bias: whether the last row is a bias's.

    Returns:
      (..., n, o), float32 or better; 0 where M is.

    Raises:
      ValueError: `rescale` is unknown.

    >>> m = jnp.array([[3.0, 4.0]])
    >>> [precondition(m, 0.5 * jnp.eye(1), None, how).tolist() for how in ("joint", "none")]
    [[[3.0, 4.0]], [[1.5, 2.0]]]
    """
    check_rescale(rescale)
    dtype = accumulator(m.dtype)
    m = p = m.astype(dtype)
    p = p if ja is None else jnp.matmul(ja.astype(dtype), p)
    p = p if jg is None else jnp.matmul(p, jg.astype(dtype))
    return rescaled(p, m, rescale, bias=bias)


def rescaled(p: jax.Array, m: jax.Array, rescale: str, *, bias: bool = False) -> jax.Array:
    """`p`, (..., n, o), as long as `m`; arguments as of `precondition`."""
    measure = RESCALES[rescale]
    if measure is None:
        return p
    before, after = measure(m, bias), measure(p, bias)
    positive = after > 0
    ratio = jnp.where(positive, before / jnp.where(positive, after, 1), 0)
    return p * ratio[..., None, None]


def _joint(m: jax.Array, bias: bool) -> jax.Array:
    # The squares of entries of 1e20 overflow in float32, and those of 1e-23 are 0.
    largest = jnp.max(jnp.abs(m), axis=(-2, -1), keepdims=True, initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return unit[..., 0, 0] * jnp.sqrt(jnp.sum(jnp.square(m / unit), axis=(-2, -1)))


def _split_sum(m: jax.Array, bias: bool) -> jax.Array:
    return _joint(m[..., :-1, :], bias) + _joint(m[..., -1:, :], bias) if bias else _joint(m, bias)


RESCALES: dict[str, Callable[[jax.Array, bool], jax.Array] | None] = {
    "joint": _joint,
    "split_sum": _split_sum,
    "none": None,
}


def check_rescale(rescale: str) -> None:
    """Raises a ValueError unless there is such a rescaling."""
    if rescale not in RESCALES:
        raise ValueError(f"mkor: rescale={rescale!r}; {suggest(rescale, RESCALES)}")


def _outer(u: jax.Array) -> jax.Array:
    return u[..., :, None] * u[..., None, :]


def _dot(v: jax.Array, u: jax.Array) -> jax.Array:
    return jnp.sum(v * u, axis=-1)[..., None, None]


def _mixed(a: jax.Array, product: jax.Array, b: jax.Array, v: jax.Array) -> jax.Array:
    return a[..., None] * product + b[..., None] * v


def _plus_identity(a: jax.Array, j: jax.Array, b: jax.Array) -> jax.Array:
    eye = jnp.broadcast_to(jnp.eye(j.shape[-1], dtype=j.dtype), j.shape)
    return a[..., None, None] * j + b[..., None, None] * eye
