"""2-D convolutions with a kernel that is a matrix: (height * width * d_in, d_out)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]


class Convolution(NamedTuple):
    """What a convolution is but for its kernel.

    A kernel's rows run over (height, width, d_in), the last fastest: it is an HWIO kernel reshaped.

    Attributes:
      kernel_size: height and width of a window.
      strides: along H and W.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)); pads with zeros.
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    padding: Padding = "SAME"

    def dense(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Convolves with an array.

        Args:
          x: (B, H, W, d_in).
          w: (height * width * d_in, d_out).

        Returns:
          (B, H', W', d_out), of x's dtype.

        >>> Convolution((2, 2)).dense(jnp.ones((1, 4, 4, 3)), jnp.ones((12, 5))).shape
        (1, 4, 4, 5)
        """
        hwio = w.astype(x.dtype).reshape(*self.kernel_size, x.shape[-1], -1)
        return lax.conv_general_dilated(
            x, hwio, self.strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def patches(self, x: jax.Array) -> jax.Array:
        """The windows that a convolution sees, flattened.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H', W', height * width * C), each window's entries ordered (height, width, C).

        >>> x = jnp.arange(6.0).reshape(1, 2, 3, 1)
        >>> Convolution((2, 2), padding="VALID").patches(x)[0, 0].tolist()
        [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
        """
        padding = self.padding
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(x.shape[1:3], self.kernel_size, self.strides, padding)
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows, columns = (
            (length - size) // stride * stride + 1
            for length, size, stride in zip(
                x.shape[1:3], self.kernel_size, self.strides, strict=True
            )
        )
        # Slices rather than lax.conv_general_dilated_patches: that one is a convolution with an
        # identity kernel, many times slower on CPUs and rounded where convolutions run in TF32.
        windows = [
            x[:, i : i + rows : self.strides[0], j : j + columns : self.strides[1]]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]
        return jnp.concatenate(windows, axis=-1)
