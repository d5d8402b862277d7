"""MKOR as an optax transformation in front of an inner optimizer.

Differs from the authors' code: the first vector updates the factors, which there only become the
identity; vectors are clipped after the mean and not row by row; each factor is stabilised by
itself. A layer whose statistics are not finite, or that no row reached, keeps its factors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxlab.core import registry
from jaxlab.core.match import leaf_paths, path_str
from jaxlab.core.matrix import accumulator
from jaxlab.optim.from_optax import Mask
from jaxlab.optim.mkor.checks import check_positive, check_share, check_whole
from jaxlab.optim.mkor.factors import (
    LIMITS,
    check_rescale,
    check_update,
    precondition,
    sherman_morrison,
)
from jaxlab.optim.mkor.hybrid import Hybrid, HybridState, hybrid_init, hybrid_step
from jaxlab.optim.mkor.inner import UNTOLD, followed, followed_by_name
from jaxlab.optim.mkor.tapped import Tap
from jaxlab.optim.mkor.taps import (
    Layer,
    Spec,
    attach_taps,
    init_taps,
    is_part,
    second_order,
    stats_to_vectors,
)
from jaxlab.optim.observing import Observing, Statistics


class Factors(NamedTuple):
    """The inverse factors of a layer, or of a stack; None is the identity of a side too wide.

    Attributes:
      ja: (..., n, n), or (..., n + 1, n + 1) where the layer has a bias.
      jg: (..., o, o).
    """

    ja: jax.Array | None
    jg: jax.Array | None


class MkorState(NamedTuple):
    """What the next update depends on: arrays only.

    Attributes:
      count: int32 updates so far.
      factors: by path of a kernel.
      hybrid: of MKOR-H; () without it.
    """

    count: jax.Array
    factors: dict[str, Factors]
    hybrid: HybridState | tuple[()]


def scale_by_mkor(
    *,
    gamma: jax.typing.ArrayLike = 0.95,
    update_every: jax.typing.ArrayLike = 10,
    warmup_steps: jax.typing.ArrayLike = 0,
    factor_update: str = "interp",
    eps: jax.typing.ArrayLike | None = None,
    zeta: jax.typing.ArrayLike = 0.9,
    rescale: str = "joint",
    clip: jax.typing.ArrayLike = 100.0,
    factor_dtype: str = "float32",
    spec: Spec | None = None,
    hybrid: Hybrid | None = None,
    max_dim: int = 8192,
) -> Observing:
    """Multiplies the gradients of kernels and their biases with inverse Kronecker factors.

    The statistics of a step update the factors, and the factors then its gradient. Everything that
    is not a kernel, or the bias beside one, passes through.

    Args:
      gamma: in (0, 1), how slowly factors forget.
      update_every: steps from one update of the factors to the next.
      warmup_steps: at the beginning, in which every step updates them.
      factor_update: as `mode` of `sherman_morrison`.
      eps: largest entry of a factor that the stabiliser leaves alone; None is 2, and 100 for "ema".
      zeta: what it leaves of a larger one.
      rescale: as of `precondition`.
      clip: largest absolute value of an entry of a mean.
      factor_dtype: that factors are stored in; updates are computed in float32 or better.
      spec: which parameters are kernels, as of `second_order`; None is all that are named so, and
        the factors of matrices. A pattern must match, unless some leaves are left out of the tree
        (`optax.masked`, a cohort): the other part may have what it is for.
      hybrid: when to fall back to the inner optimizer alone; None is never.
      max_dim: a wider side of a kernel keeps the identity.

    Returns:
      A transformation that wants the extra arguments `stats`, of `value_grad_stats`, and with
      `hybrid` the loss, `value`.

    Raises:
      ValueError: an argument is out of its range, here or in the first update.

    >>> tx = scale_by_mkor(update_every=1)
    >>> params, grads = {"kernel": jnp.ones((2, 1))}, {"kernel": jnp.array([[3.0], [4.0]])}
    >>> stats = {"kernel": Tap(jnp.array([3.0, 4.0, 1.0]), jnp.ones(1))}
    >>> update, _ = tx.update(grads, tx.init(params), stats=stats)
    >>> update["kernel"].round(4).tolist()  # along the gradient there is nothing else to prefer
    [[3.0], [4.0]]
    """
    check_update(factor_update)
    check_rescale(rescale)
    if not jnp.issubdtype(factor_dtype, jnp.floating):
        raise ValueError(f"mkor: factor_dtype={factor_dtype!r} must be floating; nearest: float32")
    check_share("gamma", gamma)
    check_share("zeta", zeta)
    check_whole("update_every", update_every, 1)
    check_whole("warmup_steps", warmup_steps, 0)
    check_whole("max_dim", max_dim, 1)
    check_positive("clip", clip)
    if eps is not None:
        check_positive("eps", eps)
    if hybrid is not None:
        hybrid.check()
    limit = LIMITS[factor_update] if eps is None else eps

    def identity(stack: tuple[int, ...], n: int) -> jax.Array | None:
        if n > max_dim:
            return None
        return jnp.broadcast_to(jnp.eye(n, dtype=factor_dtype), (*stack, n, n))

    def init(params) -> MkorState:
        _check_real(params)
        leaves, factors = leaf_paths(params), {}
        for path, layer in second_order(params, spec, strict=not is_part(params)).items():
            rows = layer.rows + (_bias_of(path, layer, leaves) is not None)
            sides = (identity(layer.stack, n) for n in (rows, layer.columns))
            factors[path] = Factors(*sides)
        return MkorState(jnp.zeros((), jnp.int32), factors, hybrid_init() if hybrid else ())

    def refreshed(j, v, good):
        if j is None:
            return None
        new = sherman_morrison(j, v, mode=factor_update, gamma=gamma, eps=limit, zeta=zeta)
        return jnp.where(good[..., None, None], new, j)

    def refresh(factors, stats):
        found = {}
        for path, (a, g, good) in stats_to_vectors(stats, clip).items():
            ja, jg = factors[path]
            if ja is not None and ja.shape[-1] > a.shape[-1]:
                a = jnp.concatenate([a, jnp.ones((*a.shape[:-1], 1), a.dtype)], axis=-1)
            found[path] = Factors(refreshed(ja, a, good), refreshed(jg, g, good))
        return found

    def update(updates, state, params=None, *, stats=None, value=None, **extra):
        del params, extra
        stats = _stats_for(state.factors, stats)
        due = (state.count % update_every == 0) | (state.count < warmup_steps)
        watch, first = state.hybrid, jnp.zeros((), bool)
        if hybrid is not None:
            if value is None:
                raise ValueError("mkor: hybrid needs the loss: update(..., value=loss)")
            watch = hybrid_step(state.hybrid, value, state.count, due, hybrid)
            first = watch.switched
        due = jnp.asarray(due) & ~first
        keep = lambda factors, stats: factors  # noqa: E731
        factors = jax.lax.cond(due, refresh, keep, state.factors, stats)
        scaled = _preconditioned(updates, factors, spec, rescale)
        if hybrid is not None:
            # Chosen and not branched on: the products are few, and both sides stay in place.
            scaled = jax.tree.map(lambda raw, p: jnp.where(first, raw, p), updates, scaled)
        return scaled, MkorState(state.count + 1, factors, watch)

    wants = Statistics(lambda params: init_taps(params, spec), attach_taps)
    return Observing(init, update, wants)


def mkor(
    learning_rate: optax.ScalarOrSchedule,
    inner: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation] = optax.lamb,
    *,
    gamma: jax.typing.ArrayLike = 0.95,
    update_every: jax.typing.ArrayLike = 10,
    warmup_steps: jax.typing.ArrayLike = 0,
    factor_update: str = "interp",
    eps: jax.typing.ArrayLike | None = None,
    zeta: jax.typing.ArrayLike = 0.9,
    rescale: str = "joint",
    clip: jax.typing.ArrayLike = 100.0,
    factor_dtype: str = "float32",
    spec: Spec | None = None,
    hybrid: Hybrid | None = None,
    max_dim: int = 8192,
) -> Observing:
    """MKOR in front of an inner optimizer.

    Under `optax.inject_hyperparams`, `static_args` must have "inner", which it would take for a
    schedule, and "max_dim".

    Args:
      learning_rate: of the inner optimizer.
      inner: learning rate -> optimizer, e.g. `optax.adamw`; decay belongs there.
      gamma, update_every, warmup_steps, factor_update, eps, zeta, rescale, clip, factor_dtype,
        spec, hybrid, max_dim: as of `scale_by_mkor`.

    Raises:
      TypeError: `inner` is no function: a name, or an optimizer that has its rate already.
      ValueError: another argument is out of its range.

    >>> tx = mkor(0.1, optax.sgd)
    >>> params = {"scale": jnp.ones(1)}
    >>> tx.update({"scale": jnp.ones(1)}, tx.init(params), params, stats={})[0]["scale"].tolist()
    [-0.10000000149011612]
    """
    if not callable(inner):
        raise TypeError(
            f"mkor: inner={inner!r} must make an optimizer of a learning rate; nearest: optax.sgd"
        )
    rule = scale_by_mkor(
        gamma=gamma,
        update_every=update_every,
        warmup_steps=warmup_steps,
        factor_update=factor_update,
        eps=eps,
        zeta=zeta,
        rescale=rescale,
        clip=clip,
        factor_dtype=factor_dtype,
        spec=spec,
        hybrid=hybrid,
        max_dim=max_dim,
    )
    return followed(rule, inner(learning_rate))


@registry.register("optimizer", "mkor")
def mkor_of_config(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    inner: str = "sgd",
    inner_settings: Mapping[str, Any] = {},
    gamma: float = 0.95,
    update_every: int = 10,
    warmup_steps: int = 0,
    factor_update: str = "interp",
    eps: float = 0.0,
    zeta: float = 0.9,
    rescale: str = "joint",
    clip_means: float = 100.0,
    factor_dtype: str = "float32",
    kernels: Sequence[str] = (),
    hybrid: bool = False,
    max_dim: int = 8192,
) -> optax.GradientTransformation:
    """MKOR in front of the optimizer `inner`; eps=0 and no `kernels` are the defaults of both."""
    rule = scale_by_mkor(
        gamma=gamma,
        update_every=update_every,
        warmup_steps=warmup_steps,
        factor_update=factor_update,
        eps=eps or None,
        zeta=zeta,
        rescale=rescale,
        clip=clip_means,
        factor_dtype=factor_dtype,
        spec=kernels or None,
        hybrid=Hybrid() if hybrid else None,
        max_dim=max_dim,
    )
    return followed_by_name(
        rule,
        inner,
        inner_settings,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )


def _preconditioned(updates: Any, factors: dict[str, Factors], spec: Any, rescale: str) -> Any:
    leaves, new = leaf_paths(updates), {}
    layers = second_order(updates, spec) if factors else {}
    for path, (ja, jg) in factors.items():
        layer = layers[path]
        m = leaves[layer.array].reshape(*layer.stack, layer.rows, layer.columns)
        beside = _bias_of(path, layer, leaves)
        if beside is not None:
            bias = leaves[beside].reshape(*layer.stack, 1, layer.columns)
            # Either may be the narrower one.
            both = accumulator(jnp.promote_types(m.dtype, bias.dtype))
            m = jnp.concatenate([m.astype(both), bias.astype(both)], axis=-2)
        p = precondition(m, ja, jg, rescale, bias=beside is not None)
        new[layer.array] = p[..., : layer.rows, :]
        if beside is not None:
            new[beside] = p[..., -1, :]

    def put(path, x):
        return new.get(path_str(path), x).reshape(x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(put, updates)


def _bias_of(path: str, layer: Layer, leaves: Mapping[str, Any]) -> str | None:
    """The path of the bias beside a kernel, if one of its size is among the leaves."""
    *above, name = path.split("/")
    beside = "/".join([*above, "bias"])
    if name != "kernel" or beside not in leaves:
        return None
    size = math.prod(layer.stack) * layer.columns
    return beside if leaves[beside].size == size else None


def _stats_for(factors: dict[str, Factors], stats: Any) -> dict[str, Tap]:
    """The statistics of the layers that have factors here, which may be some of all."""
    if factors and stats is None:
        raise ValueError(f"mkor: update needs the argument stats=; {UNTOLD}")
    for path, (ja, jg) in factors.items():
        if path not in stats:
            raise ValueError(f"mkor: stats has no {path!r}; {registry.suggest(path, stats)}")
        a, g = stats[path]
        fits = ja is None or a.shape[-1] - 1 in (ja.shape[-1], ja.shape[-1] - 1)
        if not fits or (jg is not None and g.shape[-1] != jg.shape[-1]):
            raise ValueError(
                f"mkor: stats of {path!r} are of {a.shape[-1] - 1} inputs and {g.shape[-1]} "
                f"outputs; its factors are of {None if ja is None else ja.shape[-1]} and "
                f"{None if jg is None else jg.shape[-1]}"
            )
    return {path: stats[path] for path in factors}


def _check_real(params: Any) -> None:
    for path, x in leaf_paths(params).items():
        if not isinstance(x, Tracer) and not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"mkor: {path!r} is {x.dtype}; parameters must be floating: leave others out with "
                "optax.masked"
            )
