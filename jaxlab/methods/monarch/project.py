"""The nearest Monarch matrix to a dense one, with and without the statistics of its inputs.

Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
Training", ICML 2022, section 3.3 (theorem 1 and algorithm 1), here for any block sizes, ranks and
padding. The weighted distance and its sweeps are own derivations: with all input blocks fixed but
one, the best change of that one is a weighted approximation of low rank again.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.dense import check_finite
from jaxlab.core.matrix import accumulator
from jaxlab.core.registry import suggest
from jaxlab.methods.monarch.shape import MonarchShape
from jaxlab.methods.monarch.slices import join_slices

_matmul = functools.partial(jnp.matmul, precision="highest")
_einsum = functools.partial(jnp.einsum, precision="highest")


def project_to_monarch(
    a: jax.Array,
    shape: MonarchShape,
    *,
    gram_blocks: jax.Array | None = None,
    gram: jax.Array | None = None,
    sweeps: int = 4,
    method: str = "svd",
    iters: int = 4,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The Monarch matrix W nearest to A: the best approximation of low rank of every slice.

    Padding adds zeros to slices and no error. With G = E[x x^T] of the inputs, the distance is
    ||(A - W) G^(1/2)||, the error of the outputs. It is solved exactly where G is block-diagonal
    over the k input blocks; otherwise sweeps over the blocks start from there, none of which raises
    the error. G may be singular: roots come from eigenvalues and not from a Cholesky factor.

    Not to be differentiated: no gradient passes, since that of an SVD is NaN where singular values
    are equal.

    Args:
      a: (n_out, n_in), floating or complex; computed in float32 or better.
      shape: of the factors.
      gram_blocks: (k, p, p), the diagonal blocks of G;
      gram: or all of G, (n_in, n_in), or a multiple of it.
      sweeps: with `gram`, how often each block is solved for again.
      method: "svd", or "subspace" iteration, which only multiplies and orthogonalises: for devices
        on which the SVD of large slices is slow.
      iters: of the subspace iteration.

    Returns:
      `(params, residual)`: {"w1": (k, q, p), "w2": (l, s, r)} in a's dtype, of which the two
      factors of a slice have equal norms, and the Frobenius norm of A - W before rounding to that
      dtype, weighted if the distance is. If A is not finite, and traced, it is NaN.

    Raises:
      ValueError: an argument does not fit or, outside jit, `a` is not finite.
      TypeError: `a` is an integer array.

    >>> from jaxlab.methods.monarch.shape import monarch_shapes
    >>> params, residual = project_to_monarch(jnp.eye(16), monarch_shapes(16, 16, nblocks=4))
    >>> bool(residual < 1e-6)  # the identity is one
    True
    """
    _check(a, shape, gram_blocks, gram, sweeps, method, iters)
    return _project(a, gram_blocks, gram, sweeps, shape=shape, method=method, iters=iters)


@functools.partial(jax.jit, static_argnames=("shape", "method", "iters"))
def _project(
    a: jax.Array,
    gram_blocks: jax.Array | None,
    gram: jax.Array | None,
    sweeps: jax.Array | int,
    *,
    shape: MonarchShape,
    method: str,
    iters: int,
) -> tuple[dict[str, jax.Array], jax.Array]:
    wide = a.dtype if jnp.iscomplexobj(a) else accumulator(a.dtype)
    k, l, p, s = shape.k, shape.l, shape.p, shape.s  # noqa: E741
    padded = jnp.pad(
        jax.lax.stop_gradient(a).astype(wide),
        [(0, s * l - shape.n_out), (0, k * p - shape.n_in)],
    )
    # Squares of what is far from 1 leave float32's range. A power of four has an exact root.
    largest = jnp.max(jnp.abs(padded))
    _, exponent = jnp.frexp(jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1))
    scale = jnp.ldexp(jnp.ones((), largest.dtype), exponent // 2)
    padded = padded / scale.astype(wide) / scale.astype(wide)
    target = padded.reshape(s, l, k, p).transpose(2, 1, 0, 3)
    ranks = jnp.asarray(shape.block_ranks.T)
    fit = functools.partial(_fit, most=-(-shape.q // l), basis=_BASES[method], iters=iters)
    if gram is not None:
        missing = k * p - shape.n_in
        full = jnp.pad(jax.lax.stop_gradient(gram).astype(wide), [(0, missing)] * 2)
        full = full.reshape(k, p, k, p)
        blocks = _roots(jnp.einsum("kpkr->kpr", full))
        left, right = fit(target, blocks.root[:, None], ranks)
        left, right = _sweep(target, left, right, full, blocks, ranks, fit, sweeps)
        error = target - _product(left, right)
        pulled = _einsum("hjsi,hikp->kjsp", error, full)
        squared = jnp.sum((pulled * error.conj()).real)
    elif gram_blocks is not None:
        root = _roots(jax.lax.stop_gradient(gram_blocks).astype(wide)).root[:, None]
        left, right = fit(target, root, ranks)
        squared = jnp.sum(jnp.abs(_matmul(target - _product(left, right), root)) ** 2)
    else:
        left, right = fit(target, None, ranks)
        squared = jnp.sum(jnp.abs(target - _product(left, right)) ** 2)
    w1, w2 = join_slices(left * scale.astype(wide), right * scale.astype(wide), shape)
    # Not `maximum(x, 0)`: rounding may make a weighted 0 negative, but NaN has to stay.
    residual = jnp.sqrt(jnp.where(squared < 0, jnp.zeros_like(squared), squared))
    residual = residual * scale.astype(residual.dtype) * scale.astype(residual.dtype)
    return {"w1": w1.astype(a.dtype), "w2": w2.astype(a.dtype)}, residual


def _fit(
    target: jax.Array,
    root: jax.Array | None,
    ranks: jax.Array,
    *,
    most: int,
    basis: Callable[[jax.Array, int, int], jax.Array],
    iters: int,
) -> tuple[jax.Array, jax.Array]:
    """Best factors (..., e, s) and (..., e, p) of targets (..., s, p) in the norm |X root|.

    With U the leading left singular vectors of `target @ root`, the best matrix is U U^H target,
    which asks for no inverse of the root.
    """
    weighted = target if root is None else _matmul(target, root)
    found = min(most, *target.shape[-2:])
    u = jnp.swapaxes(basis(weighted, found, iters), -1, -2)
    pair = jax.lax.broadcasted_iota(ranks.dtype, (*ranks.shape, found, 1), ranks.ndim)
    u = jnp.where(pair < ranks[..., None, None], u, jnp.zeros((), u.dtype))
    right = _matmul(u.conj(), target)
    norm = jnp.linalg.norm(right, axis=-1, keepdims=True)
    # Equal norms, since factors of unequal ones train badly.
    share = jnp.sqrt(norm)
    right /= jnp.where(norm > 0, share, 1).astype(right.dtype)
    surplus = [(0, 0)] * (target.ndim - 2) + [(0, most - found), (0, 0)]
    return jnp.pad(u * share.astype(u.dtype), surplus), jnp.pad(right, surplus)


def _by_svd(x: jax.Array, rank: int, iters: int) -> jax.Array:
    return jnp.linalg.svd(x, full_matrices=False)[0][..., :rank]


def _by_subspace(x: jax.Array, rank: int, iters: int) -> jax.Array:
    # A few columns more than asked for make up for a slow decay at the cut.
    width = min(rank + 8, *x.shape[-2:])
    turned = jnp.swapaxes(x, -1, -2).conj()
    start = jax.random.normal(jax.random.key(0), (x.shape[-1], width), x.dtype)
    q = jnp.linalg.qr(_einsum("...sp,pw->...sw", x, start))[0]

    def refine(_, q):
        return jnp.linalg.qr(_matmul(x, jnp.linalg.qr(_matmul(turned, q))[0]))[0]

    q = jax.lax.fori_loop(0, iters, refine, q)
    small = _matmul(jnp.swapaxes(q, -1, -2).conj(), x)
    _, order = jnp.linalg.eigh(_matmul(small, jnp.swapaxes(small, -1, -2).conj()))
    return _matmul(q, order[..., ::-1][..., :rank])


_BASES = {"svd": _by_svd, "subspace": _by_subspace}


class _Roots(NamedTuple):
    """Of each block of a Gram: `root root^H` is the block, and `inverse` its pseudoinverse."""

    root: jax.Array
    inverse: jax.Array


def _roots(blocks: jax.Array) -> _Roots:
    values, vectors = jnp.linalg.eigh(blocks)
    largest = jnp.max(values, axis=-1, keepdims=True)
    floor = jnp.finfo(values.dtype).eps * values.shape[-1] * largest
    alive = values > floor
    # The root keeps small eigenvalues: a large mean leaves the rest of the inputs far behind.
    root = jnp.sqrt(jnp.maximum(values, 0)).astype(blocks.dtype)
    inverse = jnp.where(alive, 1 / jnp.where(alive, values, 1), 0).astype(blocks.dtype)
    turned = jnp.swapaxes(vectors, -1, -2).conj()
    return _Roots(vectors * root[..., None, :], _matmul(vectors * inverse[..., None, :], turned))


def _sweep(
    target: jax.Array,
    left: jax.Array,
    right: jax.Array,
    gram: jax.Array,
    blocks: _Roots,
    ranks: jax.Array,
    fit: Callable,
    sweeps: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    k = target.shape[0]

    # With E the error of all blocks, the objective is quadratic in the slices of block i, with the
    # minimum at their present value + (E G)_i G_ii^-1: that is what low rank has to approximate.
    def solve(step, state):
        left, right, error = state
        i = step % k
        pulled = _einsum("hjsi,hip->jsp", error, jnp.take(gram, i, axis=2))
        present = target[i] - error[i]
        best = present + _matmul(pulled, blocks.inverse[i][None])
        new_left, new_right = fit(best, blocks.root[i][None], ranks[i])
        error = error.at[i].set(target[i] - _product(new_left, new_right))
        return left.at[i].set(new_left), right.at[i].set(new_right), error

    state = left, right, target - _product(left, right)
    return jax.lax.fori_loop(0, k * sweeps, solve, state)[:2]


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return _einsum("...es,...ep->...sp", left, right)


def _check(
    a: jax.Array,
    shape: MonarchShape,
    gram_blocks: jax.Array | None,
    gram: jax.Array | None,
    sweeps: int,
    method: str,
    iters: int,
) -> None:
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        raise TypeError(f"project_to_monarch: a is {a.dtype}; cast it to a floating dtype")
    if a.shape != (shape.n_out, shape.n_in):
        raise ValueError(
            f"project_to_monarch: a of shape {a.shape} is not (n_out, n_in) = "
            f"{(shape.n_out, shape.n_in)}"
        )
    if gram_blocks is not None and gram is not None:
        raise ValueError("project_to_monarch: give one of gram_blocks and gram")
    for name, array, expected in [
        ("gram_blocks", gram_blocks, (shape.k, shape.p, shape.p)),
        ("gram", gram, (shape.n_in, shape.n_in)),
    ]:
        if array is not None and array.shape != expected:
            raise ValueError(
                f"project_to_monarch: {name} of shape {array.shape} does not fit; nearest: "
                f"{expected}"
            )
    for name, count in [("sweeps", sweeps), ("iters", iters)]:
        if not 0 <= count < math.inf:
            raise ValueError(f"project_to_monarch: {name}={count} must be 0 or more; nearest: 0")
    if method not in _BASES:
        raise ValueError(
            f"project_to_monarch: method={method!r} is unknown; {suggest(method, _BASES)}"
        )
    check_finite("project_to_monarch", a)
