"""Eva: the curvature of a layer from the means of its inputs and gradients alone.

Source: L. Zhang, S. Shi, B. Li, "Eva: practical second-order optimization with Kronecker-vectorized
approximation", ICLR 2023. It clips updates by the learning rate and the gradient (KL clipping);
here they are rescaled to the gradient's norm instead, as MKOR's are, so that both compare.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import registry
from jaxlab.core.match import leaf_paths, path_str
from jaxlab.optim.from_optax import Mask
from jaxlab.optim.mkor.checks import check_positive, check_share
from jaxlab.optim.mkor.factors import check_rescale, rescaled
from jaxlab.optim.mkor.inner import UNTOLD, followed_by_name
from jaxlab.optim.mkor.taps import (
    Spec,
    attach_taps,
    init_taps,
    is_part,
    second_order,
    stats_to_vectors,
)
from jaxlab.optim.observing import Observing, Statistics


class EvaState(NamedTuple):
    """Averages by path of a kernel: of the mean input (..., n) and of the mean gradient (..., o).

    counts: by path, int32 (...,), the statistics that are in the averages.
    """

    counts: dict[str, jax.Array]
    averages: dict[str, tuple[jax.Array, jax.Array]]


def scale_by_eva(
    *,
    decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike = 0.03,
    rescale: str = "joint",
    clip: jax.typing.ArrayLike = 100.0,
    spec: Spec | None = None,
) -> Observing:
    """Multiplies the gradients M of kernels with the inverse of damping I + (a a^T) x (g g^T).

    Args:
      decay: of the averages of a and g.
      damping: above 0.
      rescale: as of `jaxlab.optim.mkor.precondition`.
      clip: largest absolute value of an entry of a mean.
      spec: which parameters are kernels, as of `jaxlab.optim.mkor.second_order`.

    Returns:
      A transformation that wants the extra argument `stats`.

    Raises:
      ValueError: an argument is out of its range.
    """
    check_rescale(rescale)
    check_share("decay", decay, owner="eva")
    check_positive("damping", damping, owner="eva")
    check_positive("clip", clip, owner="eva")

    def init(params) -> EvaState:
        zeros = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
        layers = second_order(params, spec, strict=not is_part(params))
        averages = {
            path: (zeros(*layer.stack, layer.rows), zeros(*layer.stack, layer.columns))
            for path, layer in layers.items()
        }
        counts = {path: jnp.zeros(layer.stack, jnp.int32) for path, layer in layers.items()}
        return EvaState(counts, averages)

    def update(updates, state, params=None, *, stats=None, **extra):
        del params, extra
        if state.averages and stats is None:
            raise ValueError(f"eva: update needs the argument stats=; {UNTOLD}")
        for path in state.averages:
            if path not in (stats or {}):
                raise ValueError(
                    f"eva: stats has no {path!r}; {registry.suggest(path, stats or {})}"
                )
        vectors = stats_to_vectors({path: (stats or {})[path] for path in state.averages}, clip)
        leaves, new, averages, counts = leaf_paths(updates), {}, {}, {}
        layers = second_order(updates, spec) if vectors else {}
        for path, (a, g, good) in vectors.items():
            old = state.averages[path]
            now = (decay * x + (1 - decay) * v for x, v in zip(old, (a, g), strict=True))
            pair = [jnp.where(good[..., None], x, y) for x, y in zip(now, old, strict=True)]
            averages[path] = (pair[0], pair[1])
            counts[path] = state.counts[path] + good.astype(jnp.int32)
            # Of statistics that were skipped an average knows nothing, and of none it is 0.
            seen = jnp.maximum(counts[path], 1).astype(jnp.float32)
            whole = 1 - jnp.asarray(decay, jnp.float32) ** seen
            a, g = (x / whole[..., None] for x in pair)
            array = layers[path].array
            m = leaves[array].reshape(*a.shape, g.shape[-1]).astype(jnp.float32)
            inner = jnp.einsum("...n,...no,...o->...", a, m, g, precision="highest")
            size = jnp.sum(a * a, -1) * jnp.sum(g * g, -1)
            share = (inner / (damping + size))[..., None, None]
            p = (m - share * a[..., :, None] * g[..., None, :]) / damping
            new[array] = rescaled(p, m, rescale)

        def put(path, x):
            return new.get(path_str(path), x).reshape(x.shape).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(put, updates), EvaState(counts, averages)

    return Observing(init, update, Statistics(lambda p: init_taps(p, spec), attach_taps))


@registry.register("optimizer", "eva")
def eva_of_config(
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    mask: Mask,
    inner: str = "sgd",
    inner_settings: Mapping[str, Any] = {},
    decay: float = 0.95,
    damping: float = 0.03,
    rescale: str = "joint",
    kernels: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Eva in front of the optimizer `inner`."""
    rule = scale_by_eva(decay=decay, damping=damping, rescale=rescale, spec=kernels or None)
    return followed_by_name(
        rule,
        inner,
        inner_settings,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
    )
