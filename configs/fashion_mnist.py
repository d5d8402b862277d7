"""TODO"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "smoke,seed=3"."""
    c = base_config(__file__, arg)
    c.steps = 10 if c.smoke else 2000
    c.batch_size = 32 if c.smoke else 128
    c.task.name = "classify"
    c.data.update(name="fashion_mnist", path="/usr/share/datasets/fashion-mnist")
    c.model.update(name="resnet", depth=8)
    return c
