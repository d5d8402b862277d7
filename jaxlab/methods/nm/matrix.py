"""N:M sparsity: of every m consecutive weights along an axis, the n largest are kept.

Sources: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch", ICLR 2021 (SR-STE); A. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021
(ASP); A. Bambhaniya et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in
Transformers", 2024 (mask decay and structure decay).

Differs from the authors' code: groups never straddle rows (a length that m does not divide is
refused), and ties keep the higher index in every implementation.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Example, Matrix, check_dense, matrix, static
from jaxlab.core.registry import suggest
from jaxlab.methods.dense import Dense
from jaxlab.methods.nm.forward import nm_diagnostics, nm_effective, srste_regularise
from jaxlab.methods.nm.mask import NMPattern, check_scores, nm_mask
from jaxlab.methods.nm.packed import nm_pack
from jaxlab.methods.nm.planes import check_planes, nm_pack_planes
from jaxlab.methods.nm.positions import kept_blocks
from jaxlab.methods.nm.recipes import RECIPES
from jaxlab.methods.nm.schedule import (
    GradMode,
    NMConfig,
    Phase,
    SRSTEMode,
    nm_frames,
    nm_phase,
)

_LOG = logging.getLogger(__name__)


class _Store(NamedTuple):
    """A stored form: which patterns it refuses, and how a weight and its mask are packed."""

    check: Callable[[NMPattern], None]
    pack: Callable[[jax.Array, jax.Array, NMPattern], Matrix]


_STORES = {
    "packed": _Store(NMPattern.check_matrix_axis, nm_pack),
    "planes": _Store(check_planes, nm_pack_planes),
}


def check_store(owner: str, store: str, pattern: NMPattern) -> None:
    """Raises a ValueError unless there is such a stored form, and it takes the pattern."""
    if store not in _STORES:
        raise ValueError(f"{owner}: store={store!r}; {suggest(str(store), _STORES)}")
    _STORES[store].check(pattern)


@matrix("nm")
class NM(Matrix):
    """A dense master and the N:M pattern it is trained towards.

    `to_dense()` is the weight as it acts at the end of the schedule, `mask * weight`; `at` is the
    weight as it acts now. All of the master is trained. `finalize` packs it.

    weight: (..., d_in, d_out), the master; mask: booleans of its shape, only where the mask is not
    a function of the present weight (a fixed, frozen or rarely updated one); store: the form that
    `finalize` makes.
    """

    weight: jax.Array
    mask: jax.Array | None
    config: NMConfig = static()
    store: str = static(default="packed")

    axes = {"weight": ("in", "out"), "mask": ("in", "out")}
    dense_product = True
    EXAMPLE = Example(
        shape=(32, 12),
        hyper={"n": 2, "m": 4, "recipe": "mdgf_exp", "total_steps": 100},
        bad=(
            {"n": 0, "m": 4},
            {"n": 5, "m": 4},
            {"n": 1, "m": 3},
            {"n": 2, "m": 4, "axis": 0},
            {"n": 2, "m": 4, "recipe": "sr-ste"},
            {"n": 2, "m": 4, "lam": -1.0},
            {"n": 2, "m": 4, "recipe": "mdgf_exp"},
            {"n": 2, "m": 4, "store": "plane"},
            {"n": 2, "m": 4, "axis": -1, "store": "planes"},
        ),
    )
    CITE = """@article{bambhaniya2024progressive,
  title={Progressive Gradient Flow for Robust {N:M} Sparsity Training in Transformers},
  author={Bambhaniya, Abhimanyu Rajeshkumar and Yazdanbakhsh, Amir and Subramanian, Suvinay and
    Kao, Sheng-Chun and Agrawal, Shivani and Evci, Utku and Krishna, Tushar},
  year={2024}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        n: int,
        m: int,
        axis: int = -2,
        block: int = 1,
        recipe: str = "srste",
        total_steps: int = 0,
        dense_frac: float = 0.0,
        finetune_frac: float = 0.1,
        beta_total: float | None = None,
        lam: float = 2e-4,
        grad_mode: GradMode = "ste",
        srste_mode: SRSTEMode = "grad",
        frames: tuple = (),
        mask_update_every: int = 1,
        freeze_mask_at: int | None = None,
        first_step: int = 0,
        store: Literal["packed", "planes"] = "packed",
        key: jax.Array | None = None,
    ) -> Self:
        """Makes `w` the master weight.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept entries of every group.
          m: group size; times `block`, it must divide the axis.
          axis: -2 groups along the input, -1 along the output.
          block: consecutive entries that are kept or pruned together.
          recipe: one of `RECIPES`; see `NMConfig` for what follows.
          total_steps: length of the run that `at(progress)` refers to; the training loop says it.
          dense_frac: fraction of the steps before the pattern applies.
          finetune_frac: fraction of the steps, at the end, with the binary target.
          beta_total: rate of the decay times the length of its phase; None for the recipe's.
          lam: SR-STE's pull of pruned weights towards 0.
          grad_mode: gradient of the mask decay, "ste" or "masked".
          srste_mode: where the pull is applied, "grad" or "decoupled".
          frames: (start, n, m) triples of the recipe "custom".
          mask_update_every: steps between two computations of the mask.
          freeze_mask_at: step from which the mask stays; None for never.
          first_step: the step that this matrix begins at; the training loop says it.
          store: what `finalize` makes: "packed", the smallest (`nm_packed`), or "planes", which
            kernels read (`nm_planes`).
          key: unused.

        Raises:
          ValueError: an argument is out of range, or (outside jit) `w` has a NaN.

        >>> NM.from_dense(jnp.ones((8, 4)), n=2, m=4).finalize()
        NMPacked(values=float32[4, 4], index=uint8[1, 4], n=2, m=4, axis=-2, block=1)
        """
        check_dense("nm", w)
        pattern = NMPattern(n, m, axis, block)
        check_store("nm", store, pattern)
        pattern.check(w.shape)
        check_scores(w)
        config = NMConfig(
            pattern=pattern,
            recipe=recipe,
            total_steps=total_steps,
            dense_frac=dense_frac,
            finetune_frac=finetune_frac,
            beta_total=beta_total,
            lam=lam,
            grad_mode=grad_mode,
            srste_mode=srste_mode,
            frames=tuple(tuple(f) if isinstance(f, list) else f for f in frames),
            mask_update_every=mask_update_every,
            freeze_mask_at=freeze_mask_at,
        )
        _warn_of_other_frames(config, w.shape[axis])
        for _, frame in nm_frames(config, w.shape[axis]):
            frame.check(w.shape)
        matrix = cls(w, None, config, store)
        if not config.keeps_mask:
            return matrix
        mask = matrix._fresh_mask(nm_phase(config, first_step))
        return dataclasses.replace(matrix, mask=mask)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return self.weight.shape

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole groups of every frame, so that masks need no communication."""
        frames = nm_frames(self.config, self.shape[self.config.pattern.axis])
        return self.config.pattern.tile(math.lcm(*(p.m * p.block for _, p in frames)))

    def at(self, progress: jax.Array) -> Matrix:
        """The weight as it acts at this point of the run."""
        # Nothing to prune: not even a mask is computed.
        if not RECIPES[self.config.recipe].prunes:
            return Dense(self.weight)
        return self._at_step(self._step(progress))

    def advance(self, progress: jax.Array) -> Self:
        """A stored mask computed anew where that is due; pruned weights of a fixed one at 0."""
        if self.mask is None:
            return self
        step, cfg = self._step(progress), self.config
        phase = nm_phase(cfg, step)
        old = self.mask
        mask = jax.lax.cond(cfg.updates_mask(step), lambda: self._fresh_mask(phase), lambda: old)
        weight = self.weight
        if RECIPES[cfg.recipe].fixed:
            weight = jnp.where(mask | phase.is_dense, weight, jnp.zeros_like(weight))
        return type(self)(weight, mask, cfg, self.store)

    def support(self, progress: jax.Array) -> dict[str, jax.Array]:
        """Of a fixed mask: the entries of the master that live on."""
        if not RECIPES[self.config.recipe].fixed or self.mask is None:
            return {}
        return {"weight": self.mask | nm_phase(self.config, self._step(progress)).is_dense}

    def weight_decay(self, progress: jax.Array) -> dict[str, jax.Array]:
        """Of SR-STE's decoupled mode: lambda for the entries that are pruned now."""
        if not _is_decoupled(self.config):
            return {}
        now = self._at_step(self._step(progress))
        return {"weight": jnp.where(now.mask, 0.0, _over_entries(now.lam)).astype(now.dtype)}

    def diagnose(
        self, quantities: dict[str, Any], after: "NM", progress: jax.Array, later: jax.Array
    ) -> dict[str, jax.Array]:
        """Means over kept and over pruned weights, and the flip rate until `after`."""
        now, then = self._at_step(self._step(progress)), after._at_step(self._step(later))
        values = {name: by_child["weight"] for name, by_child in quantities.items()}
        return nm_diagnostics(then.mask, values, previous=now.mask)

    def to_dense(self) -> jax.Array:
        """The weight as it acts at the end of the schedule."""
        return self._at_step(jnp.int32(self.config.total_steps)).to_dense()

    def finalize(self) -> Matrix:
        """The kept values and their packed positions; the array, if nothing is to be pruned."""
        return self._at_step(jnp.int32(self.config.total_steps)).finalize()

    def _step(self, progress: jax.Array) -> jax.Array:
        # Exact: progress is a quotient by total_steps, which is far below 2 ** 23.
        steps = jnp.asarray(progress, jnp.float32) * self.config.total_steps
        return jnp.round(steps).astype(jnp.int32)

    def _at_step(self, step: jax.Array) -> "NMNow":
        cfg = self.config
        phase = nm_phase(cfg, step)
        mask = self._fresh_mask(phase) if self.mask is None else self.mask
        lam = jnp.where(phase.is_dense, 0.0, cfg.lam if RECIPES[cfg.recipe].pulls else 0.0)
        # With the leading axes of a stack, so that scan and vmap can take it apart.
        factor, lam = (jnp.broadcast_to(x, self.shape[:-2]) for x in (phase.decay, lam))
        return NMNow(self.weight, mask, factor, lam, cfg, self.store)

    def _fresh_mask(self, phase: Phase) -> jax.Array:
        """The mask of the present weight, of the frame's pattern."""
        scores = jnp.abs(jax.lax.stop_gradient(self.weight))
        frames = nm_frames(self.config, self.shape[self.config.pattern.axis])
        patterns = [pattern for _, pattern in frames]
        if len(patterns) == 1:
            return nm_mask(scores, patterns[0])
        if len({p.m for p in patterns}) == 1:
            counts = jnp.array([p.n for p in patterns], jnp.int32)
            return nm_mask(scores, patterns[-1], counts[phase.frame])
        masks = [functools.partial(nm_mask, pattern=pattern) for pattern in patterns]
        return jax.lax.switch(phase.frame, masks, scores)


# Cached so that a model of many equal layers says it once.
@functools.cache
def _warn_of_other_frames(config: NMConfig, length: int) -> None:
    frames = nm_frames(config, length)
    if len({pattern for _, pattern in frames}) < len(frames):
        shown = ", ".join(f"{p.n}:{p.m} from step {start}" for start, p in frames)
        _LOG.warning("nm: %s on an axis of length %d: %s", config.recipe, length, shown)


@matrix()
class NMNow(Matrix):
    """`NM` at one step of its schedule: the mask is computed once, however often it multiplies.

    `to_dense()` is the weight that acts in this step, with the recipe's gradient.
    weight, mask: (..., d_in, d_out); factor: (...), D of pruned weights; lam: (...), SR-STE's, 0
    while dense.
    """

    weight: jax.Array
    mask: jax.Array
    factor: jax.Array
    lam: jax.Array
    config: NMConfig = static()
    store: str = static(default="packed")

    axes = {"weight": ("in", "out"), "mask": ("in", "out"), "factor": (), "lam": ()}
    dense_product = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return self.weight.shape

    def to_dense(self) -> jax.Array:
        """The weight that acts."""
        rule, weight = RECIPES[self.config.recipe], self.weight
        if rule.pulls and not _is_decoupled(self.config):
            weight = srste_regularise(weight, self.mask, _over_entries(self.lam))
        mode = "masked" if rule.fixed else self.config.grad_mode
        return nm_effective(weight, self.mask, _over_entries(self.factor), mode)

    def finalize(self) -> Matrix:
        """The kept values and their packed positions, by the target pattern."""
        if not RECIPES[self.config.recipe].prunes:
            return Dense(self.weight)
        pattern = self.config.pattern
        mask = nm_mask(jnp.abs(self.weight), pattern)
        if self.config.keeps_mask:
            # The stored one, unless it still is an earlier frame's.
            kept = jnp.sum(kept_blocks(self.mask, pattern) > 0, axis=pattern.axis)
            mask = jnp.where(jnp.all(kept == pattern.n), self.mask, mask)
        return _STORES[self.store].pack(self.weight, mask, pattern)


def _over_entries(x: jax.Array) -> jax.Array:
    """One number for each matrix of a stack, to be multiplied with its entries."""
    return x[..., None, None]


def _is_decoupled(config: NMConfig) -> bool:
    return RECIPES[config.recipe].pulls and config.srste_mode == "decoupled"
