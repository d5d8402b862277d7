"""Models as flax NNX modules, one architecture per file, registered under kind "model".

A model is a pure function of its parameters: it holds `nnx.Param`s only, stored in float32, every
kernel of two axes (d_in, d_out). Activations are in the `dtype` that the constructor was given;
statistics of norms, softmax and logits are float32. `layers.py` has what they share: a kernel there
may be a `Matrix` instead of an array.

>>> import jax.numpy as jnp
>>> from flax import nnx
>>> from jaxlab import build, compress
>>> section = {"name": "mlp", "hidden": (16,)}
>>> model = build("model", section, image_shape=(8, 8, 1), num_classes=10, rngs=nnx.Rngs(0))
>>> graphdef, state = nnx.split(model)
>>> params = compress(nnx.to_pure_dict(state), [("layers/0/kernel", "low_rank", {"rank": 4})])
>>> nnx.merge(graphdef, params)(jnp.zeros((2, 8, 8, 1))).shape
(2, 10)
"""
