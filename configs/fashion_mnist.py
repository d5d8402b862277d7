"""A ResNet-8 with 1:4 convolutions on Fashion-MNIST.

The four IDX files must be in `data.path`; Debian ships them as dataset-fashion-mnist.

Claim: at most 1 point of accuracy below the dense model (`:dense`).
Command: python train.py --config=configs/fashion_mnist.py
Wall time, 2 CPU cores: 216 s (median of 3)
Wall time, one H100: not run
Result: accuracy 0.7886 ± 0.0041 finalized,
  0.8008 ± 0.0067 dense (3 seeds);
  3.38x smaller on disk
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "smoke,seed=3"."""
    c = base_config(__file__, arg, dense=False)
    c.steps = 10 if c.smoke else 400
    c.batch_size = 32 if c.smoke else 64
    c.task.name = "classify"
    c.data.update(name="fashion_mnist", path="/usr/share/datasets/fashion-mnist")
    c.model.update(name="resnet", depth=8)
    if not c.dense:
        c.compress.conv = {"path": r"blocks/.*/kernel", "name": "nm", "n": 1, "m": 4}
    c.optim.update(lr=4e-3, weight_decay=0.05)
    c.checkpoint.every = 5 if c.smoke else 200
    return c
