"""Digits in 2048 or more random dimensions, every class a von Mises-Fisher distribution.

Claim: every log-likelihood is finite in 2048, 8192 and 32768 dimensions (`:dim=8192`).
Command: python train.py --config=configs/vmf_digits.py
Wall time, 2 CPU cores: 4 s besides starting (shared machine)
Wall time, one H100: not run
Result: p = 2048 accuracy 0.9168 ± 0.0051, finite 100%;
  p = 8192 accuracy 0.9241 ± 0.0035, finite 100%;
  p = 32768 accuracy 0.9235 ± 0.0010, finite 100%;
  (3 seeds)
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "dim=32768" or "components=4", mixtures by 30 steps of EM.

    The seed is that of the random features too: one component has no other randomness.
    """
    c = base_config(__file__, arg, dim=2048, components=1)
    # Of the whole training part: one step is the fit, or one step of EM.
    c.steps = 1 if c.components == 1 else 30
    c.batch_size = 1200
    c.task.update(name="vmf", components=c.components, prior=0.0 if c.components == 1 else 1.0)
    c.data.update(
        name="random_features",
        source={"name": "digits"},
        dim=64 if c.smoke else c.dim,
        feature_seed=c.seed,
    )
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
