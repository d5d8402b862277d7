"""What the language-model runs cost in FLOPs, from the layers of the model that was trained."""

from typing import Any

import jax
from experiments import config_of
from flax import nnx

from jaxlab.core.match import leaf_paths
from jaxlab.core.registry import build
from jaxlab.data.byte_windows import ByteWindows
from jaxlab.methods.nm import NMConfig, NMPattern

CONFIG = config_of("nm_python_source", "size=large").to_dict()


def _kernels() -> dict[str, Any]:
    context = {"vocab_size": ByteWindows.vocab_size, "seq_len": CONFIG["data"]["seq_len"]}
    # The kernels are the same, and this attention is there on every machine.
    section = {**CONFIG["model"], "attention": "xla"}

    def parameters():
        model = build("model", section, rngs=nnx.Rngs(0), **context)
        return nnx.to_pure_dict(nnx.state(model))

    leaves = leaf_paths(jax.eval_shape(parameters))
    return {path: x for path, x in leaves.items() if path.endswith("/kernel")}


def layer_flops() -> dict[str, float]:
    """FLOPs of the forward pass of one step: 2 for each weight and token, and attention's scores.

    The scores and their product with the values count in full, and not only below the diagonal.
    """
    model, length = CONFIG["model"], CONFIG["data"]["seq_len"]
    tokens = CONFIG["batch_size"] * length
    scores = 4.0 * tokens * length * model["d_model"] * model["depth"]
    return {path: 2.0 * tokens * x.size for path, x in _kernels().items()} | {"scores": scores}


def lengths() -> dict[str, int]:
    """Of the axes that are grouped, by path."""
    return {path: x.shape[-2] for path, x in _kernels().items()}


def schedule(recipe: str, pattern: str, steps: int) -> NMConfig:
    """The schedule of a cell; of a recipe "name@beta_total" too."""
    n, m = map(int, pattern.split(":"))
    name, _, beta_total = recipe.partition("@")
    argument = f"size=large,recipe={name},n={n},m={m},beta_total={beta_total or 0}"
    rule = config_of("nm_python_source", argument).to_dict()["compress"]["mlp"]
    own = {k: rule[k] for k in ("recipe", "dense_frac", "beta_total", "lam")}
    return NMConfig(NMPattern(n, m), total_steps=steps, include=(rule["path"],), **own)
