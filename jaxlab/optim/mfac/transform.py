"""M-FAC as an optimizer: gradients are preconditioned with the inverse Fisher of the last m.

Source: E. Frantar, E. Kurtic, D. Alistarh, "M-FAC", NeurIPS 2021, section 3.2, and the authors'
code, from which the order of the steps and the defaults are: weight decay enters the gradient
before it is stored, and momentum averages what has been preconditioned.

Differs from the code: a gradient that is not finite is left out, as it would stay for m steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import register
from jaxlab.optim.from_optax import Mask
from jaxlab.optim.mfac.checks import (
    check_count,
    check_damp,
    check_floating,
    check_from_zero,
    check_row_dtype,
)
from jaxlab.optim.mfac.compressed import SparseRows, TopK, compress, dense_of
from jaxlab.optim.mfac.window import (
    FisherWindow,
    check_normaliser,
    empty_window,
    is_row,
    precondition_row,
    window_init,
    window_push,
)

Damping = jax.typing.ArrayLike | Callable[[jax.Array], jax.typing.ArrayLike]


class MfacState(NamedTuple):
    """What the next update depends on: arrays only.

    Attributes:
      count: int32 updates so far.
      n_skipped: int32 gradients that were not finite.
      window: of the gradients.
      velocity: average of the updates; () without momentum.
      error: what compressed rows have left out; () without compression.
    """

    count: jax.Array
    n_skipped: jax.Array
    window: FisherWindow
    velocity: Any
    error: Any


def scale_by_mfac(
    m: int = 1024,
    damp: Damping = 1e-5,
    momentum: jax.typing.ArrayLike = 0.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    buffer_dtype: Any = "float32",
    normaliser: str = "window",
    warmup_steps: jax.typing.ArrayLike = 0,
    compression: TopK | None = None,
    mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients g by F^-1 g, F = damp I + G^T G / m, g itself being in the window G.

    Gradients are those of the mean loss of a batch; clip them before this. With one gradient in
    the window the update is m / (m damp + |g|^2) g: first steps are large.

    Args:
      m: gradients in the window, which takes m times the memory of the parameters.
      damp: above 0, a number, a traced one, or a schedule of the updates so far.
      momentum: of the average of the updates, in [0, 1); at 0, as a Python number, there is none.
      weight_decay: times the parameters, added to gradients before they are stored.
      buffer_dtype: of the window's rows. Sums are float32, or float64 for float64.
      normaliser: "window" divides by m from the start, as the authors' code does; "count" by the
        gradients seen so far, up to m.
      warmup_steps: gradients from the window's first one on whose updates are g itself, whatever
        the compression keeps of it. A window that begins anew after a phase warms up again.
      compression: what rows keep; None keeps all. What is preconditioned is then the kept part.
      mask: tree of booleans, or of arrays of them, False for entries that never move and are not
        stored; known when the program is compiled. None: all move.
      axis_name: mesh axes that parameters are split over, inside `shard_map`; None under `jit`.

    Raises:
      ValueError: an argument is out of its range, a parameter is not floating, or `mask` does not
        fit the parameters.

    >>> tx = scale_by_mfac(m=2, damp=24.0)
    >>> g = jnp.array([0.0, 4.0])
    >>> update, state = tx.update(g, tx.init(g))
    >>> update.tolist(), int(state.window.count)
    ([0.0, 0.125], 1)
    """
    check_count("m", m)
    if not callable(damp):
        check_damp("mfac", damp)
    check_from_zero("momentum", momentum, below=1)
    check_from_zero("weight_decay", weight_decay)
    check_from_zero("warmup_steps", warmup_steps)
    check_row_dtype("buffer_dtype", buffer_dtype)
    check_normaliser(normaliser)
    if compression is not None:
        compression.check()
    averages = not _is_zero(momentum)
    dtype = jnp.dtype(buffer_dtype)
    total = accumulator(dtype)

    def init(params) -> MfacState:
        check_floating(params)
        alive = _select(params, mask)
        zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, total), alive)  # noqa: E731
        window = window_init(m, alive, dtype)
        if compression is not None:
            topk = compression
            rows = jax.tree.map(lambda x: SparseRows.zeros(m, x.shape, topk, dtype), alive)
            window = empty_window(m, rows, dtype)
        none = lambda: jnp.zeros((), jnp.int32)  # noqa: E731 - one buffer is not donated twice
        velocity = zeros() if averages else ()
        return MfacState(none(), none(), window, velocity, zeros() if compression else ())

    def update(updates, state, params=None, **extra):
        del extra
        g = _select(_decayed(updates, params, weight_decay), mask)
        g = jax.tree.map(lambda x: x.astype(total), g)
        row, error = g, ()
        if compression is not None:
            topk, whole = compression, jax.tree.map(jnp.add, g, state.error)
            row = jax.tree.map(lambda x: compress(x, topk, dtype), whole)
            error = jax.tree.map(lambda x, r: x - dense_of(r), whole, row)
        keep = is_row(state.window, row, axis_name)
        window = window_push(state.window, row, keep=keep, axis_name=axis_name)
        now = damp(state.count) if callable(damp) else damp
        u = precondition_row(window, state.window.head, now, normaliser=normaliser)
        if not _is_zero(warmup_steps):
            # Of this window, and not of the run: a phase may have begun another.
            warm = state.window.count < warmup_steps
            u = jax.tree.map(lambda x, y: jnp.where(warm, x, y), g, u)
        velocity = ()
        if averages:
            mu = jnp.asarray(momentum).astype(total)
            u = jax.tree.map(lambda v, x: mu * v + (1 - mu) * x, state.velocity, u)
            velocity = _where(keep, u, state.velocity)
        new = MfacState(
            state.count + jnp.ones_like(state.count),
            state.n_skipped + jnp.where(keep, 0, 1).astype(jnp.int32),
            window,
            velocity,
            _where(keep, error, state.error),
        )
        u = jax.tree.map(lambda x: jnp.where(keep, x, jnp.zeros_like(x)), u)
        return _expand(u, updates, mask), new

    return optax.GradientTransformationExtraArgs(init, update)


def mfac(
    learning_rate: optax.ScalarOrSchedule,
    m: int = 1024,
    damp: Damping = 1e-5,
    momentum: jax.typing.ArrayLike = 0.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    buffer_dtype: Any = "float32",
    normaliser: str = "window",
    warmup_steps: jax.typing.ArrayLike = 0,
    compression: TopK | None = None,
    mask: Any = None,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """M-FAC with a learning rate, 1e-3 in the authors' code; arguments as of `scale_by_mfac`.

    Under `optax.inject_hyperparams` every number becomes an array of the state: name `m` in
    `static_args`, and those of `momentum`, `weight_decay` and `warmup_steps` that are 0.

    >>> tx = mfac(0.5, m=2, damp=24.0)
    >>> g = jnp.array([2.0, 4.0]) * 2 / 5**0.5  # of norm 4
    >>> print(tx.update(g, tx.init(g))[0] / g)
    [-0.015625 -0.015625]
    """
    rule = scale_by_mfac(
        m,
        damp,
        momentum,
        weight_decay,
        buffer_dtype,
        normaliser,
        warmup_steps,
        compression,
        mask,
        axis_name,
    )
    return optax.chain(rule, optax.scale_by_learning_rate(learning_rate))


@register("optimizer", "mfac")
def mfac_of_config(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    m: int = 1024,
    damp: float = 1e-5,
    momentum: float = 0.0,
    buffer_dtype: str = "float32",
    normaliser: str = "window",
    warmup_steps: int = 0,
    density: float = 1.0,
    block: int = TopK().block,
) -> optax.GradientTransformation:
    """M-FAC; decay is added to the gradient, and `density` below 1 compresses the window."""
    compression = None if density == 1 else TopK(density, block)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        mfac(
            learning_rate,
            m,
            damp,
            momentum,
            buffer_dtype=buffer_dtype,
            normaliser=normaliser,
            warmup_steps=warmup_steps,
            compression=compression,
        ),
    )


def _is_zero(x: Any) -> bool:
    # An array may be another one in the next call (`inject_hyperparams`): only numbers are known.
    return isinstance(x, int | float) and x == 0


def _decayed(updates: Any, params: Any, weight_decay: Any) -> Any:
    if _is_zero(weight_decay):
        return updates
    if params is None:
        raise ValueError(
            "mfac: weight_decay wants the parameters, tx.update(g, state, params); under "
            "inject_hyperparams name it in static_args where it is 0"
        )

    def add(g, p):
        return g + jnp.asarray(weight_decay).astype(g.dtype) * p.astype(g.dtype)

    return jax.tree.map(add, updates, params)


def _where(keep: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(keep, x, y), new, old)


def _places(mask: Any, x: Any) -> Any:
    """Where the alive entries of a flattened leaf are, or None if all are alive."""
    alive = np.asarray(mask, bool)
    if alive.ndim and alive.shape != x.shape:
        raise ValueError(f"mfac: mask of shape {alive.shape} for a parameter of shape {x.shape}")
    return None if alive.all() else np.flatnonzero(np.broadcast_to(alive, x.shape))


def _with_places(tree: Any, mask: Any) -> Any:
    if jax.tree.structure(mask) != jax.tree.structure(tree):
        raise ValueError(
            f"mfac: mask has the structure {jax.tree.structure(mask)}, and the parameters "
            f"{jax.tree.structure(tree)}"
        )
    return [_places(m, x) for m, x in zip(*map(jax.tree.leaves, (mask, tree)), strict=True)]


def _select(tree: Any, mask: Any) -> Any:
    """The alive entries of each leaf, flat where some are not."""
    if mask is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    places = _with_places(tree, mask)
    chosen = [x if at is None else x.reshape(-1)[at] for x, at in zip(leaves, places, strict=True)]
    return treedef.unflatten(chosen)


def _expand(tree: Any, like: Any, mask: Any) -> Any:
    """Leaves of the shapes and dtypes of `like`, 0 where nothing is alive."""
    leaves, treedef = jax.tree.flatten(like)
    places = [None] * len(leaves) if mask is None else _with_places(like, mask)

    def whole(x, leaf, at):
        x = x.astype(leaf.dtype)
        return x if at is None else jnp.zeros(leaf.size, x.dtype).at[at].set(x).reshape(leaf.shape)

    return treedef.unflatten(
        [whole(*row) for row in zip(jax.tree.leaves(tree), leaves, places, strict=True)]
    )
