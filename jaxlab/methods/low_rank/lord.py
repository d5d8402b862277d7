"""LoRD: a layer's outputs are of low rank even where its weights are not.

Source: A. Kaushal, T. Vaidhya and I. Rish, "LORD: Low Rank Decomposition of Monolingual Code LLMs
for One-Shot Compression", 2023; and G. Yu and J. Wu, "Compressing Transformers: Features Are
Low-Rank, but Weights Are Not!", AAAI 2023. Layouts as in `factors`.
"""

import jax
import jax.numpy as jnp

from jaxlab.core.gram import Cross, Gram
from jaxlab.core.registry import suggest
from jaxlab.methods.low_rank.factors import Factors, Split, packed, product, symmetric_root
from jaxlab.methods.low_rank.rank import check_rank, moments

# Of the eigenvalues, as a power: what w2 carries and w1 gives up.
_POWERS = {"orthonormal": 0.0, "balanced": 0.25}


def lord_spectrum(w: jax.Array, gram: Gram, center: bool = True) -> tuple[jax.Array, jax.Array]:
    """The eigenvalues and eigenvectors of the second moments of a layer's outputs.

    All that a search for ranks needs: at rank r the mean squared error of the outputs is the sum of
    the eigenvalues after the first r.

    Args:
      w: (..., o, i), floating.
      gram: statistics of the inputs, of a stack or one for all.
      center: whether moments are about the mean, which the layer's bias then has to carry.

    Returns:
      `(lam, v)`: (..., k) in descending order, not negative, and (..., o, k) orthonormal columns,
      for k = min(o, i): there are no more that W could tell apart.

    Raises:
      ValueError: `gram` does not fit and, outside jit, is empty or not finite.

    >>> from jaxlab.core.gram import gram_init, gram_update
    >>> gram = gram_update(gram_init(2), jnp.array([[2.0, 0.0], [-2.0, 0.0]]))
    >>> lord_spectrum(jnp.eye(2), gram)[0].tolist()
    [4.0, 0.0]
    """
    check_rank(w, 1)
    return _spectrum(*moments(w, gram, center=center))


def lord_factorize(
    w: jax.Array,
    b: jax.Array | None,
    gram: Gram,
    rank: int,
    *,
    center: bool = True,
    split: Split = "orthonormal",
    cross: Cross | None = None,
) -> tuple[Factors, jax.Array]:
    """The affine map of a rank that is nearest to the layer on the inputs it sees.

    Args:
      w: (..., o, i), floating.
      b: (..., o), or None.
      gram: statistics of the inputs, of a stack or one for all.
      rank: 1 to min(o, i); static under jit.
      center: about the mean, which is never worse; the result then has a bias even if the layer
        had none. Otherwise `b` is returned as it is.
      split: "orthonormal" columns of w2, or "balanced": the eigenvalues' fourth roots moved from w1
        to w2, for training both.
      cross: where the inputs have changed since the layer was trained: moments of the original
        ones with those of `gram`. The target stays the layer's output on the original ones.

    Returns:
      "w1" (..., r, i), "w2" (..., o, r) and "bias", in w's dtype, and (...,) the mean squared error
      of the outputs over the inputs of `gram`; with `cross`, what the rank adds to it.

    Raises:
      ValueError: `rank` or `split` is not legal, `gram` does not fit and, outside jit, is empty or
        not finite.

    >>> from jaxlab.core.gram import gram_init, gram_update
    >>> gram = gram_update(gram_init(2), jnp.array([[3.0, 1.0], [-1.0, 1.0]]))
    >>> params, error = lord_factorize(jnp.eye(2), None, gram, 1)
    >>> params["bias"].tolist(), float(error)
    ([0.0, 1.0], 0.0)
    """
    check_rank(w, rank)
    if split not in _POWERS:
        raise ValueError(f"low_rank: split={split!r} is unknown; {suggest(split, _POWERS)}")
    wide, moment = moments(w, gram, center=center)
    target = wide if cross is None else drift_corrected(wide, cross, center=center)
    lam, v = _spectrum(target, moment)
    v = v[..., :rank]
    w1 = product(jnp.swapaxes(v, -1, -2), target)
    bias = b
    if center:
        before = gram.mean if cross is None else cross.mean
        bias = _output_mean(wide, before) - _output_mean(product(v, w1), gram.mean)
        bias = bias if b is None else bias + b.astype(bias.dtype)
        bias = bias.astype(w.dtype if b is None else b.dtype)
    floor = jnp.maximum(lam[..., :rank], 1e-12 * lam[..., :1])
    scale = jnp.where(floor > 0, floor, 1) ** _POWERS[split]
    tail = jnp.sum(lam[..., rank:], axis=-1)
    return packed(w, w1 / scale[..., :, None], v * scale[..., None, :], bias), tail


def drift_corrected(w: jax.Array, cross: Cross, *, center: bool) -> jax.Array:
    """The best linear map from changed inputs to a layer's outputs on the original ones.

    E[y z^T] E[z z^T]^+ for y = W x and changed inputs z, or the same of covariances; where z never
    went, W itself.

    Args:
      w: (..., o, i), floating.
      cross: moments of (x, z).
      center: whether they are about the means.

    Returns:
      (..., o, i) in float32 or better.

    >>> from jaxlab.core.gram import gram_init, gram_split, gram_update
    >>> joint = gram_update(gram_init(2), jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> drift_corrected(jnp.ones((1, 1)), gram_split(joint), center=True).tolist()
    [[0.5]]
    """
    wide, changed = moments(w, cross.gram, center=center)
    pairs = cross.moment(center=center).astype(changed.dtype)
    _, root = symmetric_root(changed)
    # The difference first: W itself stays exact, however badly conditioned the inputs are.
    drift = product(wide, jnp.broadcast_to(pairs, changed.shape) - changed)
    return wide + product(product(drift, root), root)


def _spectrum(wide: jax.Array, moment: jax.Array) -> tuple[jax.Array, jax.Array]:
    o, i = wide.shape[-2:]
    turned = jnp.swapaxes(wide, -1, -2)
    if o <= i:
        lam, v = jnp.linalg.eigh(product(product(wide, moment), turned))
        v = v[..., ::-1]
    else:
        # The smaller problem has the same eigenvalues. Its vectors, mapped to the outputs, are
        # orthogonal; QR makes them so to rounding where their eigenvalues are lost in it.
        root, _ = symmetric_root(moment)
        half = product(wide, root)
        lam, inner = jnp.linalg.eigh(product(jnp.swapaxes(half, -1, -2), half))
        v, _ = jnp.linalg.qr(product(half, inner[..., ::-1]))
    return jnp.maximum(lam[..., ::-1], 0), v


def _output_mean(w: jax.Array, mean: jax.Array) -> jax.Array:
    mean = jnp.broadcast_to(mean, (*w.shape[:-2], w.shape[-1])).astype(w.dtype)
    return product(w, mean[..., None])[..., 0]
