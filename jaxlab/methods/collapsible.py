"""Collapsible linear blocks: two factors are trained and their product multiplies.

Source: K. Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys
2022: a convolution of k x k and one of 1 x 1 behind it, with nothing nonlinear between, are one
convolution. It is computed anew in each step, so that training costs about what the small network
does while its gradients are those of the wide one.
"""

import math
from typing import Self

import jax
import jax.numpy as jnp

from jaxlab.core.matrix import Example, Matrix, accumulator, check_weights, matrix, static
from jaxlab.methods.dense import Dense

Size = tuple[int, int]


def collapse(w1: jax.Array, w2: jax.Array, *, shortcut: Size | None = None) -> jax.Array:
    """One kernel for two linear layers, and for an identity beside them.

    The biases of the two layers are one as well: `collapse_bias`.

    Args:
      w1: (..., kh kw c_in, P), rows ordered (height, width, channel).
      w2: (..., P, c_out).
      shortcut: (kh, kw), odd, with c_in = c_out: adds the input itself, 1 at the kernel's centre.
        None adds nothing.

    Returns:
      (..., kh kw c_in, c_out), in w1's dtype, accumulated in float32 or better.

    >>> w1, w2 = jnp.zeros((3, 5)), jnp.zeros((5, 1))
    >>> collapse(w1, w2, shortcut=(3, 1))[:, 0].tolist()
    [0.0, 1.0, 0.0]
    """
    wide = accumulator(w1.dtype)
    dense = jnp.matmul(w1.astype(wide), w2.astype(wide), precision="highest")
    if shortcut is not None:
        dense = dense + _identity(dense, shortcut)
    return dense.astype(w1.dtype)


def collapse_bias(
    b1: jax.Array | None, w2: jax.Array, b2: jax.Array | None = None
) -> jax.Array | None:
    """One bias for those of two linear layers: `b1 @ w2 + b2`.

    Exact unless zeros are padded between the two layers, which know nothing of b1. An identity
    beside them changes nothing here.

    Args:
      b1: (..., P), of the first layer; None if it has none.
      w2: (..., P, c_out), the second layer's kernel.
      b2: (..., c_out), or None.

    Returns:
      (..., c_out), in w2's dtype, accumulated in float32 or better; `b2` itself without `b1`.

    >>> w2, b2 = jnp.ones((2, 3)), jnp.array([0.0, 1.0, 2.0])
    >>> collapse_bias(jnp.array([1.0, 4.0]), w2, b2).tolist()
    [5.0, 6.0, 7.0]
    """
    if b1 is None:
        return b2
    wide = accumulator(w2.dtype)
    row = jnp.matmul(b1.astype(wide)[..., None, :], w2.astype(wide), precision="highest")
    bias = row[..., 0, :] if b2 is None else row[..., 0, :] + b2.astype(wide)
    return bias.astype(w2.dtype)


@matrix("collapsible")
class Collapsible(Matrix):
    """`to_dense() = expand @ project`, plus 1 at the centre of the kernel for a shortcut.

    expand: (..., d_in, P); project: (..., P, d_out), with P larger than it need be: the form is for
    training only. `finalize` gives the array.
    """

    expand: jax.Array
    project: jax.Array
    kernel_size: Size | None = static()

    axes = {"expand": ("in", None), "project": (None, "out")}
    dense_product = True
    EXAMPLE = Example(
        shape=(18, 2),
        hyper={"width": 8, "kernel_size": (3, 3)},
        bad=(
            {"width": 0},
            {"kernel_size": (2, 2)},
            {"kernel_size": (5, 5)},
            {"kernel_size": (1, 3)},
        ),
    )
    CITE = """@inproceedings{bhardwaj2022collapsible,
  title={Collapsible Linear Blocks for Super-Efficient Super Resolution},
  author={Bhardwaj, Kartikeya and Milosavljevic, Milos and O'Neil, Liam and Gope, Dibakar and
    Matas, Ramon and Chalfin, Alex and Suda, Naveen and Meng, Lingchuan and Loh, Danny},
  booktitle={MLSys}, year={2022}
}"""

    @classmethod
    def from_dense(
        cls,
        w: jax.Array,
        *,
        width: int = 256,
        kernel_size: Size | None = None,
        key: jax.Array | None = None,
    ) -> Self:
        """Factors whose product, with the shortcut, is `w`; of the nearest rank-P one if P is less.

        What P has beyond the rank of `w` begins as columns of `expand` that meet zeros in
        `project`: nothing is added to `w`, and the zeros have a gradient from the first step.

        Args:
          w: (..., d_in, d_out), floating.
          width: P.
          kernel_size: (kh, kw), both odd, of a convolution from and to d_out channels that has a
            shortcut; (1, 1) for a square linear layer; None for no shortcut.
          key: draws those columns, of variance 1 / d_in; without it they are singular vectors.

        Raises:
          ValueError: `width` is below 1, or the shortcut does not fit the kernel.

        >>> Collapsible.from_dense(jnp.ones((4, 6)), width=8)
        Collapsible(expand=float32[4, 8], project=float32[8, 6], kernel_size=None)
        """
        check_weights("collapsible", w)
        if width < 1:
            raise ValueError(f"collapsible: width={width} must be 1 or more; nearest: 1")
        size = None if kernel_size is None else _checked(kernel_size, w.shape)
        wide = w.astype(accumulator(w.dtype))
        if size is not None:
            wide = wide - _identity(wide, size)
        expand, project = _factors(wide, width, key)
        return cls(expand.astype(w.dtype), project.astype(w.dtype), size)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d_in, d_out)."""
        return (*self.expand.shape[:-1], self.project.shape[-1])

    def at(self, progress: jax.Array) -> Matrix:
        """The product, computed once however often the step multiplies with it."""
        return self.finalize()

    def to_dense(self) -> jax.Array:
        """`collapse` of the factors."""
        return collapse(self.expand, self.project, shortcut=self.kernel_size)

    def finalize(self) -> Matrix:
        """The array: what training leaves is an ordinary layer."""
        return Dense(self.to_dense())


def _identity(like: jax.Array, size: Size) -> jax.Array:
    """The kernel (kh kw c, c) that passes its input on, broadcast to a stack."""
    d_in, d_out = like.shape[-2:]
    centre = (size[0] // 2) * size[1] + size[1] // 2
    eye = jnp.eye(d_in, d_out, k=-centre * d_out, dtype=like.dtype)
    return jnp.broadcast_to(eye, like.shape)


def _factors(w: jax.Array, width: int, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    left, sigma, right = jnp.linalg.svd(w, full_matrices=False)
    kept = min(width, sigma.shape[-1])
    sigma = sigma[..., :kept]
    # Balanced; but two factors that are both zero would never move.
    needed = sigma > max(w.shape[-2:]) * jnp.finfo(w.dtype).eps * sigma[..., :1]
    scale = jnp.where(needed, jnp.sqrt(sigma), jnp.ones_like(sigma))
    expand = left[..., :kept] * scale[..., None, :]
    project = (sigma / scale)[..., None] * right[..., :kept, :]
    more = width - kept
    if not more:
        return expand, project
    if key is None:
        columns = left[..., jnp.arange(more) % kept]
    else:
        shape = (*left.shape[:-1], more)
        columns = jax.random.normal(key, shape, w.dtype) * w.shape[-2] ** -0.5
    nothing = jnp.zeros((*project.shape[:-2], more, project.shape[-1]), w.dtype)
    return jnp.concatenate([expand, columns], -1), jnp.concatenate([project, nothing], -2)


def _checked(kernel_size: Size, shape: tuple[int, ...]) -> Size:
    size = tuple(kernel_size)
    d_in, d_out = shape[-2:]
    if len(size) != 2 or any(k < 1 or k % 2 == 0 for k in size):
        nearest = tuple(max(k | 1, 1) for k in (*size, 1, 1)[:2])
        raise ValueError(
            f"collapsible: kernel_size={kernel_size} must be two odd sizes, so that there is a "
            f"centre; nearest: {nearest}"
        )
    if math.prod(size) * d_out != d_in:
        raise ValueError(
            f"collapsible: kernel_size={kernel_size} does not fit a kernel of {d_in} x {d_out}: a "
            "shortcut needs height * width * d_out rows; nearest: kernel_size=None"
        )
    return size
