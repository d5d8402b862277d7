"""First and second moments of vectors, gathered batch by batch without losing digits.

Sources: T. Chan, G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances", 1979 (the merge); D. Knuth, "The art of computer programming", volume 2, section
4.2.2, theorem B (the exact sum of two numbers, which keeps the mean to twice the precision).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer


class Gram(NamedTuple):
    """First and second moments of vectors: all that one-shot methods ask of a layer's inputs.

    Attributes:
      count: (...), the sum of the weights; leading axes are a stack.
      mean: (..., d), rounded.
      tail: (..., d), what the rounding took from the mean: without it a mean far from 0 would lose
        in each merge what distinguishes two batches.
      m2: (..., d, d), the sum of weight * (x - mean) (x - mean)^T.
      absmean: (..., d), the mean of |x|.
    """

    count: jax.Array
    mean: jax.Array
    tail: jax.Array
    m2: jax.Array
    absmean: jax.Array

    @property
    def second_moment(self) -> jax.Array:
        """X^T X, (..., d, d): the sum of weight * x x^T."""
        return self.m2 + self.count[..., None, None] * _outer(self.mean)

    @property
    def norms(self) -> jax.Array:
        """The norms of the columns of X, (..., d): roots of the diagonal of X^T X."""
        squares = jnp.diagonal(self.m2, axis1=-2, axis2=-1)
        return jnp.sqrt(squares + self.count[..., None] * jnp.square(self.mean))

    def moment(self, *, center: bool) -> jax.Array:
        """E[x x^T], (..., d, d), or about the mean: the covariance."""
        return (self.m2 if center else self.second_moment) / self.count[..., None, None]


class Cross(NamedTuple):
    """Moments of pairs (x, y) of vectors, such as a layer's inputs before and after a change.

    Attributes:
      gram: of y.
      mean: (..., d), of x.
      covariance: (..., d, d), E[(x - mean x) (y - mean y)^T].
    """

    gram: Gram
    mean: jax.Array
    covariance: jax.Array

    def moment(self, *, center: bool) -> jax.Array:
        """E[x y^T], (..., d, d), or about the means: the covariance."""
        if center:
            return self.covariance
        return self.covariance + self.mean[..., :, None] * self.gram.mean[..., None, :]


def check_gram(owner: str, gram: Gram, d: int, stack: tuple[int, ...]) -> None:
    """Raises a ValueError unless a method can use `gram` for a kernel, or for each of a stack.

    Args:
      owner: how the message calls the method.
      gram: the statistics; their values are looked at outside jit only.
      d: length of the vectors.
      stack: leading axes of the kernels.
    """
    if gram.mean.shape not in ((d,), (*stack, d)):
        raise ValueError(
            f"{owner}: a gram of vectors of shape {gram.mean.shape} does not fit; nearest: {(d,)}"
        )
    if any(isinstance(leaf, Tracer) for leaf in gram):
        return
    if not bool(jnp.all(gram.count > 0)):
        raise ValueError(f"{owner}: the gram has seen no vectors (count 0); nearest: one batch")
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in gram):
        raise ValueError(f"{owner}: the gram is not finite; an input was infinite or NaN")


def gram_split(joint: Gram) -> Cross:
    """The moments of pairs from those of the vectors (x, y) of length 2 d.

    >>> pairs = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> gram_split(gram_update(gram_init(2), pairs)).covariance.tolist()
    [[2.0]]
    """
    d = joint.mean.shape[-1] // 2
    vectors = (leaf[..., d:] for leaf in (joint.mean, joint.tail, joint.absmean))
    mean, tail, absmean = vectors
    gram = Gram(joint.count, mean, tail, joint.m2[..., d:, d:], absmean)
    covariance = joint.m2[..., :d, d:] / joint.count[..., None, None]
    return Cross(gram, joint.mean[..., :d], covariance)


def gram_init(d: int, *, stack: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Gram:
    """The statistics of no vectors of length `d`, or a stack of such.

    >>> gram_init(3).second_moment.shape
    (3, 3)
    """
    zeros = [jnp.zeros((*stack, *shape), dtype) for shape in ((), (d,), (d,), (d, d), (d,))]
    return Gram(*zeros)


def gram_update(
    gram: Gram,
    x: jax.Array,
    weight: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
) -> Gram:
    """The statistics with further vectors.

    Args:
      gram: of vectors of length d, not a stack.
      x: (..., d), real; computed in the dtype of `gram`.
      weight: broadcastable to the leading axes of `x`, not negative; None is 1 for each vector. A
        vector of weight 0 changes nothing, even if it is not finite.
      mask: likewise, booleans or numbers: a vector where it is 0 counts nothing, whatever its
        weight; elsewhere the weight alone counts. None is True for each vector.

    Returns:
      The statistics of what `gram` has seen, and of `x`.

    Raises:
      ValueError: `x`, `weight` or `mask` does not fit.

    >>> gram = gram_update(gram_init(2), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> gram.mean.tolist(), gram.second_moment.tolist()
    ([2.0, 3.0], [[10.0, 14.0], [14.0, 20.0]])
    >>> padded = jnp.array([[1.0, 2.0], [3.0, 4.0], [9.0, jnp.nan]])
    >>> gram_update(gram_init(2), padded, mask=jnp.array([1, 1, 0])).mean.tolist()
    [2.0, 3.0]
    """
    d = gram.mean.shape[-1]
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"gram_update: x of shape {x.shape} is no array of vectors of length {d}")
    shape = x.shape[:-1]
    weight = _for_rows("weight", weight, shape).astype(gram.mean.dtype)
    kept = _for_rows("mask", mask, shape)
    weight = jnp.where(kept != jnp.zeros_like(kept), weight, jnp.zeros_like(weight))
    rows = x.reshape(-1, d).astype(gram.mean.dtype)
    alive = jnp.where(weight[:, None] > 0, rows, jnp.zeros_like(rows))
    count = jnp.sum(weight)
    share = weight / jnp.where(count > 0, count, 1)
    near = jnp.matmul(weight, alive, precision="highest") / jnp.where(count > 0, count, 1)
    # Once more: each addition to a large sum rounds the same way, and 60000 rows at 1e4 miss their
    # mean by 3, which the second moments about it would pay for.
    offset = jnp.where(weight[:, None] > 0, alive - near[None, :], jnp.zeros_like(alive))
    near += jnp.matmul(share, offset, precision="highest")
    return gram_merge(gram, gram_of_sums(near, shifted_sums(rows, near, weight)))


def gram_merge(a: Gram, b: Gram) -> Gram:
    """The statistics of what `a` and `b` have seen together: an associative sum.

    >>> one, two = (gram_update(gram_init(1), jnp.array([[x]])) for x in (1.0, 3.0))
    >>> both = gram_merge(one, two)
    >>> both.mean.tolist(), both.m2.tolist()
    ([2.0], [[2.0]])
    """
    count = a.count + b.count
    share = b.count / jnp.where(count > 0, count, 1)
    # The means' difference first: they are near each other, so that it is exact.
    delta = (b.mean - a.mean) + (b.tail - a.tail)
    mean, tail = _two_sum(a.mean, a.tail + share[..., None] * delta)
    m2 = a.m2 + b.m2 + (a.count * share)[..., None, None] * _outer(delta)
    absmean = a.absmean + share[..., None] * (b.absmean - a.absmean)
    merged = Gram(count, mean, tail, m2, absmean)
    merged = jax.tree.map(lambda new, old: _where(b.count == 0, old, new), merged, a)
    return jax.tree.map(lambda new, old: _where(a.count == 0, old, new), merged, b)


def gram_allreduce(gram: Gram, axis_name: str) -> Gram:
    """The merge of what every member of a mapped axis has seen, for `jax.shard_map` and `pmap`.

    Args:
      gram: what this member has seen.
      axis_name: of the mapped axis.

    Returns:
      The same statistics on every member.
    """
    count = jax.lax.psum(gram.count, axis_name)
    share = (gram.count / jnp.where(count > 0, count, 1))[..., None]
    near = jax.lax.psum(share * gram.mean, axis_name)
    offset = (gram.mean - near) + gram.tail
    mean_offset = jax.lax.psum(share * offset, axis_name)
    spread = gram.count[..., None, None] * _outer(offset - mean_offset)
    mean, tail = _two_sum(near, mean_offset)
    m2 = jax.lax.psum(gram.m2 + spread, axis_name)
    return Gram(count, mean, tail, m2, jax.lax.psum(share * gram.absmean, axis_name))


class Sums(NamedTuple):
    """Sums over vectors about a fixed shift c, which add up where a `Gram` would have to merge.

    count: (...), of weights; first: (..., d), of weight * (x - c); second: (..., d, d), of
    weight * (x - c) (x - c)^T; absolute: (..., d), of weight * |x|, about 0.
    """

    count: jax.Array
    first: jax.Array
    second: jax.Array
    absolute: jax.Array


def shifted_sums(rows: jax.Array, shift: jax.Array, weight: jax.Array) -> Sums:
    """Sums over rows: (n, d) about `shift`: (d,), with weights (n,); all of one floating dtype."""
    offset = jnp.where(weight[:, None] > 0, rows - shift[None, :], jnp.zeros_like(rows))
    # A root on either side of the product keeps it symmetric.
    scaled = jnp.sqrt(weight)[:, None] * offset
    second = jnp.matmul(scaled.T, scaled, precision="highest")
    first = jnp.matmul(weight, offset, precision="highest")
    alive = jnp.where(weight[:, None] > 0, jnp.abs(rows), jnp.zeros_like(rows))
    absolute = jnp.matmul(weight, alive, precision="highest")
    return Sums(jnp.sum(weight), first, second, absolute)


def gram_of_sums(shift: jax.Array, sums: Sums) -> Gram:
    """The statistics behind sums about `shift`: (..., d); accurate if that is near the mean."""
    count = jnp.where(sums.count > 0, sums.count, 1)
    offset = sums.first / count[..., None]
    mean, tail = _two_sum(shift, offset)
    m2 = sums.second - count[..., None, None] * _outer(offset)
    return Gram(sums.count, mean, tail, m2, sums.absolute / count[..., None])


def _for_rows(name: str, values: Any, shape: tuple[int, ...]) -> jax.Array:
    """What an argument says of each vector, flat; None is 1."""
    given = jnp.ones(shape) if values is None else jnp.asarray(values)
    try:
        return jnp.broadcast_to(given, shape).reshape(-1)
    except ValueError:
        raise ValueError(
            f"gram_update: {name} of shape {given.shape} does not broadcast to the leading axes "
            f"{shape} of x"
        ) from None


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum and its rounding error; exact."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _outer(x: jax.Array) -> jax.Array:
    return x[..., :, None] * x[..., None, :]


def _where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)
