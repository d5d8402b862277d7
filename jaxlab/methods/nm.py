"""N:M sparsity: of every m consecutive weights along an axis, the n largest are kept.

Sources: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch", ICLR 2021 (SR-STE: the straight-through gradient plus lambda (1 - mask) W); A. Bambhaniya
et al., "Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers", 2024 (the
effective weight W (B + (1 - B) D)).

Differs from the authors' code: groups never straddle rows (a length that m does not divide is
refused), and ties keep the higher index in every implementation.
"""

import functools
from typing import Literal, Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Example, Matrix, check_dense, matrix, static
from jaxlab.methods.nm_mask import NMPattern, check_scores, nm_mask
from jaxlab.methods.nm_packed import NMPacked, nm_matmul, nm_pack, nm_unpack

__all__ = [
    "NM",
    "NMPacked",
    "NMPattern",
    "nm_effective",
    "nm_mask",
    "nm_matmul",
    "nm_pack",
    "nm_unpack",
    "srste_regularise",
]


def nm_effective(
    w: jax.Array,
    mask: jax.Array,
    decay: jax.Array | float = 0.0,
    grad_mode: Literal["ste", "masked"] = "ste",
) -> jax.Array:
    """The weight that acts in the forward pass: kept entries, and pruned ones times `decay`.

    Args:
      w: (..., d_in, d_out) dense master weight.
      mask: booleans of w's shape.
      decay: D in [0, 1]; at 0 pruned entries are exactly 0, at 1 the result is w.
      grad_mode: "ste" passes the gradient on unchanged; "masked" is the chain rule, which scales
        the gradient of pruned entries by `decay`.

    Returns:
      Array of w's shape and dtype.

    >>> w, mask = jnp.array([4.0, -3.0, 2.0, 1.0]), jnp.array([True, True, False, False])
    >>> nm_effective(w, mask, 0.25).tolist()
    [4.0, -3.0, 0.5, 0.25]
    """
    if grad_mode not in _GRAD_MODES:
        raise ValueError(f"nm: grad_mode={grad_mode!r}; valid: {', '.join(_GRAD_MODES)}")
    return _GRAD_MODES[grad_mode](w, mask, jnp.asarray(decay, w.dtype))


def _masked(w: jax.Array, mask: jax.Array, decay: jax.Array) -> jax.Array:
    # A product with 0 would turn a pruned infinity into NaN, and 0 into -0.
    pruned = jnp.where(decay == 0, jnp.zeros_like(w), w * decay)
    return jnp.where(mask, w, pruned)


# The identity derivative is a rule and not `w + stop_gradient(effective - w)`, which rounds.
_straight_through = jax.custom_jvp(_masked)
_straight_through.defjvps(lambda dw, primal, *args: dw, None, None)
_GRAD_MODES = {"ste": _straight_through, "masked": _masked}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def srste_regularise(w: jax.Array, mask: jax.Array, lam: float) -> jax.Array:
    """The identity on w, whose backward pass adds `lam * (1 - mask) * w` to the gradient.

    The same as training on loss + lam / 2 ||(1 - mask) w||^2. The term joins the gradient before
    the optimizer, which may rescale it, as in the authors' code.
    """
    return w


def _srste_forward(w, mask, lam):
    return w, (w, mask)


def _srste_backward(lam, residuals, g):
    w, mask = residuals
    return g + jnp.where(mask, jnp.zeros_like(w), lam * w), None


srste_regularise.defvjp(_srste_forward, _srste_backward)


def _ste(w: jax.Array, mask: jax.Array, lam: float) -> jax.Array:
    return nm_effective(w, mask)


def _srste(w: jax.Array, mask: jax.Array, lam: float) -> jax.Array:
    return nm_effective(srste_regularise(w, mask, lam), mask)


# What a recipe makes of the master weight, its mask and lambda.
_RECIPES = {"ste": _ste, "srste": _srste}


@matrix("nm")
class NM(Matrix):
    """`to_dense() = mask * weight`, the mask recomputed from |weight| wherever it is used.

    weight: (..., d_in, d_out), the dense master; all of it is trained, pruned entries included,
    by the straight-through gradient of the recipe. `finalize` packs it.
    """

    weight: jax.Array
    n: int = static()
    m: int = static()
    axis: int = static()
    recipe: str = static()
    lam: float = static()

    axes = {"weight": ("in", "out")}
    dense_product = True
    EXAMPLE = Example(
        shape=(8, 12),
        hyper={"n": 2, "m": 4},
        bad=(
            {"n": 0, "m": 4},
            {"n": 5, "m": 4},
            {"n": 1, "m": 3},
            {"n": 2, "m": 4, "axis": 0},
            {"n": 2, "m": 4, "recipe": "sr-ste"},
            {"n": 2, "m": 4, "lam": -1.0},
        ),
    )
    CITE = """@inproceedings{zhou2021learning,
  title={Learning {N:M} Fine-grained Structured Sparse Neural Networks From Scratch},
  author={Zhou, Aojun and Ma, Yukun and Zhu, Junnan and Liu, Jianbo and Zhang, Zhijie and Yuan,
    Kun and Sun, Wenxiu and Li, Hongsheng},
  booktitle={International Conference on Learning Representations}, year={2021}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        n: int,
        m: int,
        axis: int = -2,
        recipe: Literal["ste", "srste"] = "srste",
        lam: float = 2e-4,
        key: jax.Array | None = None,
    ) -> Self:
        """Makes `w` the master weight.

        Args:
          w: (..., d_in, d_out), floating.
          n: kept entries of every group.
          m: group size; must divide the axis.
          axis: -2 groups along the input, -1 along the output.
          recipe: "ste" (gradient passed on unchanged) or "srste" (plus lam (1 - mask) w).
          lam: weight of that term, 0 or more.
          key: unused.

        Raises:
          ValueError: an argument is out of range, or (outside jit) `w` has a NaN.

        >>> NM.from_dense(jnp.ones((8, 4)), n=2, m=4).finalize()
        NMPacked(values=float32[4, 4], index=uint8[1, 4], n=2, m=4, axis=-2)
        """
        check_dense("nm", w)
        if recipe not in _RECIPES:
            raise ValueError(f"nm: recipe={recipe!r}; valid: {', '.join(_RECIPES)}")
        if not lam >= 0:
            raise ValueError(f"nm: lam={lam} must be 0 or more")
        NMPattern(n, m, axis).check(w.shape)
        check_scores(w)
        return cls(w, n, m, axis, recipe, lam)

    @property
    def pattern(self) -> NMPattern:
        """The groups."""
        return NMPattern(self.n, self.m, self.axis)

    @property
    def mask(self) -> jax.Array:
        """Booleans: the entries that act now."""
        return nm_mask(jnp.abs(jax.lax.stop_gradient(self.weight)), self.pattern)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return self.weight.shape

    @property
    def tile(self) -> tuple[int, int]:
        """A shard holds whole groups, so that masks need no communication."""
        return self.pattern.tile(self.m)

    def to_dense(self) -> jax.Array:
        """The masked weight, with the recipe's gradient."""
        return _RECIPES[self.recipe](self.weight, self.mask, self.lam)

    def finalize(self) -> Matrix:
        """The kept values and their packed positions."""
        return nm_pack(self.weight, self.mask, self.pattern)
