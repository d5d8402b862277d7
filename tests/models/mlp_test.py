import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlab.models.mlp import mlp

IMAGES = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)


def kernels(model):
    state = nnx.to_pure_dict(nnx.state(model))
    layers = [*state.get("layers", {}).values(), state["head"]]
    return [(np.asarray(p["kernel"]), np.asarray(p["bias"])) for p in layers]


def test_no_hidden_layer_is_a_linear_classifier():
    model = mlp(image_shape=(2, 2, 1), num_classes=3, hidden=(), rngs=nnx.Rngs(0))
    [(w, b)] = kernels(model)
    np.testing.assert_allclose(model(jnp.asarray(IMAGES)), IMAGES.reshape(3, 4) @ w + b, atol=1e-5)


def test_activation_follows_every_hidden_layer():
    model = mlp(
        image_shape=(2, 2, 1), num_classes=3, hidden=(4, 4), activation="tanh", rngs=nnx.Rngs(0)
    )
    first, second, (w, b) = kernels(model)
    x = IMAGES.reshape(3, 4)
    for kernel, bias in (first, second):
        x = np.tanh(x @ kernel + bias)
    np.testing.assert_allclose(model(jnp.asarray(IMAGES)), x @ w + b, atol=1e-5)
