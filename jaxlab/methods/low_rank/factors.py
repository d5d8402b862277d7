"""Two thin layers in place of one: factors of W by singular values, in one norm or another.

Here W is (o, i) and a layer is y = W x + b, as in the papers; its replacement is
`{"w1": (r, i), "w2": (o, r), "bias"}` with y = w2 (w1 x) + bias. Leading axes are a stack.

Sources: C. Eckart and G. Young, "The approximation of one matrix by another of lower rank",
Psychometrika 1, 1936; Z. Yuan et al., "ASVD: Activation-aware Singular Value Decomposition for
Compressing Large Language Models", 2023; X. Wang et al., "SVD-LLM: Truncation-aware Singular Value
Decomposition for Large Language Model Compression", ICLR 2025.
"""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxlab.core.gram import Gram
from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.methods.low_rank.rank import check_rank, moments

Split: TypeAlias = Literal["orthonormal", "balanced"]
Factors: TypeAlias = dict[str, Any]

# What of the singular values goes to w2 and what to w1, as powers.
_POWERS: dict[str, tuple[float, float]] = {"orthonormal": (0.0, 1.0), "balanced": (0.5, 0.5)}


def lowrank_apply(params: Factors, x: jax.Array) -> jax.Array:
    """`(x w1^T) w2^T + bias`.

    Args:
      params: "w1" (r, i), "w2" (o, r) and "bias", (o,) or None.
      x: (..., i).

    Returns:
      (..., o), in x's dtype.

    >>> lowrank_apply({"w1": jnp.ones((1, 2)), "w2": jnp.ones((3, 1)), "bias": None}, jnp.ones(2))
    Array([2., 2., 2.], dtype=float32)
    """
    y = (x @ params["w1"].astype(x.dtype).T) @ params["w2"].astype(x.dtype).T
    bias = params["bias"]
    return y if bias is None else y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


def merge_lowrank(params: Factors) -> tuple[jax.Array, jax.Array | None]:
    """The one layer that two thin ones are: `(w2 w1, bias)`, of shapes (..., o, i) and (..., o).

    >>> merge_lowrank({"w1": jnp.ones((1, 2)), "w2": jnp.ones((2, 1)), "bias": None})[0].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    return product(params["w2"], params["w1"]).astype(params["w2"].dtype), params["bias"]


def truncated_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Balanced factors of the nearest matrix of rank `rank`.

    Args:
      w: (..., m, n), floating; decomposed in float32 or better.
      rank: number of singular values kept.

    Returns:
      `(u, v)` of shapes (..., m, rank) and (..., rank, n) in w's dtype; each carries the square
      roots of the singular values, so that both train at the same scale.

    >>> u, v = truncated_svd(jnp.eye(3), 3)
    >>> bool(jnp.allclose(u @ v, jnp.eye(3), atol=1e-6))
    True
    """
    u, v = _svd(w.astype(accumulator(w.dtype)), rank, "balanced")
    return u.astype(w.dtype), v.astype(w.dtype)


def svd_factorize(
    w: jax.Array, rank: int, *, b: jax.Array | None = None, split: Split = "balanced"
) -> Factors:
    """The nearest W of a rank in the Frobenius norm; blind to the inputs.

    Args:
      w: (..., o, i), floating.
      rank: 1 to min(o, i); static under jit.
      b: (..., o) or None, returned as it is.
      split: "orthonormal" leaves the singular values to w1, so that w2's columns are orthonormal;
        "balanced" gives their roots to both.

    Returns:
      "w1" (..., r, i), "w2" (..., o, r), in w's dtype, and "bias".

    Raises:
      ValueError: `rank` or `split` is not legal.

    >>> svd_factorize(jnp.eye(3), 2)["w1"].shape
    (2, 3)
    """
    check_rank(w, rank)
    wide = jax.lax.stop_gradient(w.astype(accumulator(w.dtype)))
    w2, w1 = _svd(wide, rank, split)
    return packed(w, w1, w2, b)


def asvd_factorize(
    w: jax.Array,
    absmean: jax.Array,
    rank: int,
    alpha: float = 0.5,
    *,
    b: jax.Array | None = None,
    split: Split = "balanced",
) -> Factors:
    """ASVD: the singular values of W with columns scaled by `absmean ** alpha`, unscaled again.

    Differs from the authors' code: the decomposition is exact and not randomised, and a channel
    that was always 0 gets a scale of 1e-6 of the largest instead of adding 1e-6 to all.

    Args:
      w: (..., o, i), floating.
      absmean: (..., i), the mean of |x| by input channel (`Gram.absmean`), or one for a stack.
      rank: 1 to min(o, i); static under jit.
      alpha: 0 is the plain decomposition.
      b: as for `svd_factorize`.
      split: as for `svd_factorize`, of the scaled W.

    Returns:
      As `svd_factorize`.

    Raises:
      ValueError: an argument is out of range or does not fit.

    >>> asvd_factorize(jnp.eye(3), jnp.array([1.0, 4.0, 0.0]), 2)["w2"].shape
    (3, 2)
    """
    check_rank(w, rank)
    if not 0 <= alpha <= 1:
        raise ValueError(f"low_rank: alpha={alpha} must be in [0, 1]; nearest: 0.5")
    if absmean.shape not in ((w.shape[-1],), (*w.shape[:-2], w.shape[-1])):
        raise ValueError(
            f"low_rank: absmean of shape {absmean.shape} does not fit a matrix of {w.shape}; "
            f"nearest: {(w.shape[-1],)}"
        )
    dtype = jnp.promote_types(accumulator(w.dtype), absmean.dtype)
    wide, scale = (jax.lax.stop_gradient(x.astype(dtype)) for x in (w, absmean))
    scale = jnp.broadcast_to(scale, (*w.shape[:-2], w.shape[-1])) ** alpha
    scale = jnp.maximum(scale, 1e-6 * jnp.max(scale, axis=-1, keepdims=True))[..., None, :]
    w2, w1 = _svd(wide * scale, rank, split)
    return packed(w, w1 / scale, w2, b)


def whiten_factorize(
    w: jax.Array,
    gram: Gram,
    rank: int,
    root: Literal["eigh", "cholesky"] = "eigh",
    *,
    b: jax.Array | None = None,
    split: Split = "balanced",
) -> Factors:
    """SVD-LLM: the singular values of W S for G = S S^T, the inputs' second moments, and S undone.

    The product is that of the uncentred `lord_factorize`, U U^T W with the left singular vectors U,
    for every root S. S is undone in that form, which inverts nothing: a pseudo-inverse would also
    drop what W does to inputs that calibration has not seen.

    Args:
      w: (..., o, i), floating.
      gram: statistics of the inputs.
      rank: 1 to min(o, i); static under jit.
      root: "eigh" takes any G, "cholesky" (the paper's) a positive definite one alone.
      b: as for `svd_factorize`.
      split: as for `svd_factorize`, of W S.

    Returns:
      As `svd_factorize`.

    Raises:
      ValueError: an argument is not legal, `gram` does not fit or, outside jit, is empty, not
        finite, or too near to singular for `root="cholesky"`.

    >>> from jaxlab.core.gram import gram_init, gram_update
    >>> gram = gram_update(gram_init(3), jnp.eye(3))
    >>> whiten_factorize(jnp.eye(3), gram, 2)["w1"].shape
    (2, 3)
    """
    check_rank(w, rank)
    if root not in _ROOTS:
        raise ValueError(f"low_rank: root={root!r} is unknown; {suggest(root, _ROOTS)}")
    to_left, _ = _POWERS[_checked(split)]
    wide, g = moments(w, gram)
    left, s, _ = jnp.linalg.svd(product(wide, _ROOTS[root](g)), full_matrices=False)
    left, s = left[..., :, :rank], s[..., :rank]
    scale = jnp.maximum(s, 1e-6 * s[..., :1])
    scale = jnp.where(scale > 0, scale, 1) ** to_left
    w1 = product(jnp.swapaxes(left, -1, -2), wide) / scale[..., :, None]
    return packed(w, w1, left * scale[..., None, :], b)


def kfac_factorize(
    w: jax.Array,
    gram_in: Gram,
    gram_out: Gram,
    rank: int,
    *,
    damp: float = 1e-6,
    b: jax.Array | None = None,
    split: Split = "balanced",
) -> Factors:
    """Loss-aware: W projected on the left singular vectors of H^1/2 W G^1/2, H's root undone.

    G and H are the second moments of the layer's inputs and of the loss's gradients at its outputs:
    the curvature of the loss as K-FAC has it. With U for the vectors, the product is
    H^-1/2 U U^T H^1/2 W: G is not inverted, so that inputs which calibration has not seen keep what
    W does to them. At full rank it is W.

    Args:
      w: (..., o, i), floating.
      gram_in: statistics of the inputs.
      gram_out: of the gradients (`collect_gradient_grams`); its scale does not matter.
      rank: 1 to min(o, i); static under jit.
      damp: added to the eigenvalues of both, as a fraction of their means: an output that no
        gradient reached in calibration must not be given up. At least the dtype's rounding.
      b: as for `svd_factorize`.
      split: as for `svd_factorize`.

    Returns:
      As `svd_factorize`.

    Raises:
      ValueError: as `whiten_factorize`, for both statistics.

    >>> from jaxlab.core.gram import gram_init, gram_update
    >>> gram = gram_update(gram_init(3), jnp.eye(3))
    >>> kfac_factorize(jnp.eye(3), gram, gram, 2)["w1"].shape
    (2, 3)
    """
    check_rank(w, rank)
    to_left, _ = _POWERS[_checked(split)]
    wide, g = moments(w, gram_in)
    _, h = moments(w, gram_out, axis=-2)
    dtype = jnp.promote_types(g.dtype, h.dtype)
    wide = wide.astype(dtype)
    right, in_vectors = _damped_root(g.astype(dtype), damp)
    left, out_vectors = _damped_root(h.astype(dtype), damp)
    # Any S with S^T S = H has these singular values. H's eigenvalues times its eigenvectors is one
    # whose inverse is exact to rounding, however small they are.
    turned = left[..., :, None] * product(jnp.swapaxes(out_vectors, -1, -2), wide)
    # Within the outputs that W has: rounding would leave them where both roots are far from even.
    outputs, inner = jnp.linalg.qr(turned)
    whitened = product(inner, in_vectors * right[..., None, :])
    u, s, _ = jnp.linalg.svd(whitened, full_matrices=False)
    u, s = product(outputs, u[..., :, :rank]), s[..., :rank]
    w1 = product(jnp.swapaxes(u, -1, -2), turned)
    w2 = product(out_vectors, u / left[..., :, None])
    if to_left == 0:
        w2, rest = jnp.linalg.qr(w2)
        return packed(w, product(rest, w1), w2, b)
    scale = jnp.maximum(s, 1e-6 * s[..., :1])
    scale = jnp.where(scale > 0, scale, 1) ** to_left
    return packed(w, w1 / scale[..., :, None], w2 * scale[..., None, :], b)


def packed(w: jax.Array, w1: jax.Array, w2: jax.Array, bias: jax.Array | None) -> Factors:
    """Factors as they are returned: in the dtype of `w`."""
    return {"w1": w1.astype(w.dtype), "w2": w2.astype(w.dtype), "bias": bias}


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` without TensorFloat, whose three digits would be those of the singular vectors."""
    return jnp.matmul(a, b, precision="highest")


def symmetric_root(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """G^1/2 and its pseudo-inverse, for symmetric (..., d, d) that is 0 or more but for rounding.

    The inverse takes eigenvalues below d times the rounding of the largest for 0. The root keeps
    them: inputs with a large mean leave that far behind what else distinguishes them.
    """
    values, vectors = jnp.linalg.eigh(g)
    largest = jnp.max(values, axis=-1, keepdims=True)
    alive = values > g.shape[-1] * jnp.finfo(g.dtype).eps * largest
    root = jnp.sqrt(jnp.maximum(values, 0))
    inverse = jnp.where(alive, 1 / jnp.where(alive, root, 1), jnp.zeros_like(root))
    turned = jnp.swapaxes(vectors, -1, -2)
    return tuple(product(vectors * d[..., None, :], turned) for d in (root, inverse))  # pyright: ignore


def _checked(split: str) -> str:
    if split not in _POWERS:
        raise ValueError(f"low_rank: split={split!r} is unknown; {suggest(split, _POWERS)}")
    return split


def _svd(m: jax.Array, rank: int, split: str) -> tuple[jax.Array, jax.Array]:
    """`(left, right)` whose product is the nearest matrix of the rank."""
    to_left, to_right = _POWERS[_checked(split)]
    left, s, right = jnp.linalg.svd(m, full_matrices=False)
    s = s[..., :rank]
    u = left[..., :, :rank] * (s**to_left)[..., None, :]
    return u, (s**to_right)[..., :, None] * right[..., :rank, :]


def _by_eigh(g: jax.Array) -> jax.Array:
    return symmetric_root(g)[0]


def _by_cholesky(g: jax.Array) -> jax.Array:
    lower = jnp.linalg.cholesky(g)
    # The share of each input's square that the inputs before it do not explain: of a singular G,
    # rounding leaves something positive now and then.
    share = jnp.square(jnp.diagonal(lower, axis1=-2, axis2=-1))
    share = share / jnp.diagonal(g, axis1=-2, axis2=-1)
    small = g.shape[-1] * jnp.finfo(g.dtype).eps
    if not isinstance(share, Tracer) and not bool(jnp.all(share > small)):
        raise ValueError(
            "low_rank: root='cholesky' needs a positive definite gram, and this one is singular to "
            "rounding; nearest: root='eigh', or more inputs than channels"
        )
    return lower


_ROOTS = {"eigh": _by_eigh, "cholesky": _by_cholesky}


def _damped_root(g: jax.Array, damp: float) -> tuple[jax.Array, jax.Array]:
    """Roots of the eigenvalues, raised by `damp` of their mean, and the eigenvectors."""
    values, vectors = jnp.linalg.eigh(g)
    values = jnp.maximum(values, 0)
    # Less than rounding could not be told from it.
    share = max(damp, float(jnp.finfo(g.dtype).eps))
    return jnp.sqrt(values + share * jnp.mean(values, axis=-1, keepdims=True)), vectors
