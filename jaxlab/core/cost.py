"""Sizes and costs of a parameter tree, read from the buffers that are really there."""

import math
from typing import Any, NamedTuple

import jax

from jaxlab.core.match import leaf_paths
from jaxlab.core.matrix import Matrix, is_matrix


class Row(NamedTuple):
    """One line of a parameter table: a matrix, or an array.

    Attributes:
      path: where it stands in the tree.
      kind: class of the matrix, or the dtype of an array.
      shape: of the dense matrix it stands for.
      nbytes: bytes stored.
      dense_nbytes: bytes of the dense array of the same dtype.
      flops: floating point operations of a product with one row; 0 for an array of one axis.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    dense_nbytes: int
    flops: int


class ParameterTable(NamedTuple):
    """Rows of a parameter tree; `str()` draws the table, with vectors summed up in one line."""

    rows: tuple[Row, ...]

    @property
    def nbytes(self) -> int:
        """Bytes stored, of all rows."""
        return sum(r.nbytes for r in self.rows)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same parameters as dense arrays."""
        return sum(r.dense_nbytes for r in self.rows)

    @property
    def flops(self) -> int:
        """FLOPs of one row through every matrix once."""
        return sum(r.flops for r in self.rows)

    def __str__(self) -> str:
        vectors = [r for r in self.rows if len(r.shape) < 2]
        lines = [_cells(r) for r in self.rows if len(r.shape) >= 2]
        if vectors:
            lines.append(_sum_cells(f"({len(vectors)} vectors)", "", vectors))
        lines.append(_sum_cells("total", "", self.rows))
        head = ("path", "class", "shape", "bytes", "ratio", "flops/row")
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        drawn = [
            "  ".join(_pad(c, w, i) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in [head, *lines]
        ]
        rule = "-" * len(drawn[0])
        return "\n".join([drawn[0], rule, *drawn[1:-1], rule, drawn[-1]])


def parameter_table(params: Any) -> ParameterTable:
    """Path, class, shape, bytes, ratio to dense, and FLOPs of every parameter.

    Args:
      params: tree of arrays and matrices, or of their `jax.ShapeDtypeStruct`s.

    >>> from jaxlab import compress
    >>> import jax.numpy as jnp
    >>> params = compress({"kernel": jnp.ones((8, 8))}, [("kernel", "low_rank", {"rank": 2})])
    >>> print(parameter_table(params))
    path    class    shape  bytes  ratio  flops/row
    -----------------------------------------------
    kernel  LowRank  8x8      128  2.00x         64
    -----------------------------------------------
    total                     128  2.00x         64
    """
    return ParameterTable(
        tuple(_row(p, leaf) for p, leaf in leaf_paths(params, is_leaf=is_matrix).items())
    )


def nbytes(tree: Any) -> int:
    """Bytes of every buffer in a tree.

    >>> import jax.numpy as jnp
    >>> nbytes({"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)})
    32
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _row(path: str, leaf: Any) -> Row:
    size = math.prod(leaf.shape)
    dense = size * leaf.dtype.itemsize
    if isinstance(leaf, Matrix):
        stack = math.prod(leaf.shape[:-2])
        flops = stack * leaf.cost(1).flops
        return Row(path, type(leaf).__name__, leaf.shape, leaf.nbytes, dense, flops)
    flops = 2 * size if len(leaf.shape) >= 2 else 0
    return Row(path, str(leaf.dtype), tuple(leaf.shape), dense, dense, flops)


def _cells(row: Row) -> tuple[str, ...]:
    return _sum_cells(row.path, row.kind, (row,), "x".join(map(str, row.shape)))


def _sum_cells(name: str, kind: str, rows: Any, shape: str = "") -> tuple[str, ...]:
    stored = sum(r.nbytes for r in rows)
    dense = sum(r.dense_nbytes for r in rows)
    ratio = f"{dense / stored:.2f}x" if stored else ""
    return name, kind, shape, f"{stored:,}", ratio, f"{sum(r.flops for r in rows):,}"


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)
