"""The inverse of a block-diagonal damped empirical Fisher matrix: every block by itself.

Blocks of `block` consecutive coordinates, the last one filled up with gradients of 0. Those couple
to nothing, so that cutting them off again is exact. A block no wider than m is inverted densely,
(block, block); a wider one keeps the (m, block) factor of `factor`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import accumulator
from jaxlab.optim.mfac.factor import (
    FisherFactor,
    check_gradients,
    positive,
    static_factor,
    static_ihvp,
)

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockFactor:
    """F^-1 by blocks: either their inverses or their factors.

    Attributes:
      inverse: (k, block, block), or None.
      z: (k, m, block), as in `FisherFactor`, or None.
      damp: scalar.
      size: d, the number of coordinates.
    """

    inverse: jax.Array | None
    z: jax.Array | None
    damp: jax.Array
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def block(self) -> int:
        """The width of a block."""
        return jax.tree.leaves((self.inverse, self.z))[0].shape[-1]


def block_factor(grads: jax.Array, damp: jax.Array | float, block: int) -> BlockFactor:
    """Factors the inverse of the blocks on the diagonal of damp I + G^T G / m.

    Args:
      grads: (m, d), floating.
      damp: positive.
      block: width of a block; 0, or d and more, is one block of everything.

    Raises:
      ValueError: the gradients, `damp` or `block` are out of range.

    >>> f = block_factor(jnp.array([[1.0, 0.0], [1.0, 1.0]]), 1.0, 1)
    >>> [round(float(x), 4) for x in block_diag(f)]  # 1 / (1 + mean of squares)
    [0.5, 0.6667]
    """
    check_gradients("block_factor", grads, damp)
    if isinstance(block, bool) or block < 0:
        raise ValueError(f"block_factor: block={block} must be 0 (all) or more; nearest: 0")
    return _factor(grads, damp, block)


# Jitted, because op by op these are dozens of small launches.
@functools.partial(jax.jit, static_argnums=2)
def _factor(grads: jax.Array, damp: jax.Array | float, block: int) -> BlockFactor:
    m, d = grads.shape
    width = min(block, d) or d
    g = grads.astype(accumulator(grads.dtype))
    damp = jnp.asarray(damp, g.dtype)
    split = jnp.pad(g, ((0, 0), (0, -d % width))).reshape(m, -1, width)
    split = jnp.moveaxis(split, 1, 0)
    if width > m:
        z = jax.vmap(lambda rows: static_factor(rows, damp).z)(split)
        return BlockFactor(None, z, damp, d)
    gram = jnp.einsum("kmi,kmj->kij", split, split, precision=_HIGHEST) / m
    eye = jnp.eye(width, dtype=g.dtype)
    chol = jnp.linalg.cholesky(gram + (damp * eye)[None])
    root = jax.vmap(lambda c: jax.lax.linalg.triangular_solve(c, eye, left_side=True, lower=True))(
        chol
    )
    inverse = jnp.einsum("kij,kil->kjl", root, root, precision=_HIGHEST)
    return BlockFactor(inverse, None, damp, d)


def block_ihvp(f: BlockFactor, x: jax.Array) -> jax.Array:
    """F^-1 x for x: (d,).

    Raises:
      ValueError: x is not as long as the gradients.
    """
    if x.shape != (f.size,):
        raise ValueError(f"block_ihvp: x of {x.shape} must be of ({f.size},)")
    parts = split_blocks(f, x)
    if f.inverse is not None:
        y = jnp.einsum("kij,kj->ki", f.inverse, parts, precision=_HIGHEST)
    else:
        y = jax.vmap(lambda z, part: static_ihvp(FisherFactor(z, f.damp), part))(f.z, parts)
    return y.reshape(-1)[: f.size]


def block_diag(f: BlockFactor) -> jax.Array:
    """The diagonal of F^-1, (d,), of a factor clamped away from 0 as `static_diag` is."""
    if f.inverse is not None:
        return jnp.diagonal(f.inverse, axis1=-2, axis2=-1).reshape(-1)[: f.size]
    assert f.z is not None
    diag = (1 - jnp.sum(jnp.square(f.z), axis=1)) / f.damp
    return positive(diag.reshape(-1)[: f.size], f.damp)


def block_groups(f: BlockFactor, group: int) -> jax.Array:
    """The parts of F^-1 within groups of `group` consecutive coordinates.

    Those of a factor have c eps / damp on the diagonal, about what rounding may take away where the
    gradients say much more than the damping does: c eigenvalues instead of one are at stake.

    Args:
      f: the factor; `group` divides both its blocks and its size.
      group: c.

    Returns:
      (d / c, c, c).
    """
    if f.block % group or f.size % group:
        raise ValueError(
            f"block_groups: group={group} must divide block={f.block} and the {f.size} weights; "
            f"nearest block: {max(f.block // group, 1) * group}"
        )
    per_block = f.block // group
    if f.inverse is not None:
        tiles = f.inverse.reshape(-1, per_block, group, per_block, group)
        found = jnp.einsum("kpapb->kpab", tiles)
    else:
        assert f.z is not None
        z = f.z.reshape(*f.z.shape[:2], per_block, group)
        inside = jnp.einsum("kmpa,kmpb->kpab", z, z, precision=_HIGHEST)
        one = 1 + group * float(jnp.finfo(z.dtype).eps)
        found = ((one * jnp.eye(group, dtype=z.dtype))[None, None] - inside) / f.damp
    return found.reshape(-1, group, group)[: f.size // group]


def split_blocks(f: BlockFactor, x: jax.Array) -> jax.Array:
    """A vector (d,) as the blocks have it: (k, block), filled up with zeros."""
    wide = x.astype(f.damp.dtype)
    return jnp.pad(wide, (0, -f.size % f.block)).reshape(-1, f.block)
