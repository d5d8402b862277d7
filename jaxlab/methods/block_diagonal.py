"""Block-diagonal matrices, with an optional fixed shuffle of the channels before them.

Source: T. Dao et al., "Monarch: Expressive Structured Matrices for Efficient and Accurate
Training", ICML 2022, whose published BERT runs train such layers (four blocks, in the MLP) and end
dense. The shuffle is that of X. Zhang et al., "ShuffleNet", CVPR 2018: without one, stacked layers
are k networks that never meet.
"""

from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Cost, Example, Matrix, accumulator, check_weights, matrix, static
from jaxlab.core.registry import suggest


def shuffle_channels(x: jax.Array, groups: int) -> jax.Array:
    """Deals the last axis out to `groups` groups: each gets an equal share of every old group.

    Args:
      x: (..., d), where `groups` divides d.
      groups: number of groups; `d // groups` undoes the shuffle.

    Returns:
      (..., d), with `x[..., g * (d // groups) + j]` at `j * groups + g`.

    >>> shuffle_channels(jnp.arange(6), 2).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(split, -1, -2).reshape(x.shape)


def diagonal_blocks(w: jax.Array, nblocks: int) -> jax.Array:
    """The diagonal blocks of a matrix: what is nearest to it in the Frobenius norm.

    Args:
      w: (..., d_in, d_out); `nblocks` divides both.
      nblocks: k.

    Returns:
      (..., k, d_in / k, d_out / k).

    >>> diagonal_blocks(jnp.arange(8).reshape(2, 4), 2).tolist()
    [[[0, 1]], [[6, 7]]]
    """
    *stack, d_in, d_out = w.shape
    tiles = w.reshape(*stack, nblocks, d_in // nblocks, nblocks, d_out // nblocks)
    return jnp.einsum("...kpkq->...kpq", tiles)


def block_diagonal_to_dense(blocks: jax.Array) -> jax.Array:
    """The dense matrix of some blocks.

    Args:
      blocks: (..., k, p, q).

    Returns:
      (..., k p, k q), zero off the blocks.

    >>> block_diagonal_to_dense(jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])).tolist()
    [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]
    """
    *stack, k, p, q = blocks.shape
    on = jnp.eye(k, dtype=bool)[:, None, :, None]
    on = on.reshape((1,) * len(stack) + on.shape)
    tiles = jnp.where(on, blocks[..., :, :, None, :], jnp.zeros((), blocks.dtype))
    return tiles.reshape(*stack, k * p, k * q)


@matrix("block_diagonal")
class BlockDiagonal(Matrix):
    """`to_dense()` is blockdiag(blocks), its rows in shuffled order where `shuffle` is set.

    blocks: (..., k, d_in / k, d_out / k). A product splits x in k parts, the shuffled x if
    `shuffle`, and multiplies each with its block.
    """

    blocks: jax.Array
    shuffle: bool = static()

    # k runs along the output, too, but a sharding of both axes can split each child's axis once.
    axes = {"blocks": ("in", None, "out")}
    EXAMPLE = Example(
        shape=(16, 24),
        hyper={"nblocks": 4, "shuffle": True},
        bad=({"nblocks": 0}, {"nblocks": 3}, {"nblocks": 16}, {"init": "nearest"}),
    )
    CITE = """@inproceedings{dao2022monarch,
  title={Monarch: Expressive Structured Matrices for Efficient and Accurate Training},
  author={Dao, Tri and Chen, Beidi and Sohoni, Nimit S. and Desai, Arjun and Poli, Michael and
    Grogan, Jessica and Liu, Alexander and Rao, Aniruddh and Rudra, Atri and R\\'e, Christopher},
  booktitle={ICML}, year={2022}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        nblocks: int = 4,
        shuffle: bool = False,
        init: str = "project",
        key: jax.Array | None = None,
    ) -> Self:
        """The diagonal blocks of `w`, or new blocks of the same output variance.

        Args:
          w: (..., d_in, d_out), floating.
          nblocks: k, which divides both; stores 1/k of the dense parameters.
          shuffle: whether the input is shuffled first, so that stacked layers mix.
          init: "project" is the nearest such matrix; "variance_preserving" draws uniform entries
            of variance k / d_in (a dense layer's 1 / d_in times k, since k times fewer are summed),
            and takes no more than the shape of `w`.
          key: for "variance_preserving".

        Raises:
          ValueError: `nblocks` does not divide, `init` is unknown, or a key is missing.

        >>> BlockDiagonal.from_dense(jnp.ones((8, 12)), nblocks=2)
        BlockDiagonal(blocks=float32[2, 4, 6], shuffle=False)
        """
        check_weights("block_diagonal", w)
        d_in, d_out = w.shape[-2:]
        if nblocks < 1 or d_in % nblocks or d_out % nblocks:
            legal = [k for k in range(1, min(d_in, d_out) + 1) if d_in % k == d_out % k == 0]
            nearest = min(legal, key=lambda k: abs(k - nblocks))
            raise ValueError(
                f"block_diagonal: nblocks={nblocks} must divide both axes of a kernel of "
                f"{d_in} x {d_out}; nearest: {nearest}"
            )
        if init not in _INITS:
            raise ValueError(f"block_diagonal: init={init!r} is unknown; {suggest(init, _INITS)}")
        return cls(_INITS[init](w, nblocks, shuffle, key), shuffle)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        *stack, k, p, q = self.blocks.shape
        return (*stack, k * p, k * q)

    @property
    def tile(self) -> tuple[int, int]:
        """Shards hold whole blocks of rows, or an equal share of every block's columns."""
        return self.blocks.shape[-2], self.blocks.shape[-3]

    def to_dense(self) -> jax.Array:
        """The blocks on zeros; exact."""
        dense = block_diagonal_to_dense(self.blocks)
        return _unshuffled_rows(dense, self.blocks.shape[-3]) if self.shuffle else dense

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """Each part of x times its block."""
        k, p, q = self.blocks.shape
        x = shuffle_channels(x, k) if self.shuffle else x
        parts = x.reshape(*x.shape[:-1], k, p)
        y = jnp.einsum("...kp,kpq->...kq", parts, self.blocks.astype(x.dtype))
        return y.reshape(*x.shape[:-1], k * q)

    def tmatmul(self, x: jax.Array) -> jax.Array:
        """Each part of x times its transposed block, then the shuffle undone."""
        k, p, q = self.blocks.shape
        parts = x.reshape(*x.shape[:-1], k, q)
        y = jnp.einsum("...kq,kpq->...kp", parts, self.blocks.astype(x.dtype))
        y = y.reshape(*x.shape[:-1], k * p)
        return shuffle_channels(y, p) if self.shuffle else y

    def cost(self, rows: int) -> Cost:
        """1/k of the dense product."""
        d_in, d_out = self.shape[-2:]
        moved = self.nbytes + rows * (d_in + d_out) * self.dtype.itemsize
        return Cost(flops=2 * rows * d_in * self.blocks.shape[-1], bytes=moved)


def _project(w: jax.Array, nblocks: int, shuffle: bool, key: jax.Array | None) -> jax.Array:
    rows = jnp.swapaxes(shuffle_channels(jnp.swapaxes(w, -1, -2), nblocks), -1, -2)
    return diagonal_blocks(rows if shuffle else w, nblocks)


def _draw(w: jax.Array, nblocks: int, shuffle: bool, key: jax.Array | None) -> jax.Array:
    if key is None:
        raise ValueError(
            "block_diagonal: init='variance_preserving' needs a key; nearest: init='project'"
        )
    *stack, d_in, d_out = w.shape
    shape = (*stack, nblocks, d_in // nblocks, d_out // nblocks)
    bound = (3 * nblocks / d_in) ** 0.5
    wide = jax.random.uniform(key, shape, accumulator(w.dtype), -bound, bound)
    return wide.astype(w.dtype)


_INITS: dict[str, Callable[..., jax.Array]] = {"project": _project, "variance_preserving": _draw}


def _unshuffled_rows(w: jax.Array, nblocks: int) -> jax.Array:
    turned = jnp.swapaxes(w, -1, -2)
    return jnp.swapaxes(shuffle_channels(turned, w.shape[-2] // nblocks), -1, -2)
