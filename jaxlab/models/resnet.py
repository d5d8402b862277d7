"""Residual networks of the CIFAR kind, with group normalisation.

Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", 2016,
section 4.2: a 3x3 stem, three stages of n two-layer blocks with 1, 2 and 4 times the width, 6n + 2
layers in all, and shortcuts without parameters. Differs from theirs in the normalisation: that of
Y. Wu and K. He, "Group normalization", 2018. Batch statistics would make the output depend on the
rest of the batch and on how it is sharded, and keep running averages besides the parameters; with
group statistics the model is a pure function of its parameters and of one image.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core.registry import register
from jaxlab.models.checks import check_divides, check_positive, compute_dtype
from jaxlab.models.layers import Conv, Linear, normalize


class Block(nnx.Module):
    """`relu(x + norm2(conv2(relu(norm1(conv1(x))))))`, conv1 with the stride."""

    def __init__(
        self, d_in: int, d_out: int, *, stride: int, groups: int, dtype: Any, rngs: nnx.Rngs
    ):
        """Two 3x3 convolutions from `d_in` to `d_out` channels."""
        self.stride = stride
        self.conv1 = _conv3x3(d_in, d_out, stride, dtype, rngs)
        self.norm1 = _group_norm(d_out, groups, rngs)
        self.conv2 = _conv3x3(d_out, d_out, 1, dtype, rngs)
        self.norm2 = _group_norm(d_out, groups, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, d_in) to (B, ceil(H / stride), ceil(W / stride), d_out)."""
        y = jax.nn.relu(normalize(self.norm1, self.conv1(x)))
        y = normalize(self.norm2, self.conv2(y))
        x = x[:, :: self.stride, :: self.stride]
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """Parameters `stem/kernel`, `stem_norm`, `blocks/<i>/{conv1,norm1,conv2,norm2}`, `head`.

    Convolutions have a `kernel`, norms `scale` and `bias`, the head `kernel` and `bias`.
    """

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        *,
        blocks_per_stage: int,
        width: int,
        groups: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Three stages; the second and the third start with stride 2 and twice the width."""
        self.stem = _conv3x3(d_in, width, 1, dtype, rngs)
        self.stem_norm = _group_norm(width, groups, rngs)
        blocks, channels = [], width
        for stage in range(3):
            for i in range(blocks_per_stage):
                d_out = width * 2**stage
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(
                    Block(channels, d_out, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
                )
                channels = d_out
        self.blocks = nnx.List(blocks)
        self.head = Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to float32 logits (B, num_classes)."""
        x = jax.nn.relu(normalize(self.stem_norm, self.stem(images)))
        for block in self.blocks:
            x = block(x)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return self.head(x).astype(jnp.float32)


@register("model", "resnet")
def resnet(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    rngs: nnx.Rngs,
    depth: int = 20,
    width: int = 16,
    groups: int = 8,
    dtype: str = "float32",
) -> ResNet:
    """A residual network of 6n + 2 layers for small images.

    Args:
      image_shape: (H, W, C) of an image.
      num_classes: number of logits.
      rngs: for the initial parameters.
      depth: 8, 14, 20, ...: number of layers with a kernel.
      width: channels of the first stage; the second has twice, the third four times as many.
      groups: of channels that are normalised together; divides `width`.
      dtype: of the activations, "float32" or "bfloat16".

    Raises:
      ValueError: `depth` is not 6n + 2, `groups` does not divide `width`, a number is not
        positive, or `dtype` is unknown.

    >>> def logits(images):
    ...     return resnet(image_shape=(8, 8, 1), num_classes=10, rngs=nnx.Rngs(0))(images)
    >>> jax.eval_shape(logits, jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    if depth < 8 or depth % 6 != 2:
        below = (depth - 2) // 6 * 6 + 2
        nearest = f"{below}, {below + 6}" if below >= 8 else "8"
        raise ValueError(f"resnet: depth={depth} must be 6n + 2; nearest: {nearest}")
    check_positive("resnet", num_classes=num_classes, width=width)
    check_divides("resnet", "groups", groups, width, f"width={width}")
    return ResNet(
        image_shape[-1],
        num_classes,
        blocks_per_stage=(depth - 2) // 6,
        width=width,
        groups=groups,
        dtype=compute_dtype("resnet", dtype),
        rngs=rngs,
    )


def _conv3x3(d_in: int, d_out: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    # "SAME" would pad a strided convolution of an even image on one side only, and so shift it by
    # a pixel against the shortcut. The norm that follows has a bias.
    return Conv(
        d_in,
        d_out,
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


def _group_norm(channels: int, groups: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=groups, use_fast_variance=False, rngs=rngs)
