"""Vision transformer.

Source: A. Dosovitskiy et al., "An image is worth 16x16 words", 2021. Differs in the pooling: the
mean over the patches instead of a class token (L. Beyer, X. Zhai and A. Kolesnikov, "Better plain
ViT baselines for ImageNet-1k", 2022).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core.registry import register
from jaxlab.models.checks import check_divides, check_positive, compute_dtype
from jaxlab.models.layers import Initializer, Linear, attention, normalize, residual_init


class Attention(nnx.Module):
    """Every patch attends to every patch; kernels `q`, `k`, `v`, `out` of (d_model, d_model)."""

    def __init__(
        self, d_model: int, *, heads: int, out_init: Initializer, dtype: Any, rngs: nnx.Rngs
    ):
        """`out_init` draws the kernel of `out`, which ends the residual branch."""
        self.heads = heads
        self.q, self.k, self.v = (
            Linear(d_model, d_model, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.out = Linear(d_model, d_model, dtype=dtype, kernel_init=out_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, d_model) to the same."""
        q, k, v = (
            layer(x).reshape(*x.shape[:-1], self.heads, -1) for layer in (self.q, self.k, self.v)
        )
        return self.out(attention(q, k, v, causal=False).reshape(x.shape))


class FeedForward(nnx.Module):
    """`down(gelu(up(x)))`."""

    def __init__(
        self, d_model: int, d_mlp: int, *, out_init: Initializer, dtype: Any, rngs: nnx.Rngs
    ):
        """`out_init` draws the kernel of `down`, which ends the residual branch."""
        self.up = Linear(d_model, d_mlp, dtype=dtype, rngs=rngs)
        self.down = Linear(d_mlp, d_model, dtype=dtype, kernel_init=out_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., d_model) to the same."""
        return self.down(jax.nn.gelu(self.up(x)))


class Block(nnx.Module):
    """`x + attn(attn_norm(x))`, then `x + mlp(mlp_norm(x))`."""

    def __init__(self, attn: Attention, mlp: FeedForward, *, d_model: int, rngs: nnx.Rngs):
        """The two branches, each with a norm in front."""
        self.attn_norm = _layer_norm(d_model, rngs)
        self.attn = attn
        self.mlp_norm = _layer_norm(d_model, rngs)
        self.mlp = mlp

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, d_model) to the same."""
        x = x + self.attn(normalize(self.attn_norm, x))
        return x + self.mlp(normalize(self.mlp_norm, x))


class ViT(nnx.Module):
    """Parameters `embed`, `positions`, `blocks/<i>`, `final_norm` and `head`.

    A block has `attn_norm`, `attn/{q,k,v,out}`, `mlp_norm` and `mlp/{up,down}`; all but `positions`
    (T, d_model) hold a `kernel` or `scale`, and a `bias`.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        patch: int,
        d_model: int,
        depth: int,
        heads: int,
        d_mlp: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """A model of images of (H, W, C), cut in squares of `patch` pixels."""
        height, width, channels = image_shape
        tokens = (height // patch) * (width // patch)
        make: dict[str, Any] = {"out_init": residual_init(depth), "dtype": dtype, "rngs": rngs}
        self.patch = patch
        self.embed = Linear(patch * patch * channels, d_model, dtype=dtype, rngs=rngs)
        # As large as a fan-in initialiser would make them: much smaller, and the patches start as a
        # bag without order, from which training on little data does not recover.
        init = nnx.initializers.normal(d_model**-0.5)
        self.positions = nnx.Param(init(rngs.params(), (tokens, d_model), jnp.float32))
        self.blocks = nnx.List(
            [
                Block(
                    Attention(d_model, heads=heads, **make),
                    FeedForward(d_model, d_mlp, **make),
                    d_model=d_model,
                    rngs=rngs,
                )
                for _ in range(depth)
            ]
        )
        self.final_norm = _layer_norm(d_model, rngs)
        self.head = Linear(d_model, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to float32 logits (B, num_classes)."""
        x = self.embed(image_to_patches(images, self.patch))
        x = x + self.positions.get_value()[None].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = jnp.mean(normalize(self.final_norm, x).astype(jnp.float32), axis=1)
        return self.head(x).astype(jnp.float32)


def image_to_patches(images: jax.Array, patch: int) -> jax.Array:
    """Cuts images in squares: (B, H, W, C) to (B, H/patch * W/patch, patch * patch * C).

    A patch's entries are ordered (height, width, C), as a convolution's kernel is.

    >>> image_to_patches(jnp.arange(8.0).reshape(1, 2, 4, 1), 2)[0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    b, height, width, c = images.shape
    x = images.reshape(b, height // patch, patch, width // patch, patch, c)
    return jnp.swapaxes(x, 2, 3).reshape(b, -1, patch * patch * c)


@register("model", "vit")
def vit(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    rngs: nnx.Rngs,
    patch: int = 4,
    d_model: int = 192,
    depth: int = 6,
    heads: int = 3,
    d_mlp: int | None = None,
    dtype: str = "float32",
) -> ViT:
    """A vision transformer with pre-norm blocks, learned positions and mean pooling.

    Args:
      image_shape: (H, W, C) of an image.
      num_classes: number of logits.
      rngs: for the initial parameters.
      patch: side of a patch in pixels; divides H and W.
      d_model: width of the residual stream.
      depth: number of blocks.
      heads: of the attention; divides `d_model`.
      d_mlp: hidden width of the feed-forward layers; None is 4 * d_model.
      dtype: of the activations, "float32" or "bfloat16".

    Raises:
      ValueError: `patch` does not divide the image, `heads` does not divide `d_model`, a number is
        not positive, or `dtype` is unknown.

    >>> def logits(images):
    ...     return vit(image_shape=(8, 8, 1), num_classes=10, rngs=nnx.Rngs(0))(images)
    >>> jax.eval_shape(logits, jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    d_mlp = 4 * d_model if d_mlp is None else d_mlp
    check_positive("vit", num_classes=num_classes, d_model=d_model, depth=depth, d_mlp=d_mlp)
    side = math.gcd(*image_shape[:2])
    check_divides("vit", "patch", patch, side, f"the image's sides {tuple(image_shape[:2])}")
    check_divides("vit", "heads", heads, d_model, f"d_model={d_model}")
    return ViT(
        image_shape,
        num_classes,
        patch=patch,
        d_model=d_model,
        depth=depth,
        heads=heads,
        d_mlp=d_mlp,
        dtype=compute_dtype("vit", dtype),
        rngs=rngs,
    )


def _layer_norm(d_model: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(d_model, use_fast_variance=False, rngs=rngs)
