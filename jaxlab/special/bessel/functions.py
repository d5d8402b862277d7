"""log I_v(x) and log K_v(x), their derivatives and ratios, for real orders and arguments.

Source: T. Plesner, H. H. B. Sørensen and S. Hauberg, "Accurate Computation of the Logarithm of
Modified Bessel Functions on GPUs", ICS 2024, whose scheme is `method="paper"`.

Differs from theirs: one uniform expansion takes the place of five regions; orders below 1 and
arguments below 1e-8 keep full accuracy; there are derivatives in both arguments, and none of them
is a difference of logarithms.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.special.bessel import regions
from jaxlab.special.bessel.logarithm import leading, places
from jaxlab.special.bessel.order import sum_of_order
from jaxlab.special.bessel.published import published_log
from jaxlab.special.bessel.regions import SCHEMES, Function
from jaxlab.special.bessel.rules import bounded_times, times, total_change
from jaxlab.special.promotion import promoted

Method = Literal["auto", "paper"]
_INF = float("inf")


def log_iv(v: Any, x: Any, *, method: Method = "auto", least: float = 0.0) -> jax.Array:
    """The logarithm of the modified Bessel function of the first kind.

    Elementwise; v and x are broadcast. float16 and bfloat16 are computed in float32. Twice
    differentiable in both arguments, forwards and backwards; where the order is a number or an
    array of NumPy's and large, or the caller says so by `least`, nothing but the uniform expansion
    is computed, with as few terms as suffice.

    Args:
      v: real orders, 0 or more; NaN for others.
      x: real, 0 or more; NaN for others.
      method: "auto", or "paper" for the published scheme, to compare.
      least: no order is below: NaN for those that are. Above 25 (float32: 15) it saves the most.

    Returns:
      0 at (0, 0), -inf at x = 0 for other orders, inf at x = inf.

    Raises:
      TypeError: an argument is complex, or no number.
      ValueError: there is no such method, or `least` is negative or an array.

    >>> f"{log_iv(1023.0, 500.0):.3f}"  # I itself is below 1e-157
    '-363.478'
    """
    return _log("log_iv", Function(1, False, 0), v, x, least, method)


def log_kv(v: Any, x: Any, *, method: Method = "auto", least: float = 0.0) -> jax.Array:
    """The logarithm of the modified Bessel function of the second kind; as `log_iv`.

    Args:
      v: real orders; K of -v is K of v.
      x: real, 0 or more; NaN for others.
      method: "auto" or "paper".
      least: as in `log_iv`, of |v|.

    Returns:
      inf at x = 0, -inf at x = inf.

    >>> f"{log_kv(0.5, 2.0):.4f}, {np.log(np.pi / 4) / 2 - 2:.4f}"
    '-2.1208, -2.1208'
    """
    return _log("log_kv", Function(-1, False, 0), v, x, least, method)


def log_ive(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """`log_iv(v, x) - x`, without the difference where x is large; as `log_iv`.

    >>> float(log_ive(0.0, 1e6) + np.log(2 * np.pi * 1e6) / 2) < 1e-6
    True
    """
    return _log("log_ive", Function(1, True, 0), v, x, least)


def log_kve(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """`log_kv(v, x) + x`, without the sum where x is large; as `log_kv`."""
    return _log("log_kve", Function(-1, True, 0), v, x, least)


def log_iv_dx(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """The derivative of `log_iv` with respect to x: `I_v'(x) / I_v(x)`.

    At x = 0 it is 0 for v = 0, and inf otherwise.

    >>> round(float(log_iv_dx(0.5, 2.0)), 5)
    0.78731
    """
    return _evaluate("log_iv_dx", _dx, Function(1, False, 0), v, x, least)


def log_kv_dx(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """The derivative of `log_kv` with respect to x: `K_v'(x) / K_v(x)`; -inf at x = 0."""
    return _evaluate("log_kv_dx", _dx, Function(-1, False, 0), v, x, least)


def log_iv_dv(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """The derivative of `log_iv` with respect to the order; at v = 0 from the right.

    At v = 0 and large x it is exponentially small, and 0 is returned.
    """
    return _evaluate("log_iv_dv", _dv, Function(1, False, 0), v, x, least)


def log_kv_dv(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """The derivative of `log_kv` with respect to the order; 0 at v = 0, and odd in v."""
    order, _, dtype = _arguments("log_kv_dv", v, x)
    found = _evaluate("log_kv_dv", _dv, Function(-1, False, 0), v, x, least)
    return jnp.where(order < 0, -found, found).astype(dtype)


def iv_ratio(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """`I_{v+1}(x) / I_v(x)`, in [0, 1): a quotient of positive terms, nothing of which cancels.

    Args:
      v: real orders, 0 or more; NaN for others.
      x: real, 0 or more; NaN for others.
      least: as in `log_iv`.

    Returns:
      0 at x = 0, 1 at x = inf.

    >>> round(float(iv_ratio(1023.0, 1365.0667)), 4)  # mean resultant length, in 2048 dimensions
    0.5
    """
    given = v
    v, x, dtype = _arguments("iv_ratio", v, x)
    # In the dtype that is computed in: that of the orders may not hold v + 1.
    above = np.asarray(given).astype(v.dtype) + 1 if _known(given) else v + 1
    # Here the next term of the series is below rounding, and x^2 might underflow.
    small = x <= float(jnp.finfo(x.dtype).eps) ** 0.5 * (v + 1)
    safe = jnp.where(small, jnp.ones_like(x), x)
    far = 1 / (log_iv_dx(above, safe, least=least) + (v + 1) / safe)
    legal = (v >= least) & (x >= 0)
    near = jnp.where(small, x, jnp.zeros_like(x)) / (2 * v + 2)
    found = jnp.where(small, near, far)
    return jnp.where(legal, found, jnp.full_like(found, jnp.nan)).astype(dtype)


def kv_ratio(v: Any, x: Any, *, least: float = 0.0) -> jax.Array:
    """`K_{v+1}(x) / K_v(x)`, above 1 for v > -1/2, without differences.

    Args:
      v: real orders.
      x: real, 0 or more; NaN for others.
      least: as in `log_iv`, where it is above 0.

    Returns:
      At x = 0 it is inf for v > -1/2, and 0 for v < -1/2; at x = inf it is 1. Derivatives need
      that x^2 does not underflow.

    >>> f"{kv_ratio(0.5, 2.0):.4f}"  # 1 + 1 / x
    '1.5000'
    """
    known = least > 0 or (_known(v) and bool(np.all(np.asarray(v) >= 0)))
    given = v
    v, x, dtype = _arguments("kv_ratio", v, x)
    zero, inside = _zero_or_inside(x)
    safe, one = jnp.where(inside, x, jnp.ones_like(x)), jnp.ones_like(x)
    if least > 0:
        v = jnp.where(v >= least, v, one * jnp.nan)
    if known:
        # Beside x in the dtype that is computed in.
        order = np.asarray(given).astype(v.dtype) if _known(given) else v
        found = v / safe - log_kv_dx(order, safe, least=least)
    else:
        # K_{v+1} is K_{-v-1}: for v <= -1 it is the reciprocal for -v - 1, and between both
        # logarithms are small.
        up, down = v >= 0, v <= -1
        order = jnp.where(up, v, jnp.where(down, -v - 1, one / 2))
        ratio = order / safe - log_kv_dx(order, safe)
        low = jnp.where(up | down, one / 2, -v)
        between = jnp.exp(log_kve(1 - low, safe) - log_kve(low, safe))
        found = jnp.where(up, ratio, jnp.where(down, 1 / ratio, between))
    at_zero = jnp.where(v > -0.5, one * _INF, jnp.where(v == -0.5, one, 0 * one))
    edge = jnp.where(zero, at_zero, jnp.where(x == _INF, one, one * jnp.nan))
    return jnp.where(inside, found, jnp.where(jnp.isnan(v), v, edge)).astype(dtype)


def _log(owner: str, f: Function, v: Any, x: Any, least: float, method: str = "auto") -> jax.Array:
    if method not in ("auto", "paper"):
        raise ValueError(f"{owner}: method={method!r}; valid: auto, paper")
    if method == "paper":
        return _evaluate(owner, _published, f, v, x, least)
    order = abs(float(np.asarray(v).item())) if _known(v) and np.size(v) == 1 else 0.0
    f, v, x, dtype = _prepared(owner, f, v, x, least)
    scheme, of_order = SCHEMES[v.dtype.name], None
    if f.terms and scheme.least < order < _INF:
        error = scheme.error_above(order, f.scaled)
        of_order = np.asarray(sum_of_order(order, f.sign, f.terms, error), v.dtype)
    return _value(f, v, x, of_order).astype(dtype)


def _evaluate(
    owner: str, function: Callable[..., jax.Array], f: Function, v: Any, x: Any, least: float
) -> jax.Array:
    f, v, x, dtype = _prepared(owner, f, v, x, least)
    return function(f, v, x).astype(dtype)


def _prepared(
    owner: str, f: Function, v: Any, x: Any, least: float
) -> tuple[Function, jax.Array, jax.Array, Any]:
    """The function with its terms, arguments, and the dtype of the result."""
    if isinstance(least, jax.Array) or not least >= 0:
        raise ValueError(f"{owner}: least={least} must be a number, 0 or more; nearest: 0.0")
    orders = np.asarray(v) if _known(v) else None
    v, x, dtype = _arguments(owner, v, x)
    # At 0 the derivative in v is that of v, and not 0 as that of the absolute value.
    v = jnp.where(v < 0, -v, v) if f.sign < 0 else v
    smallest = float(least)
    if orders is not None and orders.size:
        smallest = max(smallest, float(np.min(np.abs(orders) if f.sign < 0 else orders)))
    f = f._replace(terms=SCHEMES[v.dtype.name].terms_above(smallest, f.scaled))
    if least > 0:
        v = jnp.where(v >= least, v, jnp.full_like(v, jnp.nan))
    return f, v, x, dtype


def _known(v: Any) -> bool:
    """Whether orders may be looked at: those of an array of JAX's may be far away, or traced."""
    return isinstance(v, int | float | np.generic | np.ndarray)


def _arguments(owner: str, v: Any, x: Any) -> tuple[jax.Array, jax.Array, Any]:
    """Both, broadcast, in the dtype that is computed in, and the dtype of the result."""
    arrays, dtype = promoted(owner, v=v, x=x)
    v, x = jnp.broadcast_arrays(*arrays)
    return v, x, dtype


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)  # a call outside of jit is one program, too
def _value(f: Function, v: jax.Array, x: jax.Array, of_order: Any) -> jax.Array:
    zero = jnp.zeros_like(v)
    at_zero = jnp.where(v > 0, zero - _INF, zero) if f.sign > 0 else zero + _INF
    at_end = zero + (-_INF if f.scaled else f.sign * _INF)
    evaluate = partial(regions.value, of_order=of_order)
    return _over_edges(evaluate, f, v, x, at_zero, at_end, zero - f.sign * _INF)


@partial(_value.defjvp, symbolic_zeros=True)
def _value_jvp(f, primals, tangents):
    # The last is of numbers that are known.
    change = total_change(times, primals[:2], tangents[:2], partial(_dv, f), partial(_dx, f))
    return _value(f, *primals), change


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _published(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    at_zero = jnp.where(v > 0, zero - _INF, zero) if f.sign > 0 else zero + _INF
    evaluate = lambda f, v, x: published_log(v, x, f.sign)  # noqa: E731
    return _over_edges(evaluate, f, v, x, at_zero, zero + f.sign * _INF, zero - f.sign * _INF)


@partial(_published.defjvp, symbolic_zeros=True)
def _published_jvp(f, primals, tangents):
    change = total_change(times, primals, tangents, partial(_dv, f), partial(_dx, f))
    return _published(f, *primals), change


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _dx(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    shift = f.sign if f.scaled else 0
    at_zero = jnp.where(v > 0, zero + _INF, zero - shift) if f.sign > 0 else zero - _INF
    at_end = zero + (f.sign - shift)
    return _over_edges(regions.dx, f, v, x, at_zero, at_end, zero + f.sign * _INF)


@partial(_dx.defjvp, symbolic_zeros=True)
def _dx_jvp(f, primals, tangents):
    partials = partial(_dxdv, f), partial(_dxx, f)
    return _dx(f, *primals), total_change(bounded_times, primals, tangents, *partials)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _dv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    at_zero = zero - _INF if f.sign > 0 else jnp.where(v > 0, zero + _INF, zero)
    return _over_edges(regions.dv, f, v, x, at_zero, zero, zero - f.sign * _INF)


@partial(_dv.defjvp, symbolic_zeros=True)
def _dv_jvp(f, primals, tangents):
    partials = partial(_dvv, f), partial(_dxdv, f)
    return _dv(f, *primals), total_change(bounded_times, primals, tangents, *partials)


@partial(jax.jit, static_argnums=0)
def _dxx(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    at_zero = jnp.where(v > 0, zero - _INF, zero + 0.5) if f.sign > 0 else zero + _INF
    return _over_edges(regions.dxx, f, v, x, at_zero, zero, zero - f.sign * _INF)


@partial(jax.jit, static_argnums=0)
def _dxdv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    return _over_edges(regions.dxdv, f, v, x, zero + f.sign * _INF, zero, zero)


@partial(jax.jit, static_argnums=0)
def _dvv(f: Function, v: jax.Array, x: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(v)
    return _over_edges(regions.dvv, f, v, x, zero, zero, zero)


def _over_edges(
    evaluate: Callable[..., jax.Array],
    f: Function,
    v: jax.Array,
    x: jax.Array,
    at_zero: jax.Array,
    at_end: jax.Array,
    of_order: jax.Array,
) -> jax.Array:
    """The function inside, and its limits at x = 0, x = inf and v = inf; NaN elsewhere."""
    order, (zero, argument) = (v >= 0) & (v < _INF), _zero_or_inside(x)
    away, nan = jnp.full_like(v, 30.0), jnp.full_like(v, jnp.nan)
    # Apart, so that of an order that is known while compiling more is known.
    found = evaluate(f, jnp.where(order, v, away), jnp.where(argument, x, away))
    end = jnp.where(v == _INF, jnp.where(argument, of_order, nan), at_end)
    edge = jnp.where(zero, at_zero, jnp.where(x > 0, end, nan))
    return jnp.where(order & argument, found, jnp.where(v >= 0, edge, nan))


def _zero_or_inside(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where x is 0 or subnormal, which a CPU takes for 0 and a GPU does not; where normal, above 0.

    By the first bits: of two comparisons with one number, a compiler makes more.
    """
    first, least = leading(x), 1 << places(x.dtype)
    inside = (first >= least) & (first < leading(jnp.full_like(x, _INF)))
    return (first & 0x7FFFFFFF) < least, inside
