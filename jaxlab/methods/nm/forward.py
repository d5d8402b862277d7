"""The weight that acts in an N:M forward pass, its gradient, and what can be measured of both.

Sources: A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
Scratch", ICLR 2021 (SR-STE); A. Bambhaniya et al., "Progressive Gradient Flow for Robust N:M
Sparsity Training in Transformers", 2024 (the effective weight W (B + (1 - B) D), and the noise of
the gradients that reach pruned weights).
"""

import jax
import jax.numpy as jnp

from jaxlab.methods.nm.schedule import GradMode


def nm_effective(
    w: jax.Array,
    mask: jax.Array,
    decay: jax.Array | float = 0.0,
    grad_mode: GradMode = "ste",
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
    return _GRAD_MODES[grad_mode](w, mask, jnp.asarray(decay).astype(w.dtype))


def _masked(w: jax.Array, mask: jax.Array, decay: jax.Array) -> jax.Array:
    # A product with 0 would turn a pruned infinity into NaN, and 0 into -0.
    pruned = jnp.where(decay == 0, jnp.zeros_like(w), w * decay)
    return jnp.where(mask, w, pruned)


# The identity derivative is a rule and not `w + stop_gradient(effective - w)`, which rounds.
_straight_through = jax.custom_jvp(_masked)
_straight_through.defjvps(lambda dw, primal, *args: dw, None, None)
_GRAD_MODES = {"ste": _straight_through, "masked": _masked}


@jax.custom_vjp
def srste_regularise(w: jax.Array, mask: jax.Array, lam: jax.Array | float) -> jax.Array:
    """The identity on w, whose backward pass adds `lam * (1 - mask) * w` to the gradient.

    The same as training on loss + lam / 2 ||(1 - mask) w||^2. The term joins the gradient before
    the optimizer, which may rescale it, as in the authors' code.

    Args:
      w: weights.
      mask: booleans of w's shape.
      lam: scalar, 0 or more.
    """
    return w


def _srste_forward(w, mask, lam):
    return w, (w, mask, lam)


def _srste_backward(residuals, g):
    w, mask, lam = residuals
    pull = jnp.where(mask, jnp.zeros_like(w), jnp.asarray(lam).astype(w.dtype) * w)
    return g + pull, None, jnp.zeros_like(lam)


srste_regularise.defvjp(_srste_forward, _srste_backward)


def nm_diagnostics(
    mask: jax.Array,
    quantities: dict[str, jax.Array] | None = None,
    previous: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Means over kept and over pruned weights, and how much the mask has changed.

    Args:
      mask: booleans (..., d_in, d_out).
      quantities: arrays of the mask's shape by name: "grad_abs" for |gradient|, "grad_var" for its
        variance over minibatches at fixed weights, "nu" for Adam's second moment, or any other.
      previous: the mask at an earlier time.

    Returns:
      float32 scalars: "<name>_kept" and "<name>_pruned" of each quantity (0 where there is no such
        weight); "noise_ratio", grad_var_pruned / grad_var_kept; "flip_rate", the fraction of
        entries in which the masks differ: of consecutive steps the flip rate of Y. Hu et al.,
        "S-STE", 2024, of distant times the distance SAD of A. Zhou et al. over the size.

    >>> mask = jnp.array([True, False, True, False])
    >>> found = nm_diagnostics(mask, {"grad_abs": jnp.array([1.0, 4.0, 3.0, 2.0])}, previous=~mask)
    >>> {name: float(value) for name, value in found.items()}
    {'grad_abs_kept': 2.0, 'grad_abs_pruned': 3.0, 'flip_rate': 1.0}
    """
    found = {}
    kept = jnp.sum(mask, dtype=jnp.float32)
    for name, values in (quantities or {}).items():
        values = values.astype(jnp.float32)
        for side, chosen, count in (("kept", mask, kept), ("pruned", ~mask, mask.size - kept)):
            found[f"{name}_{side}"] = jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(
                count, 1.0
            )
    if "grad_var_kept" in found:
        found["noise_ratio"] = found["grad_var_pruned"] / found["grad_var_kept"]
    if previous is not None:
        found["flip_rate"] = jnp.mean(mask != previous, dtype=jnp.float32)
    return found
