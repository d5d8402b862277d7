"""A multi-layer perceptron on flattened images."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlab.core.registry import register, suggest
from jaxlab.models.checks import check_positive, compute_dtype
from jaxlab.models.layers import Initializer, Linear, fan_in_init

# Of jax.nn, those that act on each entry by itself.
# fmt: off
_ACTIVATIONS = (
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity",
    "leaky_relu", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign",
    "softplus", "squareplus", "swish", "tanh",
)
# fmt: on

# Of kernels, all with a variance that falls with the fan-in: 1 / fan_in keeps a linear layer's
# scale, 2 / fan_in that of a layer behind a ReLU (K. He et al., "Delving deep into rectifiers",
# 2015).
_INITS: dict[str, Initializer] = {
    "lecun_normal": fan_in_init,
    "he_normal": nnx.initializers.he_normal(),
}


class MLP(nnx.Module):
    """Parameters `layers/<i>/{kernel,bias}` for the hidden layers, `head/{kernel,bias}`."""

    def __init__(
        self,
        widths: Sequence[int],
        activation: Callable[[jax.Array], jax.Array],
        *,
        dtype: Any = jnp.float32,
        kernel_init: Initializer = fan_in_init,
        rngs: nnx.Rngs,
    ):
        """Layers between consecutive `widths`; the last one is the head, without activation."""
        *hidden, head = itertools.pairwise(widths)
        how = {"dtype": dtype, "kernel_init": kernel_init, "rngs": rngs}
        self.activation = activation
        self.layers = nnx.List([Linear(*shape, **how) for shape in hidden])
        self.head = Linear(*head, **how)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, C) to float32 logits (B, num_classes)."""
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x).astype(jnp.float32)


@register("model", "mlp")
def mlp(
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    rngs: nnx.Rngs,
    hidden: tuple[int, ...] = (256, 256),
    activation: str = "relu",
    dtype: str = "float32",
    init: str = "lecun_normal",
) -> MLP:
    """A multi-layer perceptron on flattened images.

    Args:
      image_shape: (H, W, C) of an image.
      num_classes: number of logits.
      rngs: for the initial parameters.
      hidden: widths of the hidden layers; () gives a linear classifier.
      activation: name of an elementwise function of `jax.nn`.
      dtype: of the activations, "float32" or "bfloat16".
      init: of all kernels, "lecun_normal" (variance 1 / fan_in) or "he_normal" (2 / fan_in).

    Raises:
      ValueError: a width is not positive, or `activation`, `dtype` or `init` is unknown.

    >>> def logits(images):
    ...     return mlp(image_shape=(8, 8, 1), num_classes=10, rngs=nnx.Rngs(0))(images)
    >>> jax.eval_shape(logits, jnp.zeros((2, 8, 8, 1))).shape
    (2, 10)
    """
    for width in hidden:
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"mlp: hidden={tuple(hidden)} has {width!r}; nearest: 1")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"mlp: activation={activation!r} is not an elementwise function of jax.nn; "
            f"{suggest(activation, _ACTIVATIONS)}"
        )
    if init not in _INITS:
        raise ValueError(f"mlp: init={init!r} is unknown; {suggest(init, _INITS)}")
    check_positive("mlp", num_classes=num_classes)
    return MLP(
        (math.prod(image_shape), *hidden, num_classes),
        getattr(jax.nn, activation),
        dtype=compute_dtype("mlp", dtype),
        kernel_init=_INITS[init],
        rngs=rngs,
    )
